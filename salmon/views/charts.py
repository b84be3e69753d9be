"""Charts of passes: where mistakes are made, since when, and whether the fits can be trusted."""

import math
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from salmon.views.figures import (
    LIGHT,
    SERIES,
    SMALL,
    Chart,
    axes_at,
    blank,
    fitted,
    line_at,
    name_columns,
    name_rows,
    numbers_between,
    styled,
    words,
)
from salmon.views.history import History
from salmon.views.pictures import Pixels, enlarged
from salmon.views.record import STATUSES, XI_EDGES, FitExample, LayerRow, PassRecord
from salmon.views.summary import calibration_text, doubt_text, overview
from salmon.views.wording import METHOD_NAMES, percent

_FAINT = LIGHT["faint"]
_ENDS = ("low", "high")
_DASHES = ("-", "--", ":", "-.")
_LETTERS = 52  # of a sentence in a line of the overview
_PHOTO = 96
_MAX_DOTS = 30  # passes of a line that are marked
_MAX_CELLS = 120  # passes of a heat map side by side; more are averaged
_STATUS_TEXT = {
    "ok": "fitted",
    "exponential": "fitted, xi = 0",
    "boundary": "fitted, xi = -1",
    "too_few": "too few excesses",
    "degenerate": "values tie",
}


@styled()
def overview_card(record: PassRecord, history: History, confused: Sequence[Pixels] = ()) -> Chart:
    """The sentences of a pass, on one card.

    Args:
        confused: Images ``[H, W, 3]`` of the worst confusion, of which two are shown.
    """
    title = f"{record.stage.capitalize()} {record.number}, at step {record.step}"
    parts = overview(record, history, brief=True)
    rows = [
        (name, [text for line in lines for text in _wrapped(line)]) for name, lines in parts.items()
    ]
    high = sum(16 * len(texts) + 10 for _, texts in rows)
    shown = [enlarged(image, 2 * _PHOTO) for image in confused[:2]]
    figure = blank(title, 36 + high + (_PHOTO + 34) * bool(shown))
    y = 44.0
    for name, texts in rows:
        for i, label in enumerate(textwrap.wrap(name, 10)):
            words(figure, 8, y + 16 * i, label, weight="bold")
        for text in texts:
            words(figure, 90, y, text)
            y += 16
        y += 10
    for i, image in enumerate(shown):
        axes = axes_at(figure, 90 + (_PHOTO + 12) * i, y - 6, _PHOTO, _PHOTO)
        axes.imshow(image, interpolation="none")
        axes.set_axis_off()
    if shown:
        pair = record.pairs[0]
        note = f"{record.class_name(pair.target)} taken for {record.class_name(pair.predicted)}"
        words(figure, 90, y + _PHOTO + 12, fitted(note, 340), color=_FAINT)
    return Chart(title, " ".join(line for lines in parts.values() for line in lines), figure)


@styled()
def share_lines(history: History, method: str) -> Chart:
    """Share of every group among the top filters, over the passes.

    Returns:
        A line per group, in percent; the method ``"difference"`` shows POT minus z-score.
    """
    if method == "difference":
        values = 100 * (history.group_shares("pot") - history.group_shares("zscore"))
        title = "POT minus z-score, in points"
    else:
        values = 100 * history.group_shares(method)
        title = f"Share of each group among the top filters, {METHOD_NAMES[method]}, in %"
    low, high = min(0.0, float(values.nan_to_num(0).min())), float(values.nan_to_num(0).max())
    room, single = max(1.0, 0.05 * (high - low)), 0.5 * (len(history.passes) == 1)
    groups = history.groups
    figure = blank(title, 268 + 18 * math.ceil(len(groups) / 3))
    axes = axes_at(figure, 46, 32, 392, 180)
    axes.set_xlim(int(history.passes[0]) - single, int(history.passes[-1]) + single)
    axes.set_ylim(low - room if low < 0 else 0, min(100, high + room))
    _number_axes(axes, whole=True)
    words(figure, 242, 246, "validation", ha="center", color=_FAINT)
    colours = [SERIES[i % 8] for i in range(len(groups))]
    dashes = [_DASHES[i // 8 % 4] for i in range(len(groups))]
    for i in range(len(groups)):
        known = ~torch.isnan(values[:, i])
        # Dots show a single pass, and clutter a long run.
        marker = "o" if int(known.sum()) <= _MAX_DOTS else ""
        axes.plot(
            history.passes[known].tolist(), values[known, i].tolist(), marker, ms=6, mew=0, lw=2,
            color=colours[i], ls=dashes[i], clip_on=False,
        )  # fmt: skip
    _legend(figure, groups, 264, color=colours, ls=dashes, lw=[2] * len(groups))
    numbers = ", ".join(map("{} {}".format, groups, map(_number, values[-1].tolist())))
    return Chart(title, f"Last validation: {numbers}.", figure)


@styled()
def heat_map(history: History, method: str) -> Chart:
    """Share of every layer among the top filters, over the passes.

    Returns:
        A row per layer, first layers on top, and a column per pass; of more than 120 passes
        neighbours are averaged.
    """
    together = -(-len(history.passes) // _MAX_CELLS)
    parts, layers = history.layer_shares(method).split(together), history.layers
    shares = torch.stack([part.nanmean(0) for part in parts])
    top = float(shares.nan_to_num(0).amax())
    pitch = min(15.0, max(3.0, 660 / len(layers)))
    height, width = pitch * len(layers), min(240.0, 40.0 * len(shares))
    title = f"Share of each layer among the top filters, {METHOD_NAMES[method]}"
    figure = blank(title, 44 + height + 50)
    axes = axes_at(figure, 144, 44, width, height)
    axes.imshow(_shades(shares.t() / (top or 1)), aspect="auto", interpolation="none")
    axes.spines[:].set_visible(False)
    names, shared = layer_names(layers)
    every = math.ceil(12 / pitch)
    shown = [fitted(name, 132, SMALL) for name in names[::every]]
    name_rows(axes, range(0, len(layers), every), shown, size=SMALL)
    every = math.ceil(36 * len(shares) / width)
    numbers = map(str, history.passes[:: every * together].tolist())
    name_columns(axes, range(0, len(shares), every), numbers, size=SMALL, color=_FAINT)
    if shared:
        shared = f"{fitted(shared, 110, SMALL)}.\u2026"
        words(figure, 139, 39, shared, ha="right", color=_FAINT, size=SMALL)
    starts = [i for i, row in enumerate(layers) if i == 0 or row.group != layers[i - 1].group]
    axes.hlines([i - 0.5 for i in starts], *axes.get_xlim(), color=LIGHT["grid"], lw=0.8)
    last = 0.0
    for start, end in pairwise([*starts, len(layers)]):
        y = 48 + pitch * (start + end) / 2
        if y >= last + 13:  # there is room for a name
            words(figure, 150 + width, y, fitted(layers[start].group, 56))
            last = y
    a_column = "validation" if together == 1 else f"{together} validations"
    note = f"a column per {a_column}; strongest: {percent(top)}"
    words(figure, 144, 44 + height + 36, note, color=_FAINT)
    spoken = (
        f"A row per layer from the first on top, a column per {a_column}; the strongest cell is "
        f"{percent(top)}. {_peak(history, shares[-1])}"
    )
    return Chart(title, spoken, figure)


@styled()
def share_bars(record: PassRecord) -> Chart:
    """Share of every group among the top filters and among all filters, in percent.

    Returns:
        Bars; those of POT with 95 % intervals.
    """
    history = History.start(record)
    columns = {name: history.group_shares(m)[0].tolist() for m, name in METHOD_NAMES.items()}
    columns["all filters"] = history.filter_shares()
    title = f"Share of each group among the top {record.top_k} filters, in %"
    figure = _bars(title, history.groups, columns, record.group_intervals)
    return Chart(title, _spoken(history.groups, columns), figure)


@styled()
def bars_beside(a: PassRecord, b: PassRecord) -> Chart:
    """Share of every group among the top filters by POT of two passes of the same groups.

    Returns:
        Bars with 95 % intervals, beside those of all filters of the first.
    """
    histories = [History.start(record) for record in (a, b)]
    columns = {
        name: history.group_shares("pot")[0].tolist()
        for name, history in zip("AB", histories, strict=True)
    }
    columns["all filters"] = histories[0].filter_shares()
    title = "Share of each group among the top filters by POT, in %"
    groups = histories[0].groups
    figure = _bars(title, groups, columns, a.group_intervals, b.group_intervals)
    return Chart(title, _spoken(groups, columns), figure)


@styled()
def depth_bars(record: PassRecord) -> Chart:
    """Share of every layer among the top filters, in percent, from the first layer to the last.

    Returns:
        Bars; those of POT with 95 % intervals.
    """
    history = History.start(record)
    columns = {name: history.layer_shares(m)[0].tolist() for m, name in METHOD_NAMES.items()}
    title = "Spread of the top filters over the layers, in %"
    spoken = _peak(history, torch.tensor(columns["POT"]))
    names = layer_names(record.layers)[0]
    return Chart(title, spoken, _bars(title, names, columns, record.layer_intervals))


@styled()
def fit_page(record: PassRecord) -> Chart:
    """Status of all fits, and quantiles of the best, the median and the worst one.

    Returns:
        Bars above, three panels below; panels are missing where the fit is a given one.
    """
    total = sum(record.fits.values())
    shares = [record.fits[name] / total for name in STATUSES]
    names, numbers = [_STATUS_TEXT[name] for name in STATUSES], list(map(percent, shares))
    notes = textwrap.wrap(doubt_text(record), 68)
    below = 160 + 15 * len(notes)
    figure = blank(
        f"Quality of the fits: share of the {total} filters", below + 204 * bool(record.examples)
    )
    axes = axes_at(figure, 130, 34, 250, 105)
    _naked(axes, names, 118)
    bars = axes.barh(
        range(len(shares)), shares, 0.75, color=[SERIES[i > 2] for i in range(len(shares))],
        clip_on=False,
    )  # fmt: skip
    axes.bar_label(bars, numbers, padding=4, color=_FAINT, fontsize=SMALL)
    axes.set_xlim(0, 1)
    for i, line in enumerate(notes):
        words(figure, 8, 158 + 15 * i, line, color=_FAINT, size=SMALL)
    for i, example in enumerate(record.examples):
        _panel(figure, example, 32 + 144 * i, below + 46)
    if record.examples:
        note = "quantiles in sigma: observed upwards, fitted to the right"
        words(figure, 32, below + 194, note, color=_FAINT, size=SMALL)
    spoken = ", ".join(map("{} {}".format, names, numbers))
    return Chart(
        "Quality of the fits", f"Filters by status: {spoken}. {doubt_text(record)}", figure
    )


@styled()
def xi_chart(record: PassRecord) -> Chart:
    """Histogram of xi of the fitted filters, a row per group; end bins hold what lies beyond."""
    title, groups = "Shape xi of the fitted tails, by group", list(record.xi)
    centres = np.asarray([(a + b) / 2 for a, b in pairwise(XI_EDGES)])
    figure = blank(title, 32 + 40 * len(groups) + 30)
    axes = axes_at(figure, 120, 32, 318, 40 * len(groups))
    _naked(axes, groups, 108)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(XI_EDGES[0], XI_EDGES[-1])
    ticks = (-1, -0.5, 0, 0.5, 1, 1.5, 2)
    name_columns(axes, ticks, map("{:g}".format, ticks), color=_FAINT)
    axes.plot((0, 0), axes.get_ylim(), "--", color=_FAINT, lw=1)
    means = []
    for i, group in enumerate(groups):
        counts, base = np.asarray(record.xi[group]), i + 0.5
        axes.axhline(base, color=_FAINT, lw=0.8)
        if counts.sum():
            heights = 0.85 * counts / counts.max()
            axes.stairs(base - heights, XI_EDGES, baseline=base, fill=True, color=SERIES[i % 8])
            means.append(f"{group}: {(counts * centres).sum() / counts.sum():.2f}")
        else:
            means.append(f"{group}: none fitted")
    return Chart(title, f"Mean xi, from bins of 0.1: {'; '.join(means)}.", figure)


@styled()
def calibration_chart(record: PassRecord) -> Chart:
    """Observed by predicted exceedance of held-out samples, over the predicted probability.

    Returns:
        A line with a band for the reported probabilities, and one for each rival, in logarithms.
    """
    title, rows = "Held-out samples beyond p: observed / predicted", record.calibration
    rivals = [name for name in rows[0].rivals if all(row.rivals[name] > 0 for row in rows)]
    figure = blank(title, 300)
    axes = axes_at(figure, 60, 78, 355, 180)
    x = np.log10([row.p for row in rows])
    lines = {"reported": [row.ratio for row in rows]}
    lines |= {name: [row.rivals[name] for row in rows] for name in rivals}
    colours, dashes = [SERIES[i] for i in (0, 2, 1, 6)], ["-", ":", "--", "-."]
    least = 1e-2  # a ratio of 0 is none in logarithms
    for (name, values), colour, dash in zip(lines.items(), colours, dashes, strict=False):
        axes.plot(x, np.log10(np.maximum(values, least)), dash, color=colour, lw=2, label=name)
    low, high = (np.log10(np.maximum([getattr(r, e) for r in rows], least)) for e in _ENDS)
    axes.fill_between(x, low, high, color=SERIES[0], alpha=0.2, lw=0)
    axes.axhline(0, color=_FAINT, lw=1)
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(min(axes.get_ylim()[0], -0.5), max(axes.get_ylim()[1], 0.5))
    decades = range(math.ceil(axes.get_ylim()[0]), math.floor(axes.get_ylim()[1]) + 1)
    name_rows(axes, decades, [f"{10.0**d:g}" for d in decades], color=_FAINT)
    exponents = range(math.floor(x[0]), math.ceil(x[-1]) - 1, -1)
    places = [d for d in exponents if x[-1] <= d <= x[0]]
    name_columns(axes, places, [f"{10.0**d:g}" for d in places], color=_FAINT)
    _legend(figure, list(lines), 40, color=colours[: len(lines)], ls=dashes[: len(lines)])
    return Chart(title, calibration_text(record), figure)


def _wrapped(sentence: str) -> list[str]:
    """Its lines; a number stays with its percent sign."""
    lines = textwrap.wrap(sentence.replace(" %", "\u00a0%"), _LETTERS, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines]


def layer_names(layers: Sequence[LayerRow]) -> tuple[list[str], str]:
    """Names of layers without the module path that all have in common, and that path."""
    paths = [layer.layer.split(".") for layer in layers]
    shared = 0
    while all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return [".".join(path[shared:]) for path in paths], ".".join(paths[0][:shared])


def _spoken(groups: Sequence[str], columns: dict[str, list[float]]) -> str:
    return "; ".join(
        f"{group}: "
        + ", ".join(f"{name} {_number(100 * values[i])}" for name, values in columns.items())
        for i, group in enumerate(groups)
    )


def _bars(
    title: str, names: Sequence[str], columns: dict[str, list[float]],
    *intervals: Sequence[Sequence[float]],
) -> Figure:  # fmt: skip
    """Horizontal bars, several per name, with their numbers where there is room.

    Args:
        intervals: Ends of those of the first columns.
    """
    values = {name: 100 * np.asarray(column) for name, column in columns.items()}
    ends = [100 * np.nan_to_num(np.asarray(each, dtype=float)) for each in intervals]
    highs = [each[:, 1] for each in ends]
    top = max(np.nan_to_num(np.concatenate([*values.values(), *highs])).max(), 1e-9)
    thin = len(names) > 12
    bar = 5.0 if thin else 14.0
    row = bar * len(columns) + (3 if thin else 9)
    figure = blank(title, 56 + row * len(names) + (32 if thin else 8))
    axes = axes_at(figure, 144, 56, 294 if thin else 240, row * len(names))
    colours = [SERIES[i] for i in (0, 1, 6)]  # the third is the yardstick, in grey
    _legend(figure, list(columns), 38, color=colours, lw=[9] * 3)
    _naked(axes, names, 132, SMALL if thin else 12)
    axes.set_xlim(0, top)
    for number, column in enumerate(values.values()):
        at = np.arange(len(names)) + (number - (len(columns) - 1) / 2) * bar / row
        axes.barh(at, np.nan_to_num(column), (bar - 1) / row, color=colours[number], clip_on=False)
        reach = np.nan_to_num(column)
        if number < len(ends):
            low, high = ends[number].T
            axes.hlines(at, low, high, color=LIGHT["ink"], lw=1, clip_on=False)
            reach = np.maximum(reach, high)
        for x, y, value in zip(reach, at, column.tolist(), strict=True):
            if not thin:
                axes.annotate(
                    _number(value), (x, y), (4, 0), textcoords="offset points", va="center",
                    color=_FAINT, fontsize=SMALL, annotation_clip=False,
                )  # fmt: skip
    if thin:
        ticks = numbers_between((0, top), 5)
        name_columns(axes, ticks, map("{:g}".format, ticks), color=_FAINT)
    return figure


def _naked(axes: Axes, names: Sequence[str], width: float, size: float = 12) -> None:
    """A row per name from the top down, without an axis below."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    shown = [fitted(name, width, size) for name in names]
    name_rows(axes, range(len(names)), shown, size=size)
    axes.spines["bottom"].set_visible(False)


def _number_axes(axes: Axes, *, whole: bool = False, most: int = 6, size: float = 12) -> None:
    """Round numbers along both axes."""
    left, right = axes.get_xlim()
    ticks = numbers_between((left, right), most, whole=whole)
    name_columns(axes, ticks, map("{:.4g}".format, ticks), color=_FAINT, size=size)
    ticks = numbers_between(axes.get_ylim(), most)
    name_rows(axes, ticks, map("{:.4g}".format, ticks), color=_FAINT, size=size)
    axes.hlines(ticks, left, right, color=LIGHT["grid"], lw=0.8, zorder=0)


def _legend(figure: Figure, names: Sequence[str], top: float, **looks: Sequence[Any]) -> None:
    """Names of lines or bars, three side by side."""
    for i, name in enumerate(names):
        x, y = 8 + 146 * (i % 3), top + 18 * (i // 3)
        line_at(figure, (x, x + 24), y, **{key: values[i] for key, values in looks.items()})
        words(figure, x + 30, y + 4, fitted(name, 112))


def _panel(figure: Figure, example: FitExample, left: float, top: float) -> None:
    """Observed quantiles against fitted ones."""
    high = max([*example.fitted, *example.observed, 1e-9]) * 1.05
    axes = axes_at(figure, left, top, 112, 112)
    axes.set_xlim(0, high)
    axes.set_ylim(0, high)
    axes.plot((0, high), (0, high), "--", color=_FAINT, lw=1)
    axes.plot(example.fitted, example.observed, "o", color=SERIES[0], ms=4, mew=0)
    _number_axes(axes, most=3, size=SMALL)
    words(figure, left, top - 31, f"{example.kind} fit", weight="bold", size=SMALL)
    shape = f"p {example.p:.2g}, xi {example.xi:.2f}"
    if not math.isnan(example.xi_se):
        shape += f"\u00b1{example.xi_se:.2f}"
    words(figure, left, top - 18, shape, size=SMALL)
    words(figure, left, top - 5, fitted(example.label, 126, SMALL), size=SMALL, color=_FAINT)


def _shades(strengths: Tensor) -> npt.NDArray[np.uint8]:
    """Cells ``[H, W, 4]`` from clear to full colour, whatever the paper; grey where not known."""
    colour = [int(SERIES[0][i : i + 2], 16) for i in (1, 3, 5)]
    cells = np.full((*strengths.shape, 4), [*colour, 0], np.uint8)
    cells[:, :, 3] = (255 * strengths.nan_to_num(0)).round().numpy()
    cells[torch.isnan(strengths).numpy()] = (128, 128, 128, 60)
    return cells


def _peak(history: History, shares: Tensor) -> str:
    """The layer of the largest share, in words."""
    if bool(torch.isnan(shares).all()):
        return "No filter was ranked in the last one."
    best = int(torch.nan_to_num(shares).argmax())
    return f"Largest in the last one: {history.layers[best].layer}, {percent(float(shares[best]))}."


def _number(value: float) -> str:
    """A percentage, or that nothing was ranked."""
    return "none ranked" if math.isnan(value) else f"{value:.1f}"
