"""Repair: from mistakes to a small patch of weights that other data vouch for."""

from salmon.repairs.changes import SetChange
from salmon.repairs.edit import Edit, edited
from salmon.repairs.engine import ACCEPTED, NOTHING_TO_REPAIR, Outcome, repair
from salmon.repairs.patch import Patch, is_patch
from salmon.repairs.predictions import to_device
from salmon.repairs.report import (
    COLUMNS,
    PATCH_NAME,
    comment,
    comparison_rows,
    headline,
    write_outcome,
)
from salmon.repairs.samples import Gathering, Samples
from salmon.repairs.settings import RepairSettings

__all__ = [
    "ACCEPTED",
    "COLUMNS",
    "NOTHING_TO_REPAIR",
    "PATCH_NAME",
    "Edit",
    "Gathering",
    "Outcome",
    "Patch",
    "RepairSettings",
    "Samples",
    "SetChange",
    "comment",
    "comparison_rows",
    "edited",
    "headline",
    "is_patch",
    "repair",
    "to_device",
    "write_outcome",
]
