"""Find the filters behind a network's mistakes.

``SaliencyMonitor`` is a callback for ``pytorch_lightning`` and ``lightning``; everything else here
works on a plain ``torch.nn.Module`` and tensors.
"""

import importlib
from typing import TYPE_CHECKING, Any

from salmon import gpd
from salmon.errors import InputError, SalmonError, StateError, UnsupportedError
from salmon.filters import SHORTCUTS, FilterIndex
from salmon.gpd import FitStatus, TailFit
from salmon.ranking import Ranking, group_shares, rank_filters
from salmon.saliency import Coverage, VerificationError, coverage, filter_saliency, verify
from salmon.tails import Tails, fit_tails

if TYPE_CHECKING:
    from salmon.monitor import RepairInTraining, SaliencyMonitor
    from salmon.repairs import Patch, RepairSettings, Samples, edit_curves, repair
    from salmon.views import ViewSettings

__version__ = "0.1.0"

__all__ = [
    "SHORTCUTS",
    "Coverage",
    "FilterIndex",
    "FitStatus",
    "InputError",
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
    "UnsupportedError",
    "VerificationError",
    "ViewSettings",
    "coverage",
    "edit_curves",
    "filter_saliency",
    "fit_tails",
    "gpd",
    "group_shares",
    "rank_filters",
    "repair",
    "verify",
]


_LATER = {
    "RepairInTraining": "salmon.monitor",
    "SaliencyMonitor": "salmon.monitor",
    "Patch": "salmon.repairs",
    "RepairSettings": "salmon.repairs",
    "Samples": "salmon.repairs",
    "edit_curves": "salmon.repairs",
    "repair": "salmon.repairs",
    "ViewSettings": "salmon.views",
}


def __getattr__(name: str) -> Any:
    """Import the callback, and Lightning with it, and repairs only when they are asked for."""
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'salmon' has no attribute {name!r}")
