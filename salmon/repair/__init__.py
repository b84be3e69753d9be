"""Repair: from misclassified samples to a small patch of weights that other data vouch for."""

from salmon.repair.curves import Curves, edit_curves
from salmon.repair.edit import Edit, edited
from salmon.repair.engine import Outcome, repair
from salmon.repair.patch import Patch, load_patch, save_patch
from salmon.repair.report import write_outcome
from salmon.repair.samples import Samples
from salmon.repair.settings import RepairSettings

__all__ = [
    "Curves",
    "Edit",
    "Outcome",
    "Patch",
    "RepairSettings",
    "Samples",
    "edit_curves",
    "edited",
    "load_patch",
    "repair",
    "save_patch",
    "write_outcome",
]
