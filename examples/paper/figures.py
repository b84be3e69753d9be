"""Figures as PNG and SVG, the same bytes for the same numbers."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.paper.study import METRICS, write_file

# Okabe and Ito's colours, told apart by most colour-blind people.
COLOURS = {
    "pot": "#d55e00", "pot_ml": "#e69f00", "zscore": "#0072b2", "magnitude": "#009e73",
    "effect": "#56b4e9", "random": "#777777", "last_group": "#cc79a7", "all filters": "#222222",
}  # fmt: skip
STYLES = {
    "pot": "-", "pot_ml": (0, (1, 1)), "zscore": "--", "magnitude": "-.",
    "effect": (0, (3, 1, 1, 1)), "random": ":", "last_group": (0, (5, 1)),
}  # fmt: skip

Row = dict[str, Any]


def draw_curves(stem: Path, rows: Sequence[Row], title: str) -> None:
    """One row of axes per kind of edit, one column per metric, one line per ranking."""
    edits, rankings = (list(dict.fromkeys(row[key] for row in rows)) for key in ("edit", "ranking"))
    figure = Figure(figsize=(10, 0.6 + 2.7 * len(edits)), layout="constrained")
    grid = figure.subplots(len(edits), len(METRICS), squeeze=False, sharex=True)
    for line, edit in zip(grid, edits, strict=True):
        for axes, (metric, label) in zip(line, METRICS.items(), strict=True):
            for ranking in rankings:
                own = [r for r in rows if (r["edit"], r["metric"], r["ranking"])
                       == (edit, metric, ranking)]  # fmt: skip
                style = {"ls": STYLES[ranking], "label": ranking}
                draw_band(axes, own, "filters", "mean", COLOURS[ranking], scale=100, **style)
            axes.axhline(0, color="#bbbbbb", lw=0.8, zorder=0)
            axes.set_title(f"{edit}: {label}", loc="left", fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("edited filters")
    grid[0][0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{title}; bands: 95 %, bootstrap", x=0.01, ha="left")
    save_figure(figure, stem)


def draw_shares(stem: Path, rows: Sequence[Row]) -> None:
    """Bars of the groups' shares, means over cases."""
    rankings = list(dict.fromkeys(row["ranking"] for row in rows))
    groups = [name for name in rows[0] if name not in {"case", "ranking"}]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.84 / len(rankings)
    for place, ranking in enumerate(rankings):
        own = [[100 * row[group] for group in groups] for row in rows if row["ranking"] == ranking]
        at = np.arange(len(groups)) + width * (place - (len(rankings) - 1) / 2)
        style = {"label": ranking, "color": COLOURS[ranking]}
        bars = axes.bar(at, np.mean(own, axis=0), 0.95 * width, **style)
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=1)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("share of the 25 first filters, %")
    axes.legend(frameon=False)
    save_figure(figure, stem)


def draw_calibration(stem: Path, rows: Sequence[Row]) -> None:
    """Observed over predicted rates of exceedance."""
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for method in ("normal", "pot_ml", "pot"):
        own = [row for row in rows if row["method"] == method]
        colour = COLOURS["zscore" if method == "normal" else method]
        draw_band(axes, own, "predicted", "ratio", colour, marker="o", label=method)
    axes.axhline(1, color="#bbbbbb", lw=0.8, zorder=0)
    axes.set(xlabel="predicted rate", xscale="log", xlim=(0.08, 0.00006))  # rarer to the right
    axes.set_yscale("symlog", linthresh=1)
    axes.set(ylabel="observed / predicted", ylim=(0, None))
    axes.legend(frameon=False)
    save_figure(figure, stem)


def draw_band(
    axes: Axes, rows: Sequence[Row], x: str, y: str, colour: str, *, scale: int = 1, **style: Any
) -> None:
    """A line, and the band from "low" to "high" around it."""
    places = [row[x] for row in rows]
    middle, low, high = ([scale * row[key] for row in rows] for key in (y, "low", "high"))
    axes.plot(places, middle, color=colour, **style)
    axes.fill_between(places, low, high, color=colour, alpha=0.15, lw=0)


def save_figure(figure: Figure, stem: Path) -> None:
    """Write a figure as PNG and SVG."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        content = BytesIO()
        with mpl.rc_context({"svg.hashsalt": "salmon"}):
            figure.savefig(content, format=kind, dpi=110, metadata=metadata)
        figure.set_layout_engine("none")  # the places are found, which takes longer than drawing
        write_file(stem.with_name(f"{stem.name}.{kind}"), content.getvalue())
