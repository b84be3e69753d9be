"""How ranked filters spread over the network: shares per group, counts per layer."""

import torch
from torch import Tensor

from salmon.errors import InputError
from salmon.filters import FilterIndex
from salmon.ranking.ranking import Ranking


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
