"""Bootstrap bands of means: over images, or over seeds and the images of each."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_BLOCK = 100  # resamples at a time


def resampled_means(cases: Sequence[Values], resamples: int, seed: int) -> Values:
    """Means of bootstrap resamples.

    With one case its images are drawn with replacement. With several (seeds), first as many seeds
    are drawn with replacement, then the images of each draw.

    Args:
        cases: ``[M_i, S]`` values of the images of each case.
        resamples: B.
        seed: Of the draws.

    Returns:
        ``[B, S]`` means over cases of the means over images.
    """
    draws = np.random.default_rng(seed)
    total = np.zeros((resamples, cases[0].shape[1]))
    for _ in cases:
        chosen = (
            draws.integers(len(cases), size=resamples) if len(cases) > 1 else np.zeros(resamples)
        )
        for number, values in enumerate(cases):
            rows = np.flatnonzero(chosen == number)
            even = np.full(len(values), 1 / len(values))
            for part in np.array_split(rows, max(1, -(-len(rows) // _BLOCK))):
                counts = draws.multinomial(len(values), even, size=len(part))
                total[part] += counts @ values / len(values)
    return np.asarray(total / len(cases))


def mean_of(cases: Sequence[Values]) -> Values:
    """``[S]`` mean over cases of the means over images.

    Args:
        cases: ``[M_i, S]`` each.
    """
    return np.asarray(np.mean([values.mean(0) for values in cases], axis=0))


def band(cases: Sequence[Values], resamples: int, seed: int) -> tuple[Values, Values]:
    """95 % percentile interval of the mean.

    Args:
        cases: ``[M_i, S]`` each.
        resamples: Of the bootstrap.
        seed: Of the draws.

    Returns:
        ``[S]`` lower and upper ends.
    """
    low, high = np.percentile(resampled_means(cases, resamples, seed), [2.5, 97.5], axis=0)
    return low, high
