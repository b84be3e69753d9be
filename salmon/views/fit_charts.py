"""Charts of the fits of a pass: can they be trusted?"""

from itertools import pairwise

from salmon.views.drawing import (
    FAINT,
    Box,
    Dot,
    Drawing,
    Frame,
    Line,
    Shape,
    Words,
    clipped,
    heading,
    percent,
    series,
)
from salmon.views.record import DOUBTFUL_BELOW, STATUSES, XI_EDGES, FitExample, PassRecord

_STATUS_TEXT = {
    "ok": "fitted",
    "exponential": "fitted, xi = 0",
    "boundary": "fitted, xi = -1",
    "too_few": "too few excesses",
    "degenerate": "values tie",
}


def fit_page(record: PassRecord) -> Drawing:
    """Status of all fits, and quantiles of the best, the median and the worst one.

    Args:
        record: The pass.

    Returns:
        Bars above, three panels below; panels are missing where the fit is a given one.
    """
    title = "Quality of the fits"
    total = sum(record.fits.values())
    parts = [f"{_STATUS_TEXT[name]} {percent(record.fits[name] / total)}" for name in STATUSES]
    spoken = f"Filters by status: {', '.join(parts)}. {doubt_text(record)}"
    height = 168 + (240 if record.examples else 0)
    drawing = Drawing(700, height, title, spoken)
    drawing.add(heading(f"{title}: share of the {total} filters"))
    for i, name in enumerate(STATUSES):
        y, share = 34 + 20 * i, record.fits[name] / total
        drawing.add(
            Words(130, y + 11, _STATUS_TEXT[name], "end"),
            Box(140, y, max(0.7, 400 * share), 14, series(0 if i < 3 else 1)),
            Words(146 + 400 * share, y + 11, percent(share), size=11, paint=FAINT),
        )
    drawing.add(Words(14, 152, doubt_text(record), size=11, paint=FAINT))
    for i, example in enumerate(record.examples):
        drawing.add(*_panel(example, 60 + 230 * i, 200, first=i == 0))
    return drawing


def doubt_text(record: PassRecord) -> str:
    """How many fits are doubtful.

    Args:
        record: The pass.

    Returns:
        A sentence.
    """
    if record.doubtful is None:
        return "No fit could be tested."
    return (
        f"Doubtful (Anderson-Darling p < {DOUBTFUL_BELOW}): {percent(record.doubtful)} of the "
        f"tested fits; {100 * DOUBTFUL_BELOW:.0f} % would be so if all tails were exact."
    )


def xi_chart(record: PassRecord) -> Drawing:
    """Histogram of xi of the fitted filters, a row per group.

    Args:
        record: The pass.

    Returns:
        Rows of bars with a common axis; the end bins hold what lies beyond them.
    """
    groups = list(record.xi)
    title = "Shape xi of the fitted tails, by group"
    means = []
    row, left, width = 54.0, 130.0, 480.0
    drawing = Drawing(650, 44 + row * len(groups) + 30, title, "")
    drawing.add(heading(title))
    frame = Frame(left, 30, width, row * len(groups), (XI_EDGES[0], XI_EDGES[-1]), (0, 1))
    bin_width = width / (len(XI_EDGES) - 1)
    for i, group in enumerate(groups):
        counts = record.xi[group]
        total, base = sum(counts), 30 + row * (i + 1)
        drawing.add(
            Words(left - 10, base - 16, clipped(group, 16), "end"),
            Line(((left, base), (left + width, base)), FAINT),
        )
        if not total:
            means.append(f"{group}: none fitted")
            continue
        centres = [(a + b) / 2 for a, b in pairwise(XI_EDGES)]
        mean = sum(c * x for c, x in zip(counts, centres, strict=True)) / total
        means.append(f"{group}: {mean:.2f}")
        for place, count in enumerate(counts):
            if count:
                high = (row - 8) * count / max(counts)
                hint = f"{group}, xi from {XI_EDGES[place]} to {XI_EDGES[place + 1]}: {count}"
                drawing.add(
                    Box(left + place * bin_width, base - high, bin_width - 1, high, series(i),
                        title=hint)
                )  # fmt: skip
    bottom = 30 + row * len(groups)
    for value in (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0):
        drawing.add(Words(frame.x(value), bottom + 16, f"{value:g}", "middle", 11, FAINT))
    zero = frame.x(0.0)
    drawing.add(Line(((zero, 30), (zero, bottom)), FAINT, dash=1))
    drawing.description = f"Mean xi, from bins of 0.1: {'; '.join(means)}."
    return drawing


def _panel(example: FitExample, left: float, top: float, *, first: bool) -> list[Shape]:
    """Observed quantiles against fitted ones."""
    high = max([*example.fitted, *example.observed, 1e-9]) * 1.05
    frame = Frame(left, top, 150, 150, (0, high), (0, high))
    return [
        *frame.axes("fitted, in sigma", "observed, in sigma" if first else ""),
        Line(((frame.x(0), frame.y(0)), (frame.x(high), frame.y(high))), FAINT, dash=1),
        *(
            Dot(frame.x(a), frame.y(b), series(0), 2)
            for a, b in zip(example.fitted, example.observed, strict=True)
        ),
        Words(left, top - 22, f"{example.kind} fit: p = {example.p:.2g}", bold=True),
        Words(
            left, top - 8, f"{clipped(example.label, 19)}, xi {example.xi:.2f}", size=10,
            paint=FAINT,
        ),
    ]  # fmt: skip
