"""Figures of the normal assumption: quantiles of a few filters, and calibration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats

from examples.paper.shared.bands import Values
from examples.paper.shared.figures import COLOURS, save_figure
from salmon import TailFit, gpd


def draw_quantiles(
    stem: Path, values: Values, fit: TailFit, filters: Mapping[str, int], labels: Sequence[str]
) -> None:
    """Observed quantiles of some filters against those of the normal and of the tail.

    Args:
        stem: The files without their endings.
        values: ``[N, F]`` saliency.
        fit: Its tails and moments.
        filters: Numbers by what they are examples of.
        labels: ``[F]`` names.
    """
    figure = Figure(figsize=(3.3 * len(filters), 6.2), layout="constrained")
    grid = figure.subplots(2, len(filters), squeeze=False)
    for column, (what, number) in enumerate(filters.items()):
        own = np.sort(values[:, number])
        place = (np.arange(len(own)) + 0.5) / len(own)
        z = (own - float(fit.mean[number])) / float(fit.scale[number])
        _points(grid[0][column], stats.norm.ppf(place), z, COLOURS["zscore"])
        grid[0][column].set_title(f"{what}: {labels[number]}", fontsize=9, loc="left")
        excess = own[own > float(fit.threshold[number])] - float(fit.threshold[number])
        inside = torch.from_numpy((np.arange(len(excess)) + 0.5) / max(1, len(excess)))
        predicted = gpd.quantile(inside, fit.xi[number], fit.sigma[number]).numpy()
        scale = float(fit.sigma[number])
        _points(grid[1][column], predicted / scale, excess / scale, COLOURS["pot"])
    for line, what in zip(grid, ("normal, deviations", "generalized Pareto, sigma"), strict=True):
        line[0].set_ylabel("observed")
        for axes in line:
            axes.set_xlabel(f"quantile of the {what}", fontsize=9)
    save_figure(figure, stem)


def draw_calibration(
    stem: Path, rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]
) -> None:
    """Observed over predicted exceedance rates.

    Args:
        stem: The files without their endings.
        rows: As in the CSV, of one set.
        names: Of the methods.
    """
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for method, key in (("normal", "zscore"), ("pot", "pot")):
        own = [row for row in rows if row["method"] == method]
        x, y, low, high = ([row[k] for row in own] for k in ("predicted", "ratio", "low", "high"))
        axes.plot(x, y, "o-", color=COLOURS[key], label=names[method])
        axes.fill_between(x, low, high, color=COLOURS[key], alpha=0.15, lw=0)
    axes.axhline(1, color="#bbbbbb", lw=0.8, zorder=0)
    axes.set_xscale("log")
    axes.set_xlim(0.08, 0.00006)  # rarer ones to the right
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("predicted rate")
    axes.set_ylabel("observed / predicted")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, stem)


def _points(axes: Any, x: Values, y: Values, colour: str) -> None:
    """Points and the line that they would lie on."""
    axes.plot(x, y, ".", ms=3, color=colour)
    if len(x):
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axes.plot(ends, ends, color="#bbbbbb", lw=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
