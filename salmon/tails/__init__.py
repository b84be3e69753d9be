"""The exact bounded stream of saliency, the fit of its tails, and fits on disk."""

from salmon.tails.files import fit_from_state, fit_state, load_fit, save_fit
from salmon.tails.fit import Estimator, example_excesses, example_filters, fit_tails, is_shrunk
from salmon.tails.level import CANDIDATES, LevelChoice, choose_level
from salmon.tails.stream import Tails

__all__ = [
    "CANDIDATES",
    "Estimator",
    "LevelChoice",
    "Tails",
    "choose_level",
    "example_excesses",
    "example_filters",
    "fit_from_state",
    "fit_state",
    "fit_tails",
    "is_shrunk",
    "load_fit",
    "save_fit",
]
