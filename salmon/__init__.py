"""Find the filters behind a network's mistakes.

``SaliencyMonitor`` is a callback for ``pytorch_lightning`` and ``lightning``; everything else here
works on a plain ``torch.nn.Module`` and tensors.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from salmon import gpd
    from salmon.comparison import CompareSettings, Gates, ModelComparison, compare
    from salmon.diagnosis import Diagnosis, Pass, PassSettings
    from salmon.errors import InputError, SalmonError, StateError, UnsupportedError
    from salmon.filters import SHORTCUTS, FilterIndex
    from salmon.gpd import FitStatus, TailFit
    from salmon.monitor import RepairInTraining, SaliencyMonitor
    from salmon.ranking import (
        Calibration,
        Ranking,
        bootstrap_interval,
        calibration,
        filter_shares,
        group_shares,
        rank_filters,
    )
    from salmon.repairs import Patch, RepairSettings, Samples, repair
    from salmon.saliency import Coverage, VerificationError, coverage, filter_saliency, verify
    from salmon.tails import Tails, fit_tails, load_fit, save_fit
    from salmon.tasks import Task
    from salmon.views import ViewSettings

__version__ = "0.2.0"

__all__ = [
    "SHORTCUTS",
    "Calibration",
    "CompareSettings",
    "Coverage",
    "Diagnosis",
    "FilterIndex",
    "FitStatus",
    "Gates",
    "InputError",
    "ModelComparison",
    "Pass",
    "PassSettings",
    "Patch",
    "Ranking",
    "RepairInTraining",
    "RepairSettings",
    "SaliencyMonitor",
    "SalmonError",
    "Samples",
    "StateError",
    "TailFit",
    "Tails",
    "Task",
    "UnsupportedError",
    "VerificationError",
    "ViewSettings",
    "bootstrap_interval",
    "calibration",
    "compare",
    "coverage",
    "filter_saliency",
    "filter_shares",
    "fit_tails",
    "gpd",
    "group_shares",
    "load_fit",
    "rank_filters",
    "repair",
    "save_fit",
    "verify",
]


_HOMES = {
    "salmon.comparison": ("CompareSettings", "Gates", "ModelComparison", "compare"),
    "salmon.diagnosis": ("Diagnosis", "Pass", "PassSettings"),
    "salmon.errors": ("InputError", "SalmonError", "StateError", "UnsupportedError"),
    "salmon.filters": ("SHORTCUTS", "FilterIndex"),
    "salmon.gpd": ("FitStatus", "TailFit"),
    "salmon.monitor": ("RepairInTraining", "SaliencyMonitor"),
    "salmon.ranking": (
        "Calibration",
        "Ranking",
        "bootstrap_interval",
        "calibration",
        "filter_shares",
        "group_shares",
        "rank_filters",
    ),
    "salmon.repairs": ("Patch", "RepairSettings", "Samples", "repair"),
    "salmon.saliency": ("Coverage", "VerificationError", "coverage", "filter_saliency", "verify"),
    "salmon.tails": ("Tails", "fit_tails", "load_fit", "save_fit"),
    "salmon.tasks": ("Task",),
    "salmon.views": ("ViewSettings",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for, and torch or Lightning with it."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name == "gpd":
        return importlib.import_module("salmon.gpd")
    raise AttributeError(f"module 'salmon' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names."""
    return [*__all__, "__version__"]
