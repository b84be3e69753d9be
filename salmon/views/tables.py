"""Tables of a pass: the filters that mistakes blame most, and the classes that are confused."""

import math
from collections.abc import Mapping

from salmon.markdown import literal, markdown_table
from salmon.views.record import MOST_ROWS, PassRecord

FILTER_COLUMNS = ("filter", "group", "mistakes", "change", "median p")
PAIR_COLUMNS = ("true", "predicted", "mistakes", "filters blamed most")

CHANGE_TEXT = (
    f"change: against the pass before; new: not among the {MOST_ROWS} filters in the table then."
)


def p_text(p: float | None) -> str:
    """Write a tail probability.

    Args:
        p: In [0, 1]; None and NaN where there is none.

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
        rows.append([row.label, row.group, str(row.mistakes), change, p_text(row.median_p)])
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
        f"{record.misclassified} mistakes ranked). {CHANGE_TEXT}"
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
