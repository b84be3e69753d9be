"""How ranked filters spread over the network: shares per group, counts per layer."""

import numpy as np
import torch
from torch import Tensor

from salmon.errors import InputError
from salmon.filters import FilterIndex
from salmon.ranking.ranking import Ranking

_ENTRIES = 1 << 23


def layer_counts(ranking: Ranking, index: FilterIndex) -> Tensor:
    """Count how often the ranked filters lie in each layer.

    Args:
        ranking: Of N samples.

    Returns:
        ``[L]`` int64 counts over all samples and places.
    """
    named = ranking.filters[ranking.filters >= 0]
    if named.numel() and int(named.max()) >= len(index):
        raise InputError(
            f"the ranking names filter {int(named.max())} but the index holds {len(index)}; use "
            "the index that the ranking was made with."
        )
    return torch.bincount(index.layer_of[named], minlength=len(index.layers))


def group_shares(ranking: Ranking, index: FilterIndex) -> dict[str, float]:
    """Share of every group among the ranked filters, as in the paper's tables 1 and 2.

    Args:
        ranking: Of N samples.

    Returns:
        Shares in ``[0, 1]`` that add up to 1, by group; NaN if nothing was ranked.
    """
    counts = torch.zeros(len(index.groups), dtype=torch.int64)
    numbers = torch.tensor([index.groups.index(layer.group) for layer in index.layers])
    counts.index_add_(0, numbers, layer_counts(ranking, index))
    total = int(counts.sum())
    return {
        group: count / total if total else float("nan")
        for group, count in zip(index.groups, counts.tolist(), strict=True)
    }


def filter_shares(index: FilterIndex) -> dict[str, float]:
    """Share of every group among all filters, the yardstick for :func:`group_shares`.

    Returns:
        Shares in ``[0, 1]`` that add up to 1, by group.
    """
    sizes = index.group_sizes.tolist()
    return {group: size / len(index) for group, size in zip(index.groups, sizes, strict=True)}


def share_intervals(
    ranking: Ranking, part_of: Tensor, parts: int, *, draws: int = 500, seed: int = 0
) -> Tensor:
    """95 % intervals of the shares of layers or groups, by a bootstrap over the samples.

    Whole samples are drawn, since their filters come together. Percentile intervals of Efron
    (1979), Annals of Statistics 7(1), 1-26.

    Args:
        ranking: Of N samples.
        part_of: ``[F]`` int64 layer or group of every filter.
        parts: P.
        draws: Of the bootstrap.
        seed: Of the draws.

    Returns:
        ``[P, 2]`` low and high end of each share in [0, 1]; NaN if nothing was ranked.
    """
    samples, places = (ranking.filters >= 0).nonzero(as_tuple=True)
    if not len(samples):
        return torch.full((parts, 2), torch.nan, dtype=torch.float64)
    number = len(ranking.filters)
    of_place = part_of[ranking.filters[samples, places]] + parts * samples
    counts = torch.bincount(of_place, minlength=parts * number).view(number, parts).numpy()
    random, totals = np.random.default_rng(seed), []
    at_once = max(1, _ENTRIES // number)
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        times = random.multinomial(number, np.full(number, 1 / number), size)
        totals.append(times.astype(float) @ counts)
    drawn = np.concatenate(totals)
    drawn = drawn[drawn.any(1)]  # of few samples some draws have none with a ranked filter
    shares = drawn / drawn.sum(1, keepdims=True)
    return torch.from_numpy(np.quantile(shares, (0.025, 0.975), axis=0).T.copy())
