"""The figure of a repair: gain against loss."""

import io
from collections.abc import Sequence

import matplotlib.style
from matplotlib.figure import Figure

from salmon.repairs.trial import Trial

# Okabe and Ito's colours, told apart by most colour-blind people.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_TITLE = "Gain on new data against loss on reference data, by remedy"
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "tradeoff", "text.parse_math": False}


def tradeoff_svg(trials: Sequence[Trial], margin: float) -> str:
    """Draw for every remedy the largest gain found at each loss, up to the allowed one and beyond.

    Returns:
        A vector graphic; the same trials give the same text.
    """
    buffer = io.StringIO()
    with matplotlib.style.context(["default", _STYLE]):
        metadata = {"Title": _TITLE, "Date": None, "Creator": None}
        tradeoff(trials, margin).savefig(buffer, format="svg", metadata=metadata)
    return buffer.getvalue().replace("<svg ", '<svg role="img" ', 1)


def tradeoff(trials: Sequence[Trial], margin: float) -> Figure:
    """The figure of :func:`tradeoff_svg`, in percentage points; losses far beyond are left out."""
    shown = [t for t in trials if t.complete and t.lost <= 4 * max(margin, 0.01)]
    figure = Figure(figsize=(7.6, 4.4))
    axes = figure.add_axes((0.1, 0.13, 0.6, 0.83))
    axes.axvline(100 * margin, color="#888888", ls="--", lw=1, label="margin")
    for number, name in enumerate(dict.fromkeys(_line(trial) for trial in trials)):
        front = _front([trial for trial in shown if _line(trial) == name])
        losses, gains = [100 * t.lost for t in front], [100 * max(0.0, t.gain) for t in front]
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(losses, gains, "o-", color=colour, lw=2, ms=5, label=name, clip_on=False)
    axes.set_xlim(
        100 * min([0.0, *(t.lost for t in shown)]),
        100 * max([margin * 1.5, 0.005, *(t.lost for t in shown)]),
    )
    axes.set_ylim(0, 110 * max([0.01, *(t.gain for t in shown)]))
    axes.set_xlabel("accuracy lost on reference data, points")
    axes.set_ylabel("accuracy won on new data, points")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    return figure


def _line(trial: Trial) -> str:
    return f"{trial.remedy} ({trial.order})"


def _front(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that no other one of them beats in both gain and loss, by rising loss."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.lost, -t.gain)):
        if not front or trial.gain > front[-1].gain:
            front.append(trial)
    return front
