"""How far probabilities depend on which samples the tails were fitted to."""

import numpy as np
import torch
from torch import Tensor

from salmon import gpd
from salmon.errors import InputError
from salmon.filters import FilterIndex
from salmon.ranking.methods import log_p_of
from salmon.ranking.ranking import Ranking
from salmon.tails import Estimator, Tails, fit_tails


def bootstrap_interval(
    ranking: Ranking,
    reference: Tensor,
    level: float = 0.90,
    *,
    index: FilterIndex | None = None,
    estimator: Estimator = "shrunk",
    draws: int = 50,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """90 % intervals of p by a bootstrap over the samples of the fit.

    Whole samples are drawn, so that what all filters owe to a few unusual images is in them. The
    intervals of a ranking (``p_low``, ``p_high``), by the posterior of each filter, leave that out.
    Efron (1979), Annals of Statistics 7(1), 1-26.

    Args:
        ranking: Of N samples.
        reference: ``[n, F]`` saliency of the samples of the fit.
        level: Of the fit.
        index: As for ``fit_tails``.
        estimator: Of the fit.
        draws: Fits.
        seed: Of the draws.

    Returns:
        ``[N, K]`` lower and upper ends; a value below the threshold of a draw counts as the
        probability of its tail. NaN where the ranking has no p.

    Raises:
        InputError: If the ranking names other filters.
    """
    known = ~torch.isnan(ranking.log_p)
    values, filters = ranking.saliency[known], ranking.filters[known]
    if reference.ndim != 2 or (len(filters) and int(filters.max()) >= reference.shape[1]):
        raise InputError(
            f"reference has shape {tuple(reference.shape)} but the ranking names other filters; "
            "give the [samples, filters] saliency that its fit was made of."
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(draws):
        rows = torch.randint(len(reference), (len(reference),), generator=generator)
        tails = Tails(reference.shape[1])
        tails.update(reference[rows])
        fit = fit_tails(tails, level, index=index, estimator=estimator)
        log_p, rate = log_p_of(values, fit, filters), fit.rate[filters].log()
        drawn.append(torch.where(torch.isnan(log_p), rate, log_p))
    low, high = (torch.full_like(ranking.log_p, torch.nan) for _ in range(2))
    if len(values):
        ends = [(1 - gpd.INTERVAL) / 2, (1 + gpd.INTERVAL) / 2]
        # torch's own quantile refuses more than 16 million numbers.
        edges = np.quantile(torch.stack(drawn).numpy(), ends, axis=0)
        low[known], high[known] = torch.from_numpy(edges).exp()
    return low, high
