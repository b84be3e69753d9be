"""Whom mistakes blame: filters by the number of mistakes; and which classes are confused."""

from dataclasses import dataclass

import torch
from torch import Tensor

from salmon.diagnosis.diagnosis import Confusion
from salmon.ranking import Ranking, Strength


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blame:
    """Filters that mistakes have among their top K, most blamed first; ``[B]`` each."""

    filters: Tensor  # int64 filter numbers
    mistakes: Tensor  # int64, how many mistakes have the filter among their top K
    significant: Tensor  # int64, in how many of them it is significant
    median_p: Tensor  # float64, of its tail probability in these mistakes; NaN without one


def most_blamed(ranking: Ranking, most: int) -> Blame:
    """Find the filters that most mistakes blame.

    Args:
        ranking: Of M mistakes.

    Returns:
        The filters; equal numbers of mistakes are ordered by the rarer median, then by number.
    """
    ranked = ranking.filters >= 0
    named, log_p = ranking.filters[ranked], ranking.log_p[ranked]
    striking = (ranking.strength == Strength.SIGNIFICANT)[ranked]
    filters, place, counts = named.unique(return_inverse=True, return_counts=True)
    # One stable sort by filter after one by value leaves each filter's values together, in order.
    by_value = log_p.argsort(stable=True)
    order = by_value[place[by_value].argsort(stable=True)]
    values, starts = log_p[order], counts.cumsum(0) - counts
    low, high = starts + (counts - 1) // 2, starts + counts // 2
    median = (values[low].exp() + values[high].exp()) / 2 if len(filters) else values
    rarest = torch.where(torch.isnan(median), torch.inf, median).argsort(stable=True)
    best = rarest[counts[rarest].argsort(descending=True, stable=True)][:most]
    significant = torch.bincount(place[striking], minlength=len(filters))
    return Blame(
        filters=filters[best], mistakes=counts[best], significant=significant[best],
        median_p=median[best],
    )  # fmt: skip


def confusions(classes: Tensor) -> list[Confusion]:
    """Find the pairs of classes that are confused, most often first.

    Args:
        classes: ``[M, 2]`` true and predicted classes of mistakes.
    """
    pairs, counts = classes.unique(dim=0, return_counts=True)
    return [
        Confusion(target=int(pairs[i, 0]), predicted=int(pairs[i, 1]), mistakes=int(counts[i]))
        for i in counts.argsort(descending=True, stable=True).tolist()
    ]
