"""Charts of passes: where in the network mistakes are made, and since when."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from salmon.views.drawing import (
    FAINT,
    GRID,
    Box,
    Dot,
    Drawing,
    Frame,
    Grid,
    Line,
    Words,
    clipped,
    dash_of,
    heading,
    legend,
    percent,
    series,
)
from salmon.views.history import History
from salmon.views.record import LayerRow, PassRecord

METHOD_NAMES = {"pot": "POT", "zscore": "z-score"}
_ROW = 20.0
_MAX_DOTS = 30  # passes of a line that are marked
_MAX_CELLS = 120  # passes of a heat map side by side; more are averaged


def share_lines(history: History, method: str) -> Drawing:
    """Share of every group among the top filters, over the passes.

    Args:
        history: The passes.
        method: Such as ``"pot"``; ``"difference"`` shows POT minus z-score.

    Returns:
        A line per group, in percent.
    """
    if method == "difference":
        values = history.group_shares("pot") - history.group_shares("zscore")
        title = "POT minus z-score, in points"
        low, high = _padded(values)
    else:
        values = history.group_shares(method)
        title = f"Share of each group among the top filters, by {METHOD_NAMES[method]}, in %"
        low, high = 0.0, min(100.0, _padded(values)[1])
    groups, passes = history.groups, history.passes.tolist()
    frame = Frame(62, 34, 420, 210, _range(passes), (low, high))
    drawing = Drawing(650, max(310, 60 + 18 * len(groups)), title, _spoken(groups, values[-1]))
    drawing.add(heading(title), *frame.axes("validation", "", x_whole=True))
    for i, group in enumerate(groups):
        known = [
            (at, 100 * value)
            for at, value in zip(passes, values[:, i].tolist(), strict=True)
            if not math.isnan(value)
        ]
        if len(known) > 1:
            points = tuple((frame.x(at), frame.y(value)) for at, value in known)
            drawing.add(Line(points, series(i), 2, dash_of(i)))
        if len(known) <= _MAX_DOTS:  # they show a single pass, and clutter a long run
            drawing.add(
                *(
                    Dot(frame.x(at), frame.y(value), series(i), title=f"{group}: {value:.1f}")
                    for at, value in known
                )
            )
    drawing.add(*legend(502, 34, groups))
    return drawing


def heat_map(history: History, method: str) -> Drawing:
    """Share of every layer among the top filters, over the passes.

    Args:
        history: The passes.
        method: Such as ``"pot"``.

    Returns:
        A row per layer, first layers on top, and a column per pass; of more than 120 passes,
        neighbours are averaged.
    """
    shares, labels = _columns(history.layer_shares(method), history.passes)
    top = float(torch.nan_to_num(shares).amax())
    height = max(7.0, min(_ROW, 700 / len(history.layers)))
    width = round(max(3.0, min(40.0, 480 / len(shares))), 1)
    left, head = 226.0, 34.0
    title = f"Share of each layer among the top filters, by {METHOD_NAMES[method]}"
    rows, names = len(history.layers), layer_names(history.layers)
    drawing = Drawing(
        max(left + width * len(shares) + 60, 560), head + height * rows + 50, title,
        f"A row per layer from the first on top, a column per {_column_text(history)}; the darkest "
        f"cell is "
        f"{percent(top)}. " + _peak(history, shares[-1]),
    )  # fmt: skip
    drawing.add(heading(title))
    for row, layer in enumerate(history.layers):
        y = head + row * height
        if row == 0 or history.layers[row - 1].group != layer.group:
            drawing.add(
                Line(((8, y), (left + width * len(shares), y)), GRID),
                Words(10, y + min(height, 12), clipped(layer.group, 10), size=11, bold=True),
            )
        if height >= 11 or row % 2 == 0:
            name = Words(left - 6, y + height / 2 + 3, clipped(names[row], 28), "end", 9, FAINT)
            drawing.add(name)
    strengths = (shares.t() / top if top else shares.t() * 0).tolist()
    hints = tuple(
        _row_text(layer.layer, values, labels)
        for layer, values in zip(history.layers, shares.t().tolist(), strict=True)
    )
    drawing.add(Grid(left, head, width, height, series(0), tuple(map(tuple, strengths)), hints))
    bottom = head + height * rows
    every = max(1, math.ceil(34 / width))
    for column in range(0, len(shares), every):
        at = left + (column + 0.5) * width
        first = labels[column].partition(" ")[0]  # of those that a column stands for
        drawing.add(Words(at, bottom + 15, first, "middle", 10, FAINT))
    note = f"a column per {_column_text(history)}; darkest = {percent(top)}"
    drawing.add(Words(left, bottom + 36, note, paint=FAINT))
    return drawing


def share_bars(record: PassRecord) -> Drawing:
    """Share of every group among the top filters and among all filters (tables 1 and 2).

    Args:
        record: The pass.

    Returns:
        Three bars per group, in percent.
    """
    history = History.start(record)
    columns = {
        METHOD_NAMES[method]: history.group_shares(method)[0].tolist() for method in METHOD_NAMES
    }
    columns["all filters"] = history.filter_shares()
    title = f"Share of each group among the top {record.top_k} filters of mistakes, in %"
    spoken = "; ".join(
        f"{group}: "
        + ", ".join(f"{name} {_number(100 * values[i])}" for name, values in columns.items())
        for i, group in enumerate(history.groups)
    )
    return _bars(title, spoken, list(history.groups), columns, percent=True)


def depth_bars(record: PassRecord) -> Drawing:
    """Share of every layer among the top filters.

    Args:
        record: The pass.

    Returns:
        Two bars per layer, in percent, from the first layer to the last.
    """
    history = History.start(record)
    columns = {
        METHOD_NAMES[method]: history.layer_shares(method)[0].tolist() for method in METHOD_NAMES
    }
    title = "Spread of the top filters over the layers, in %"
    names = layer_names(record.layers)
    spoken = _peak(history, torch.tensor(columns["POT"]))
    return _bars(title, spoken, names, columns, percent=True)


def layer_names(layers: Sequence[LayerRow]) -> list[str]:
    """Names of layers without the module path that all have in common.

    Args:
        layers: In network order.

    Returns:
        As many names.
    """
    paths = [layer.layer.split(".") for layer in layers]
    shared = 0
    while all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return [".".join(path[shared:]) for path in paths]


def _bars(
    title: str,
    spoken: str,
    names: Sequence[str],
    columns: dict[str, list[float]],
    *,
    percent: bool,
) -> Drawing:
    """Horizontal bars, several per name, with their numbers."""
    scale = 100 if percent else 1
    values = [0.0 if math.isnan(v) else scale * v for column in columns.values() for v in column]
    top = max([*values, 1e-9])
    thin = len(names) > 24
    bar = 6.0 if thin else 11.0
    row = bar * len(columns) + (4 if thin else 9)
    left, width = 170.0, 330.0
    drawing = Drawing(650, 40 + row * len(names) + 14, title, spoken)
    drawing.add(heading(title))
    for number, name in enumerate(columns):
        place = 505 + (0 if len(columns) < 3 else 20)
        drawing.add(
            Box(place, 36 + 18 * number, 12, 12, _paint_of(number)),
            Words(place + 18, 46 + 18 * number, name),
        )
    for i, name in enumerate(names):
        y = 36 + row * i
        drawing.add(Words(left - 8, y + row / 2 + 1, clipped(name, 24), "end", 9 if thin else 12))
        for number, column in enumerate(columns.values()):
            value, at = scale * column[i], y + number * bar
            length = 0.0 if math.isnan(value) else width * value / top
            if not math.isnan(value):
                hint = f"{name}: {_number(value)}"
                drawing.add(
                    Box(left, at, max(length, 0.7), bar - 1.5, _paint_of(number), title=hint)
                )
            if not thin:
                text = Words(left + length + 5, at + bar - 2, _number(value), size=10, paint=FAINT)
                drawing.add(text)
    return drawing


def _paint_of(number: int) -> str:
    """The third column is the yardstick, in grey."""
    return series(number if number < 2 else 6)


def _together(passes: Tensor) -> int:
    """How many passes a column of a heat map stands for."""
    return -(-len(passes) // _MAX_CELLS)


def _columns(shares: Tensor, passes: Tensor) -> tuple[Tensor, list[str]]:
    """At most so many columns as a heat map has room for, and their names."""
    at_once = _together(passes)
    parts = list(zip(shares.split(at_once), passes.split(at_once), strict=True))
    merged = torch.stack([part.nanmean(0) for part, _ in parts])
    return merged, [
        str(int(numbers[0])) + (f" to {int(numbers[-1])}" if len(numbers) > 1 else "")
        for _, numbers in parts
    ]


def _column_text(history: History) -> str:
    """What a column of a heat map stands for."""
    together = _together(history.passes)
    return "validation" if together == 1 else f"{together} validations"


def _row_text(layer: str, shares: Sequence[float], labels: Sequence[str]) -> str:
    """The last and the largest share of a layer, in words."""
    known = [(share, label) for share, label in zip(shares, labels, strict=True) if share == share]
    if not known:
        return f"{layer}: not known"
    (last, at), (most, when) = known[-1], max(known)
    return f"{layer}: {percent(last)} in validation {at}; most in {when}: {percent(most)}"


def _peak(history: History, shares: Tensor) -> str:
    """The layer of the largest share, in words."""
    if bool(torch.isnan(shares).all()):
        return "No filter was ranked in the last one."
    best = int(torch.nan_to_num(shares).argmax())
    return f"Largest in the last one: {history.layers[best].layer}, {percent(float(shares[best]))}."


def _spoken(groups: Sequence[str], last: Tensor) -> str:
    """The last numbers in words."""
    numbers = ", ".join(
        f"{group} {_number(100 * value)}"
        for group, value in zip(groups, last.tolist(), strict=True)
    )
    return f"Last validation: {numbers}."


def _number(value: float) -> str:
    """A percentage, or that nothing was ranked."""
    return "none ranked" if math.isnan(value) else f"{value:.1f}"


def _range(passes: Sequence[int]) -> tuple[float, float]:
    """From the first to the last, with room where there is but one."""
    return (passes[0], passes[-1]) if passes[-1] > passes[0] else (passes[0] - 1, passes[0] + 1)


def _padded(values: Tensor) -> tuple[float, float]:
    """Lowest and highest percentage with room around them; zero always shows."""
    known = 100 * values[~torch.isnan(values)]
    low = min([0.0, *known.tolist()])
    high = max([0.0, *known.tolist()])
    room = max(1.0, 0.05 * (high - low))
    return low - room, high + room
