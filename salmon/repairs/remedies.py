"""What is tried: one step on the filters that a ranking puts first.

A ranking orders the filters of each misclassified sample; here they are combined over all of these
samples: POT by the sum of ``-log p`` over the samples above the threshold (eq. 5 under
independence), z-score and magnitude by the mean over the samples. ``effect`` orders them for each
kind of step by what it does to the loss, to first order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from salmon.errors import InputError
from salmon.filters import FilterIndex
from salmon.ranking import log_tail_probability, sum_over_samples, tail_score, z_score
from salmon.repairs.edit import Edit, edit_effects, step_edit
from salmon.repairs.evidence import Evidence
from salmon.repairs.settings import EFFECT, LAST_LINEAR


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A way to change a network, at any of several rates."""

    ranking: str
    filters: int
    step: str
    rates: tuple[float, ...]  # rising
    edit: Callable[[float], Edit]  # at a rate


def proposals(evidence: Evidence) -> Iterator[Proposal]:
    """Steps of every kind on the first filters of every ranking, from few to many.

    Of ``"all"`` and ``"last_linear"`` the whole only.
    """
    settings = evidence.settings
    for ranking, index in evidence.indices.items():
        if ranking == EFFECT:
            orders = {s: filter_order(f"{EFFECT}:{s}", index, evidence) for s in settings.steps}
        else:
            orders = dict.fromkeys(settings.steps, filter_order(ranking, index, evidence))
        length = len(orders[settings.steps[0]])
        shares = (1.0,) if ranking in ("all", LAST_LINEAR) else settings.shares
        wanted = {max(1, round(share * len(index))) for share in shares}
        for count in sorted({min(count, length) for count in wanted} - {0}):
            for step in settings.steps:
                make = partial(
                    step_edit, evidence.model, index, orders[step][:count],
                    evidence.directions[index], step,
                )  # fmt: skip
                yield Proposal(ranking, count, step, settings.rates_of(step), make)


def filter_order(ranking: str, index: FilterIndex, evidence: Evidence) -> Tensor:
    """Order the filters by what the misclassified samples say of them.

    Returns:
        ``[n]`` numbers, first ones first, without those that are not ranked.
    """
    fit, profile = evidence.fit, evidence.profile
    kind, _, group = ranking.partition(":")
    match kind:
        case "pot":
            log_p = log_tail_probability(profile, fit)
            score = sum_over_samples(tail_score(profile, log_p, fit))
        case "zscore":
            score = z_score(profile, fit).mean(0)
        case "magnitude":
            score = profile.mean(0)
        case "random":
            random = torch.Generator().manual_seed(evidence.settings.seed)
            score = torch.rand(len(index), generator=random)
        case "group":
            score = profile.mean(0).where(_members(index, group), torch.nan)
        case "effect":  # of an edit of the kind after the colon
            score = edit_effects(evidence.model, index, evidence.directions[index], group)
        case _:
            score = torch.zeros(len(index))
    order = score.nan_to_num(nan=-torch.inf).sort(descending=True, stable=True).indices
    return order[~torch.isnan(score[order])]


def _members(index: FilterIndex, group: str) -> Tensor:
    """``[F]`` bool: filters of a group."""
    if group not in index.groups:
        raise InputError(
            f"ranking 'group:{group}' names no group of this network; it has "
            f"{', '.join(index.groups)}."
        )
    return index.group_of == index.groups.index(group)
