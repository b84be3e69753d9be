"""The report that travels: one page without a network, made from the files of a run."""

from salmon.views.report.gathering import gather
from salmon.views.report.page import write_report

__all__ = ["gather", "write_report"]
