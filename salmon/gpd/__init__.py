"""The generalized Pareto distribution: its functions, its fit, and the record of fitted tails."""

from salmon.gpd.distribution import log_likelihood, log_survival, quantile, survival
from salmon.gpd.goodness import (
    anderson_darling,
    effective_share,
    goodness_p,
    standard_errors,
)
from salmon.gpd.grimshaw import MIN_COUNT, GPDFit, fit
from salmon.gpd.posterior import LEAST_WITH_PRIOR, Curve, Posterior, posterior
from salmon.gpd.predictive import INTERVAL, Lookup, predictive_interval, predictive_log_survival
from salmon.gpd.record import FitStatus, TailFit

__all__ = [
    "INTERVAL",
    "LEAST_WITH_PRIOR",
    "MIN_COUNT",
    "Curve",
    "FitStatus",
    "GPDFit",
    "Lookup",
    "Posterior",
    "TailFit",
    "anderson_darling",
    "effective_share",
    "fit",
    "goodness_p",
    "log_likelihood",
    "log_survival",
    "posterior",
    "predictive_interval",
    "predictive_log_survival",
    "quantile",
    "standard_errors",
    "survival",
]
