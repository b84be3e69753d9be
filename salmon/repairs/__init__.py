"""Repair: from misclassified samples to a small patch of weights that other data vouch for."""

from salmon.repairs.curves import Curves, Step, edit_curves, many_edit_curves, sample_effects
from salmon.repairs.edit import Edit, edited
from salmon.repairs.engine import ACCEPTED, NOTHING_TO_REPAIR, Outcome, repair
from salmon.repairs.patch import Patch
from salmon.repairs.predictions import to_device
from salmon.repairs.report import COLUMNS, comparison_rows, write_outcome
from salmon.repairs.samples import Gathering, Samples
from salmon.repairs.settings import RepairSettings

__all__ = [
    "ACCEPTED",
    "COLUMNS",
    "NOTHING_TO_REPAIR",
    "Curves",
    "Edit",
    "Gathering",
    "Outcome",
    "Patch",
    "RepairSettings",
    "Samples",
    "Step",
    "comparison_rows",
    "edit_curves",
    "edited",
    "many_edit_curves",
    "repair",
    "sample_effects",
    "to_device",
    "write_outcome",
]
