"""Orders of the filters: which ones a repair changes first.

A ranking orders the filters of each mistake; here they are combined over all of these
samples: POT by the sum of ``-log p`` over the samples above the threshold (eq. 5 under
independence), z-score and magnitude by the mean over the samples.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from salmon.errors import InputError
from salmon.filters import FilterIndex, filter_rows
from salmon.gpd import TailFit
from salmon.ranking import log_tail_probability, sum_over_samples, tail_score, z_score

SPREAD = "spread:"
"""Begins the name of an order that takes the same share of every layer."""

ORDERS = ("pot", "pot-ml", "zscore", "magnitude", "gradient", "random", "group")
_NAME = re.compile(rf"({SPREAD})?({'|'.join(ORDERS)}|random:\d{{1,9}}|group:.+)")


def check_order(order: str) -> bool:
    """Whether there is an order of this name, such as "pot", "random:3" or "spread:zscore"."""
    return _NAME.fullmatch(order) is not None


def filter_order(
    order: str,
    index: FilterIndex,
    fit: TailFit,
    profile: Tensor,
    gradients: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    seed: int,
) -> Tensor:
    """Order the filters.

    Args:
        order: ``"pot"``, ``"pot-ml"`` (by maximum likelihood), ``"zscore"``, ``"magnitude"``,
            ``"gradient"`` (of the mean loss, over the filter's norm), ``"random"`` with a number
            after a colon for other draws, ``"group"`` (the filters of the last group by magnitude,
            or of the one after a colon); with :data:`SPREAD` before it, the first ones of every
            layer in turn, so that the first ones are about the same share of every layer.
        fit: Tails of the reference samples.
        profile: ``[M, F]`` saliency of the mistakes.
        gradients: Of the mean loss of the new samples, by weight.
        state: Tensors of the network, by name.
        seed: Of a random order.

    Returns:
        ``[n]`` numbers, first ones first, without those that are not ranked.
    """
    kind, _, detail = order.removeprefix(SPREAD).partition(":")
    match kind:
        case "pot" | "pot-ml":
            fit = fit.as_ml() if kind == "pot-ml" else fit
            log_p = log_tail_probability(profile, fit)
            score = sum_over_samples(tail_score(profile, log_p, fit))
        case "zscore":
            score = z_score(profile, fit).mean(0)
        case "magnitude":
            score = profile.mean(0)
        case "gradient":
            score = torch.cat([
                filter_rows(gradients[layer.weight], layer).norm(dim=1)
                / filter_rows(state[layer.weight].detach().double().cpu(), layer).norm(dim=1)
                for layer in index.layers
            ])  # fmt: skip
        case "group":
            score = profile.mean(0).where(_members(index, detail), torch.nan)
        case _:
            random = torch.Generator().manual_seed(seed + 1000 * int(detail or 0))
            score = torch.rand(len(index), generator=random, dtype=torch.float64)
    place = score.nan_to_num(nan=-torch.inf).sort(descending=True, stable=True).indices
    place = place[~torch.isnan(score[place])]
    return _spread(place, index) if order.startswith(SPREAD) else place


def _spread(place: Tensor, index: FilterIndex) -> Tensor:
    """Let the layers take turns, each by its size, and each with its own first filters."""
    key = torch.empty(len(place), dtype=torch.float64)
    layers = index.layer_of[place]
    for number, layer in enumerate(index.layers):
        own = layers == number
        key[own] = (torch.arange(int(own.sum()), dtype=torch.float64) + 0.5) / layer.filters
    return place[key.sort(stable=True).indices]


def _members(index: FilterIndex, group: str) -> Tensor:
    """``[F]`` bool: filters of a group, or of the last one."""
    if group and group not in index.groups:
        raise InputError(
            f"the order 'group:{group}' names no group of this network; it has "
            f"{', '.join(index.groups)}."
        )
    return index.group_of == (index.groups.index(group) if group else len(index.groups) - 1)
