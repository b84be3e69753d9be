"""Figures of the experiments, as PNG and SVG, the same bytes for the same numbers."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from salmon.files import write_atomically

# Okabe and Ito's colours, told apart by most colour-blind people.
COLOURS = {
    "pot": "#d55e00", "zscore": "#0072b2", "magnitude": "#009e73", "random": "#777777",
    "last_group": "#cc79a7", "all filters": "#222222",
}  # fmt: skip
_STYLES = {"pot": "-", "zscore": "--", "magnitude": "-.", "random": ":", "last_group": (0, (5, 1))}


def draw_curves(
    stem: Path,
    rows: Sequence[Mapping[str, Any]],
    title: str,
    names: Mapping[str, str],
    titles: Mapping[str, str],
) -> None:
    """One row of axes per kind of edit, one column per metric, one line per ranking.

    Args:
        stem: The files without their endings.
        rows: As in the CSV, of one panel.
        title: Above everything.
        names: Of the rankings.
        titles: Of the metrics.
    """
    kinds = list(dict.fromkeys(row["edit"] for row in rows))
    figure = Figure(figsize=(10, 0.6 + 2.7 * len(kinds)), layout="constrained")
    grid = figure.subplots(len(kinds), len(titles), squeeze=False, sharex=True)
    for line, kind in zip(grid, kinds, strict=True):
        for axes, (metric, label) in zip(line, titles.items(), strict=True):
            for ranking in dict.fromkeys(row["ranking"] for row in rows):
                own = [
                    row for row in rows
                    if (row["edit"], row["metric"], row["ranking"]) == (kind, metric, ranking)
                ]  # fmt: skip
                x = [row["filters"] for row in own]
                mean, low, high = ([100 * r[key] for r in own] for key in ("mean", "low", "high"))
                colour = COLOURS[ranking]
                axes.plot(x, mean, color=colour, ls=_STYLES[ranking], label=names[ranking])
                axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
            axes.axhline(0, color="#bbbbbb", lw=0.8, zorder=0)
            axes.set_title(f"{kind}: {label}", loc="left", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("edited filters")
    grid[0][0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{title}; bands: 95 %, bootstrap", x=0.01, ha="left")
    save_figure(figure, stem)


def draw_shares(
    stem: Path, shares: Mapping[str, Mapping[str, float]], names: Mapping[str, str]
) -> None:
    """Bars of the groups' shares.

    Args:
        stem: The files without their endings.
        shares: By ranking and group.
        names: Of the rankings.
    """
    groups = list(next(iter(shares.values())))
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.84 / len(shares)
    for place, (ranking, own) in enumerate(shares.items()):
        at = [number + width * (place - (len(shares) - 1) / 2) for number in range(len(groups))]
        heights = [100 * own[group] for group in groups]
        bars = axes.bar(
            at, heights, width=0.95 * width, label=names[ranking], color=COLOURS[ranking]
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=1)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("share of the 25 first filters, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, stem)


def save_figure(figure: Figure, stem: Path) -> None:
    """Write a figure as PNG and SVG.

    Args:
        figure: What to write.
        stem: The files without their endings.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        content = BytesIO()
        with mpl.rc_context({"svg.hashsalt": "salmon"}):
            figure.savefig(content, format=kind, dpi=110, metadata=metadata)
        figure.set_layout_engine("none")  # the places are found, which takes longer than drawing
        data = content.getvalue()
        path = stem.with_name(f"{stem.name}.{kind}")
        write_atomically(path, lambda file, data=data: file.write(data))  # type: ignore[misc]
