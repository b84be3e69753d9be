"""The generalized Pareto distribution: its functions, its fit, and the record of fitted tails."""

from salmon.gpd.distribution import log_likelihood, log_survival, quantile, survival
from salmon.gpd.goodness import anderson_darling, goodness_p, standard_errors
from salmon.gpd.grimshaw import MIN_COUNT, GPDFit, fit
from salmon.gpd.record import FitStatus, TailFit

__all__ = [
    "MIN_COUNT",
    "FitStatus",
    "GPDFit",
    "TailFit",
    "anderson_darling",
    "fit",
    "goodness_p",
    "log_likelihood",
    "log_survival",
    "quantile",
    "standard_errors",
    "survival",
]
