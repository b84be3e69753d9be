"""Find the filters behind a network's mistakes.

``SaliencyMonitor`` is a callback for ``pytorch_lightning`` and ``lightning``; everything else here
works on a plain ``torch.nn.Module`` and tensors.
"""

from typing import TYPE_CHECKING, Any

from salmon import gpd
from salmon.errors import InputError, SalmonError, StateError, UnsupportedError
from salmon.filters import SHORTCUTS, FilterIndex
from salmon.gpd import FitStatus, TailFit
from salmon.ranking import Ranking, group_shares, rank_filters
from salmon.saliency import Coverage, VerificationError, coverage, filter_saliency, verify
from salmon.tails import Tails, fit_tails

if TYPE_CHECKING:
    from salmon.monitor import SaliencyMonitor

__version__ = "0.1.0"

__all__ = [
    "SHORTCUTS",
    "Coverage",
    "FilterIndex",
    "FitStatus",
    "InputError",
    "Ranking",
    "SaliencyMonitor",
    "SalmonError",
    "StateError",
    "TailFit",
    "Tails",
    "UnsupportedError",
    "VerificationError",
    "coverage",
    "filter_saliency",
    "fit_tails",
    "gpd",
    "group_shares",
    "rank_filters",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import the callback, and Lightning with it, only when it is asked for."""
    if name == "SaliencyMonitor":
        from salmon.monitor import SaliencyMonitor

        return SaliencyMonitor
    raise AttributeError(f"module 'salmon' has no attribute {name!r}")
