"""Is saliency normal, and do the methods predict how often it is exceeded?

``[N, F]`` saliency of N images and F filters, float64.

References: D'Agostino and Stephens (1986), Goodness-of-Fit Techniques, section 4.8 and table 4.9
(Anderson-Darling with mean and deviation estimated); D'Agostino and Pearson (1973), Biometrika
60(3); Benjamini and Hochberg (1995), JRSS B 57(1).
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from examples.paper.shared.bands import Values
from salmon import TailFit, Tails, fit_tails, gpd

PROBABILITIES = (0.05, 0.01, 0.001, 0.0001)
METHODS = ("normal", "pot")

_COLUMNS = 512  # filters at a time


def anderson_darling(values: Values) -> Values:
    """Statistic of every column against a normal with its own mean and deviation.

    Args:
        values: ``[N, F]``.

    Returns:
        ``[F]`` A^2, not yet corrected for the sample size; NaN for constant columns.
    """
    count = len(values)
    odd = (2 * np.arange(1, count + 1) - 1)[:, None]
    found = []
    for start in range(0, values.shape[1], _COLUMNS):
        block = np.sort(values[:, start : start + _COLUMNS], axis=0)
        deviation = block.std(0, ddof=1)
        deviation = np.where(deviation > 1e-12 * np.abs(block.mean(0)), deviation, np.nan)
        z = (block - block.mean(0)) / deviation
        terms = special.log_ndtr(z) + special.log_ndtr(-z[::-1])
        found.append(-count - (odd * terms).sum(0) / count)
    return np.concatenate(found)


def anderson_darling_p(statistic: Values, count: int) -> Values:
    """p-values of the statistic.

    Args:
        statistic: ``[F]`` A^2.
        count: N.

    Returns:
        ``[F]``; NaN where the statistic is.
    """
    a = np.minimum(statistic * (1 + 0.75 / count + 2.25 / count**2), 12.0)  # the fit ends there
    return np.asarray(
        np.select(
            [np.isnan(a), a >= 0.6, a > 0.34, a > 0.2],
            [
                np.full_like(a, np.nan),
                np.exp(1.2937 - 5.709 * a + 0.0186 * a**2),
                np.exp(0.9177 - 4.279 * a - 1.38 * a**2),
                1 - np.exp(-8.318 + 42.796 * a - 59.938 * a**2),
            ],
            1 - np.exp(-13.436 + 101.14 * a - 223.73 * a**2),
        )
    )


def dagostino_p(values: Values) -> Values:
    """p-values of D'Agostino and Pearson's test of skewness and kurtosis.

    Args:
        values: ``[N, F]``, 20 rows at least.

    Returns:
        ``[F]``; NaN for constant columns.
    """
    constant = values.std(0) <= 1e-12 * np.abs(values.mean(0))
    safe = np.where(constant, np.arange(len(values))[:, None], values)
    return np.where(constant, np.nan, stats.normaltest(safe).pvalue)


def rejected(p: Values, level: float = 0.05) -> float:
    """Share of hypotheses that Benjamini and Hochberg's procedure rejects.

    Args:
        p: p-values; NaN are left out.
        level: False discovery rate.
    """
    known = p[~np.isnan(p)]
    if not len(known):
        return float("nan")
    return float((stats.false_discovery_control(known) <= level).mean())


def fitted(profile: Tensor) -> TailFit:
    """Tails and moments of a profile, at the level of the experiments.

    Args:
        profile: ``[N, F]``.
    """
    tails = Tails(profile.shape[1], capacity=max(1024, len(profile) // 9))
    tails.update(profile)
    return fit_tails(tails, 0.90)


def bound(fit: TailFit, method: str, probability: float) -> Tensor:
    """Saliency that each filter exceeds with a probability, as a method predicts it.

    Args:
        fit: Tails and moments.
        method: One of :data:`METHODS`.
        probability: Below the rate of the tails, 0.1.

    Returns:
        ``[F]``; NaN where POT has no fit.
    """
    if method == "normal":
        return fit.mean + fit.scale * float(stats.norm.isf(probability))
    inside = 1 - probability / fit.rate.double()
    found = fit.threshold.double() + gpd.quantile(inside.clamp_min(0), fit.xi, fit.sigma)
    return torch.where(fit.usable & (inside >= 0), found, torch.nan)


def exceeded(
    profile: Tensor, seed: int, fit: Callable[[Tensor], TailFit] = fitted
) -> dict[tuple[str, float], Values]:
    """Fit on one half of the images and count on the other, both ways.

    Args:
        profile: ``[N, F]``.
        seed: Of the halves.
        fit: From a half to its tails and moments.

    Returns:
        ``[N, 1]`` share of the filters that exceed their bound, of every image, by method and
        probability; filters without a tail are left out of both methods.
    """
    order = torch.randperm(len(profile), generator=torch.Generator().manual_seed(seed))
    halves = order.chunk(2)
    found: dict[tuple[str, float], list[Values]] = {}
    for train, test in (halves, halves[::-1]):
        known = fit(profile[train])
        for probability in PROBABILITIES:
            usable = ~torch.isnan(bound(known, "pot", probability))
            for method in METHODS:
                over = profile[test][:, usable] > bound(known, method, probability)[usable]
                share = over.double().mean(1, keepdim=True).numpy()
                found.setdefault((method, probability), []).append(share)
    return {key: np.concatenate(parts) for key, parts in found.items()}
