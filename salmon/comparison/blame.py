"""Where samples turned wrong: what they blame in the new network, by the tails of the old one.

By its own tails a filter that is broken for all samples is an ordinary one. Networks that are no
relatives have only their own, and are compared by groups and depth.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salmon.diagnosis.diagnosis import Mistakes
from salmon.diagnosis.findings import find
from salmon.errors import InputError
from salmon.filters import FilterIndex
from salmon.forward import eval_mode
from salmon.gpd import TailFit
from salmon.ranking import ALPHA, Ranking, filter_shares, group_shares, rank_filters
from salmon.repairs.predictions import Objective, to_device
from salmon.repairs.samples import Samples
from salmon.saliency import filter_saliency
from salmon.tails import Tails, fit_tails


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterBlame:
    """One filter, and how many of the samples that turned wrong blame it."""

    filter: int
    name: str
    layer: str
    new: int  # samples that have it among their top K in the new network
    old: int  # the same samples in the old one, where they were right
    expected: float  # if these samples named filters as right ones do in the old network
    p: float | None  # adjusted, of more than that by chance; None where nothing can be compared
    changed: float  # |new - old| / |old| of its weights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blame:
    """What the samples that turned wrong blame."""

    samples: int  # of them that were measured
    filters: tuple[FilterBlame, ...]  # those that gained most first
    layers: dict[str, float]  # places among the top K that each layer's filters gained, in mean
    groups: tuple[dict[str, float], dict[str, float]]  # shares of the groups, before and after
    beyond: int  # filters that are blamed beyond chance
    overlap: int  # of these, how many are among as many filters that changed most
    overlap_expected: float  # as many by chance
    overlap_p: float  # of so many or more by chance, hypergeometric


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnBlame:
    """What the mistakes of one network blame, by its own tails."""

    samples: int  # mistakes that were measured
    groups: dict[str, float]  # shares of the groups among the top K
    filters: dict[str, float]  # shares of the groups among all filters
    depth: float  # mean place of the top K, from 0 in the first layer to 1 in the last
    filter_depth: float  # of all filters


def profiles(
    model: nn.Module, samples: Samples, index: FilterIndex, objective: Objective, batch_size: int
) -> Iterator[Tensor]:
    """``[n, F]`` saliency of batches, on the CPU."""
    with eval_mode(model):
        for batch in samples.batches(batch_size):
            inputs, targets = to_device(batch, model)
            yield filter_saliency(model, inputs, targets, index, objective.losses).cpu()


def tails_of(
    model: nn.Module, samples: Samples, index: FilterIndex, objective: Objective,
    level: float, batch_size: int,
) -> TailFit:  # fmt: skip
    """The tails of a network on some samples.

    Raises:
        InputError: If these are too few.
    """
    tails = Tails(len(index))
    for profile in profiles(model, samples, index, objective, batch_size):
        tails.update(profile)
    fit = fit_tails(tails, level, index=index)
    if not bool(fit.usable.any()):
        raise InputError(
            f"no filter could be fitted to {len(samples)} samples; a few hundred are needed."
        )
    return fit


def blamed(
    old: nn.Module,
    new: nn.Module,
    broken: Samples,
    right: Samples,
    fit: TailFit,
    index: FilterIndex,
    objective: Objective,
    *,
    moved: Tensor,
    top_k: int,
    batch_size: int,
    seed: int,
) -> Blame:
    """Rank the filters of samples that turned wrong.

    Args:
        broken: Right in the old network, wrong in the new one.
        right: Some that both have right: what is ordinary in the old network.
        fit: Tails of the old network.
        moved: ``[F]`` relative change of each filter.
    """
    from scipy.stats import hypergeom  # takes a second to load

    def ranked(model: nn.Module, samples: Samples) -> Ranking:
        found = list(profiles(model, samples, index, objective, batch_size))
        return rank_filters(torch.cat(found).double(), fit, top_k=top_k)

    after, before = ranked(new, broken), ranked(old, broken)
    rows = torch.arange(len(broken))
    mistakes = Mistakes(
        sample=rows, ids=list(broken.ids), batch=rows, target=rows, predicted=rows,
        loss=rows.double(),
    )  # fmt: skip
    ordinary = ranked(old, right) if len(right) else before
    findings = find(mistakes, after, ordinary, None, len(index), seed=seed)
    now, was = (_counts(ranking, len(index)) for ranking in (after, before))
    gained = now - was
    order = gained.sort(descending=True, stable=True).indices
    filters = []
    for number in order[:top_k].tolist():
        if gained[number] <= 0:
            break
        p = float(findings.p[number])
        own = FilterBlame(
            filter=number, name=index.label(number), layer=index.locate(number)[0].layer,
            new=int(now[number]), old=int(was[number]), expected=float(findings.expected[number]),
            p=None if math.isnan(p) else p, changed=float(moved[number]),
        )  # fmt: skip
        filters.append(own)
    parts: dict[str, list[Tensor]] = {}  # a layer may have several weights
    for position, layer in enumerate(index.layers):
        parts.setdefault(layer.layer, []).append(gained[index.layer_of == position])
    layers = {
        name: float(torch.cat(each).double().mean()) / len(broken) for name, each in parts.items()
    }
    beyond = (findings.p <= ALPHA) & (gained > 0)
    number = int(beyond.sum())
    overlap = int(beyond[moved.sort(descending=True, stable=True).indices[:number]].sum())
    return Blame(
        samples=len(broken),
        filters=tuple(filters),
        layers=dict(sorted(layers.items(), key=lambda pair: -pair[1])),
        groups=(group_shares(before, index), group_shares(after, index)),
        beyond=number,
        overlap=overlap,
        overlap_expected=number**2 / len(index),
        overlap_p=float(hypergeom.sf(overlap - 1, len(index), number, number)),
    )


def own_blame(
    model: nn.Module, pool: Samples, wrong: Samples, index: FilterIndex, objective: Objective, *,
    level: float, top_k: int, batch_size: int,
) -> OwnBlame:  # fmt: skip
    """Rank the filters of a network's mistakes by its own tails.

    Args:
        pool: What the tails are fitted to.
        wrong: Mistakes of this network.

    Raises:
        InputError: If the samples are too few for tails.
    """
    fit = tails_of(model, pool, index, objective, level, batch_size)
    found = list(profiles(model, wrong, index, objective, batch_size))
    profile = torch.cat(found).double() if found else torch.zeros(0, len(index)).double()
    ranking = rank_filters(profile, fit, top_k=min(top_k, max(1, len(index) // 10)))
    place = index.layer_of.double() / max(1, len(index.layers) - 1)
    counts = _counts(ranking, len(index)).double()
    return OwnBlame(
        samples=len(wrong),
        groups=group_shares(ranking, index),
        filters=filter_shares(index),
        depth=float(counts @ place / counts.sum()),
        filter_depth=float(place.mean()),
    )


def _counts(ranking: Ranking, filters: int) -> Tensor:
    top = ranking.filters
    return torch.bincount(top[top >= 0], minlength=filters)
