"""The report that travels: one page without a network, made from the files of a run."""

from salmon.views.report.gathering import flagged_rows, gather, gather_repairs
from salmon.views.report.page import write_report

__all__ = ["flagged_rows", "gather", "gather_repairs", "write_report"]
