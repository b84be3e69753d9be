"""Tables of a pass: what stands out, the filters blamed most, and the classes confused."""

import math
from dataclasses import dataclass

from scipy.stats import fisher_exact

from salmon.diagnosis import Confusion
from salmon.markdown import literal, markdown_table
from salmon.ranking import ALPHA
from salmon.views.record import MOST_ROWS, FilterRow, PassRecord
from salmon.views.summary import whose

FINDING_COLUMNS = ("mistakes of", "filter", "mistakes", "expected", "ratio", "adjusted p")
FILTER_COLUMNS = (
    "filter", "group", "mistakes", "expected", "adjusted p", "significant", "change", "median p",
    "E",
)  # fmt: skip
PAIR_COLUMNS = ("true", "predicted", "mistakes", "filters beyond chance")

FINDING_TEXT = (
    "Filters that mistakes have among their top ones more often than right samples do, beyond "
    "chance. expected: as many, if mistakes named filters as right samples do. adjusted p: for all "
    "filters, classes and confusions; it is at most 0.05 here."
)

CHANGE_TEXT = (
    f"change: against the pass before, where it is beyond chance; new: not among the {MOST_ROWS} "
    "filters in the table then. adjusted p: that the filter is blamed as in right samples."
)

E_TEXT = (
    "E: how many filters of an ordinary sample are as rare as the median p, by chance; above 1 it "
    "is ordinary. significant: mistakes in which the filter stands out for this number of filters."
)


_NAMED = 3  # filters of a confusion


@dataclass(frozen=True, slots=True)
class Blamed:
    """The table of filters of a pass, for the one after it."""

    mistakes: int  # that were ranked
    filters: dict[str, int]  # mistakes by filter


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


def finding_rows(record: PassRecord) -> list[list[str]]:
    """What stands out, furthest above what is expected first."""
    return [
        [
            whose(record, row), row.label, str(row.mistakes), f"{row.expected:.3g}",
            f"{row.mistakes / row.expected:.2g}" if row.expected else "", p_text(row.p),
        ]
        for row in record.findings[:MOST_ROWS]
    ]  # fmt: skip


def filter_rows(record: PassRecord, before: Blamed | None) -> list[list[str]]:
    """The filters that most mistakes have among their top filters.

    Args:
        before: The pass before; None where there was none.
    """
    rows = []
    for row in record.filters:
        e = None if row.median_p is None else record.tested * row.median_p
        rows.append([
            row.label, row.group, str(row.mistakes),
            "" if math.isnan(row.expected) else f"{row.expected:.3g}", p_text(row.p),
            str(row.significant), _change(row, record, before), p_text(row.median_p), p_text(e),
        ])  # fmt: skip
    return rows


def _change(row: FilterRow, record: PassRecord, before: Blamed | None) -> str:
    """How many mistakes more, by Fisher's exact test with the correction of Bonferroni."""
    if before is None or not before.filters:
        return ""
    # A filter that was not shown then was blamed by no more mistakes than those that were.
    least = min(before.filters.values()) if len(before.filters) == MOST_ROWS else 0
    then = before.filters.get(row.label, least)
    table = [[row.mistakes, record.kept - row.mistakes], [then, before.mistakes - then]]
    if fisher_exact(table).pvalue * len(record.filters) > ALPHA:
        return ""
    return f"{row.mistakes - then:+d}" if row.label in before.filters else "new"


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
            _beyond(record, pair),
        ]
        for pair in record.pairs[:MOST_ROWS]
    ]


def _beyond(record: PassRecord, pair: Confusion) -> str:
    """The first filters that stand out in a confusion."""
    found = [
        row.label for row in record.findings
        if (row.target, row.predicted) == (pair.target, pair.predicted)
    ]  # fmt: skip
    return ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")


def finding_table(record: PassRecord) -> str:
    """The rows of :func:`finding_rows` in markdown.

    Returns:
        A table with a line on how to read it.
    """
    rows = [[*map(literal, row[:2]), *row[2:]] for row in finding_rows(record)]
    more = len(record.findings) - len(rows)
    rest = f" {more} more are in the file of the pass." if more else ""
    return f"{FINDING_TEXT}{rest}\n\n{markdown_table(FINDING_COLUMNS, rows)}"


def filter_table(record: PassRecord, before: Blamed | None) -> str:
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


def blamed(record: PassRecord) -> Blamed:
    """What the next pass is compared with."""
    return Blamed(record.kept, {row.label: row.mistakes for row in record.filters})
