"""Figures of a repair: gain against loss, and the images that turned right or wrong."""

import io
from collections.abc import Sequence

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from salmon.repairs.changes import SetChange
from salmon.repairs.samples import Samples
from salmon.repairs.trial import Trial

# Okabe and Ito's colours, told apart by most colour-blind people.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_TITLE = "Gain on new data against loss on reference data, by remedy"
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "tradeoff", "text.parse_math": False}
_IMAGES, _COLUMNS = 24, 12


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


def samples_png(samples: Samples, change: SetChange) -> bytes | None:
    """Draw the first fixed and the first broken images of a set, with their classes.

    Args:
        samples: Among which those of the set are found by their ids.

    Returns:
        None where the inputs are no images (``[N, 1 or 3, H, W]``) or nothing changed.
    """
    images = next((leaf for leaf in pytree.tree_leaves(samples.inputs) if _are_images(leaf)), None)
    if images is None or not (change.fixed or change.broken):
        return None
    row_of = {name: row for row, name in enumerate(samples.ids)}
    parts = [("fixed", change.fixed[:_IMAGES]), ("broken", change.broken[:_IMAGES])]
    lines = [-(-len(found) // _COLUMNS) for _, found in parts]
    figure = Figure(figsize=(_COLUMNS, 1.3 * sum(lines)))
    for (title, found), above in zip(parts, (0, lines[0]), strict=True):
        for number, one in enumerate(found):
            place = above * _COLUMNS + number + 1
            axes = figure.add_subplot(sum(lines), _COLUMNS, place)
            axes.imshow(_shown(images[row_of[one.id]]), cmap="gray")
            what = one.what.replace(*((", ", "\n") if ", " in one.what else (" ", "\n")), 1)
            axes.set_title(f"{title}: {what}", fontsize=6)
            axes.axis("off")
    buffer = io.BytesIO()
    metadata = {"Software": None}
    figure.savefig(buffer, format="png", dpi=90, bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


def _are_images(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim == 4 and leaf.shape[1] in (1, 3)


def _shown(image: Tensor) -> NDArray[np.float32]:
    """``[H, W]`` or ``[H, W, 3]`` in [0, 1], whatever the image was normalised with."""
    wide = image.detach().float()
    low, high = wide.min(), wide.max()
    scaled = (wide - low) / (high - low).clamp(min=1e-12)
    shown: NDArray[np.float32] = scaled.permute(1, 2, 0).squeeze(2).numpy()
    return shown
