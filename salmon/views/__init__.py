"""What people look at: numbers, charts, tables, flagged images, and a report that travels."""

from salmon.views.board import Board
from salmon.views.files import read_pass, write_pass, write_pictures
from salmon.views.history import History
from salmon.views.pictures import Kind, Normalisation, Picture, Pixels, guess_normalisation
from salmon.views.publish import publish
from salmon.views.record import MOST_ROWS, PassRecord, record_pass
from salmon.views.report import (
    MOST_CHANGED,
    comparison_tables,
    flagged_rows,
    gather,
    gather_beside,
    gather_outcomes,
    write_report,
)
from salmon.views.scalars import DETAILS, pass_metrics
from salmon.views.settings import ViewSettings
from salmon.views.summary import standing_out
from salmon.views.tables import (
    FINDING_COLUMNS,
    PAIR_COLUMNS,
    Blamed,
    blamed,
    finding_rows,
    p_text,
    pair_rows,
)
from salmon.views.wording import METHOD_NAMES, clipped, detail_name, percent

__all__ = [
    "DETAILS",
    "FINDING_COLUMNS",
    "METHOD_NAMES",
    "MOST_CHANGED",
    "MOST_ROWS",
    "PAIR_COLUMNS",
    "Blamed",
    "Board",
    "History",
    "Kind",
    "Normalisation",
    "PassRecord",
    "Picture",
    "Pixels",
    "ViewSettings",
    "blamed",
    "clipped",
    "comparison_tables",
    "detail_name",
    "finding_rows",
    "flagged_rows",
    "gather",
    "gather_beside",
    "gather_outcomes",
    "guess_normalisation",
    "p_text",
    "pair_rows",
    "pass_metrics",
    "percent",
    "publish",
    "read_pass",
    "record_pass",
    "standing_out",
    "write_pass",
    "write_pictures",
    "write_report",
]
