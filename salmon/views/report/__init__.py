"""The report that travels: one page without a network, made from the files of a run."""

from salmon.views.report.beside import gather_beside
from salmon.views.report.gathering import flagged_rows, gather, gather_outcomes
from salmon.views.report.outcomes import MOST_CHANGED, comparison_tables
from salmon.views.report.page import write_report

__all__ = [
    "MOST_CHANGED",
    "comparison_tables",
    "flagged_rows",
    "gather",
    "gather_beside",
    "gather_outcomes",
    "write_report",
]
