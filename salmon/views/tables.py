"""Tables of a pass: the filters that mistakes blame most, and the classes that are confused."""

import math
from collections.abc import Mapping

from salmon.markdown import literal, markdown_table
from salmon.views.record import MOST_ROWS, PassRecord

FILTER_COLUMNS = ("filter", "group", "mistakes", "significant", "change", "median p", "E")
PAIR_COLUMNS = ("true", "predicted", "mistakes", "filters blamed most")

CHANGE_TEXT = (
    f"change: against the pass before; new: not among the {MOST_ROWS} filters in the table then."
)

E_TEXT = (
    "E: how many filters of an ordinary sample are as rare as the median p, by chance; above 1 it "
    "is ordinary. significant: mistakes in which the filter stands out for this number of filters."
)


def p_text(p: float | None) -> str:
    """Write a tail probability, or an E-value.

    Args:
        p: 0 or more; None and NaN where there is none.

    Returns:
        Two digits; ``< 1e-300`` where it lies below what is told apart.
    """
    if p is None or math.isnan(p):
        return ""
    return "< 1e-300" if p < 1e-300 else f"{p:.2g}"


def filter_rows(record: PassRecord, before: Mapping[str, int] | None) -> list[list[str]]:
    """The filters that most mistakes have among their top filters.

    Args:
        before: Mistakes by filter in the pass before, of those that its table showed; None where
            there was none.
    """
    rows = []
    for row in record.filters:
        change = ""
        if before is not None:
            change = f"{row.mistakes - before[row.label]:+d}" if row.label in before else "new"
        e = None if row.median_p is None else record.tested * row.median_p
        rows.append([
            row.label, row.group, str(row.mistakes), str(row.significant), change,
            p_text(row.median_p), p_text(e),
        ])  # fmt: skip
    return rows


def pair_rows(record: PassRecord) -> list[list[str]]:
    """The pairs of classes that are confused most often.

    Returns:
        Cells for :data:`PAIR_COLUMNS`; class names are those of the data.
    """
    return [
        [
            record.class_name(pair.target),
            record.class_name(pair.predicted),
            str(pair.mistakes),
            ", ".join(pair.filters),
        ]
        for pair in record.pairs
    ]


def filter_table(record: PassRecord, before: Mapping[str, int] | None) -> str:
    """The rows of :func:`filter_rows` in markdown.

    Returns:
        A table with a line on how to read it.
    """
    text = (
        f"Filters among the top {record.top_k} of the most mistakes ({record.kept} of "
        f"{record.misclassified} mistakes ranked). {CHANGE_TEXT} {E_TEXT}"
    )
    rows = [
        [literal(label), literal(group), *numbers]
        for label, group, *numbers in filter_rows(record, before)
    ]
    return f"{text}\n\n{markdown_table(FILTER_COLUMNS, rows)}"


def pair_table(record: PassRecord) -> str:
    """The rows of :func:`pair_rows` in markdown.

    Returns:
        A table.
    """
    rows = [
        [literal(true), literal(predicted), count, literal(filters)]
        for true, predicted, count, filters in pair_rows(record)
    ]
    return markdown_table(PAIR_COLUMNS, rows)


def mistakes_by_filter(record: PassRecord) -> dict[str, int]:
    """What the next pass is compared with."""
    return {row.label: row.mistakes for row in record.filters}
