"""Rankings of a sample's filters: POT, z-score and the rivals.

``pot`` ranks by the probability that saliency lies further up its filter's tail (eq. 5), rarest
first; ``zscore`` by eq. 2 (Levin et al. 2021); ``magnitude`` by the saliency itself; ``random`` by
a seeded shuffle; ``group:<name>`` by magnitude within one group.
"""

import math

import torch
from torch import Tensor

from salmon import gpd
from salmon.errors import InputError
from salmon.filters import FilterIndex
from salmon.gpd import TailFit
from salmon.ranking.ranking import Ranking

LOG_P_FLOOR = -700.0
"""Smallest log-probability reported; saliency past the end point of a tail gets it."""

METHODS = ("pot", "zscore", "magnitude", "random", "group:<name>")

ALPHA = 0.05
"""Share of the significant filters that may be false."""

SPARE = 16  # places looked up beyond those wanted, since exact values may change their order

_BLOCK_ELEMENTS = 1 << 24


def rank_filters(
    profile: Tensor,
    fit: TailFit,
    method: str = "pot",
    *,
    top_k: int = 25,
    index: FilterIndex | None = None,
    seed: int = 0,
    own: bool = False,
) -> Ranking:
    """Rank the filters of every sample.

    Args:
        profile: ``[N, F]`` saliency of the samples, in the unit that ``fit`` was made in.
        fit: Tails and moments of the same F filters, from these or other data.
        method: ``"pot"``, ``"zscore"``, ``"magnitude"``, ``"random"`` or ``"group:<name>"``.
        top_k: K, filters kept per sample.
        index: The filters; needed for ``"group:<name>"`` only.
        seed: Of ``"random"``; sample i of one call always gets the same shuffle.
        own: Whether the samples are among those of the fit. Each is then left out of its tails,
            where the fit has a posterior; maximum likelihood takes them as they are.

    Returns:
        The ranking, on the CPU. Samples with a NaN profile have no ranked filters. With ``"pot"``
        only filters above their threshold that have a fit are ranked.

    Raises:
        InputError: If shapes, type, ``method`` or ``top_k`` do not fit.
    """
    filters = fit.threshold.numel()
    if profile.ndim != 2 or profile.shape[1] != filters:
        raise InputError(
            f"profile has shape {tuple(profile.shape)} but fit has {filters} filters; "
            "index both with the same FilterIndex."
        )
    if profile.is_complex():
        raise InputError(f"profile is {profile.dtype}; real numbers are needed.")
    if top_k < 1:
        raise InputError(f"top_k is {top_k}; at least 1 filter per sample is needed.")
    mask = _group_mask(method, index, filters)
    generator = torch.Generator().manual_seed(seed)
    parts = [
        _rank_block(block.detach().cpu().double(), fit, method, top_k, mask, generator, own=own)
        for block in profile.split(max(1, _BLOCK_ELEMENTS // filters))
    ]
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Ranking(method=method, samples=fit.samples, tested=int(fit.usable.sum()), **columns)


def log_tail_probability(profile: Tensor, fit: TailFit, *, own: bool = False) -> Tensor:
    """Log of the probability that saliency lies further up its filter's tail (eq. 5).

    Args:
        profile: ``[N, F]`` float64 saliency.
        own: As in :func:`rank_filters`.

    Returns:
        ``[N, F]`` in ``[LOG_P_FLOOR, log rate]``; NaN at or below the threshold, where a tail says
        nothing, and for filters without a fit. Predictive tails are looked up, to 0.2 % of log S.
    """
    found = torch.full(profile.shape, torch.nan, dtype=torch.float64)
    at = _raised(profile, fit)
    found[at] = _log_p(profile[at], fit, at[1], own=own)
    return found


def log_p_of(values: Tensor, fit: TailFit, filters: Tensor, *, own: bool = False) -> Tensor:
    """Exact log probabilities of values of the given filters; shapes are alike.

    Returns:
        NaN at or below the threshold, for NaN, and for filters without a fit.
    """
    found = torch.full(values.shape, torch.nan, dtype=torch.float64)
    raised = (values > fit.threshold[filters]) & fit.usable[filters]
    found[raised] = _log_p(values[raised], fit, filters[raised], own=own, exact=True)
    return found


def tail_score(
    values: Tensor, log_p: Tensor, fit: TailFit, filters: Tensor | None = None
) -> Tensor:
    """A score that ranks by ``-log p`` and breaks ties at the floor by the relative excess.

    Args:
        values: ``[N, M]`` float64 saliency.
        log_p: ``[N, M]`` of it; NaN for values that are not in their tail.
        filters: ``[N, M]``; None where the columns are all filters.

    Returns:
        ``[N, M]`` ``-log p``; at the floor, values above it by less than 1 that grow with the
        excess; NaN where log p is.
    """
    score = -log_p
    at = log_p <= LOG_P_FLOOR
    number = at.nonzero()[:, 1] if filters is None else filters[at]
    ratio = (values[at] - fit.threshold[number]) / fit.sigma[number]
    score[at] += ratio / (1 + ratio)
    return score


def significant_counts(log_p: Tensor, tested: int) -> Tensor:
    """How many filters of each sample the procedure of Benjamini and Hochberg (1995) finds.

    It bounds the expected share of false ones at 5 % for independent filters, and for those that
    tend to rise together (Benjamini and Yekutieli 2001).

    Args:
        log_p: ``[N, F]``; NaN for filters that are not in their tail.
        tested: Number of filters with a fit.

    Returns:
        ``[N]`` int64.
    """
    values = log_p.nan_to_num(nan=0.0)
    most = int((values <= math.log(ALPHA)).sum(1).amax()) if len(values) else 0
    if most == 0:
        return torch.zeros(len(values), dtype=torch.int64)
    rarest = values.topk(most, dim=1, largest=False).values  # in ascending order
    count = torch.arange(1, most + 1)
    passed = rarest <= math.log(ALPHA / tested) + count.double().log()
    return (passed * count).amax(1)


def z_score(profile: Tensor, fit: TailFit) -> Tensor:
    """Saliency in standard deviations from the filter's mean (eq. 2).

    Args:
        profile: ``[N, F]`` float64 saliency.

    Returns:
        ``[N, F]``; NaN where fewer than two samples gave the moments.
    """
    return _z(profile, fit, slice(None))


def sum_over_samples(values: Tensor) -> Tensor:
    """Combine the samples of a batch: the sum over those above their threshold.

    Args:
        values: ``[N, F]`` log p or scores; NaN where a sample is below the filter's threshold.

    Returns:
        ``[F]`` sums; NaN for filters that no sample raised above the threshold.
    """
    raised = ~torch.isnan(values)
    return torch.where(raised.any(0), torch.where(raised, values, 0.0).sum(0), torch.nan)


def _raised(profile: Tensor, fit: TailFit) -> tuple[Tensor, Tensor]:
    """Rows and filters of the values above their threshold, where there is a tail."""
    rows, filters = ((profile > fit.threshold) & fit.usable).nonzero(as_tuple=True)
    return rows, filters


def _log_p(
    values: Tensor, fit: TailFit, filters: Tensor, *, own: bool, exact: bool = False
) -> Tensor:
    """Log probability of values of the given filters, all above their thresholds."""
    excess = values - fit.threshold[filters]
    if fit.posterior is None:
        tail = gpd.log_survival(excess, fit.xi[filters], fit.sigma[filters])
    elif exact:
        tail = gpd.predictive_log_survival(fit.posterior, excess, filters, own=own)
    else:
        tail = gpd.Lookup.of(fit.posterior, own=own).log_survival(excess, filters)
    return (_log_rate(fit, filters, own=own) + tail).clamp_min(LOG_P_FLOOR)


def _log_rate(fit: TailFit, filters: Tensor, *, own: bool) -> Tensor:
    """Log of the probability of the tail, without the sample itself where it is ``own``."""
    if own and fit.posterior is not None:
        return (fit.exceedances[filters].double() / fit.samples).log()
    return fit.rate[filters].log()


def _z(values: Tensor, fit: TailFit, filters: Tensor | slice) -> Tensor:
    """z-scores of values of the given filters."""
    return (values - fit.mean[filters]) / fit.scale[filters]


def _group_mask(method: str, index: FilterIndex | None, filters: int) -> Tensor | None:
    """Filters of the group that ``method`` names, if it names one."""
    if method in METHODS[:-1]:
        return None
    kind, _, name = method.partition(":")
    if kind != "group":
        raise InputError(f"method is {method!r}; one of {', '.join(METHODS)} is needed.")
    if index is None or len(index) != filters:
        raise InputError(
            f"method {method!r} needs index=, the FilterIndex of the {filters} filters of the fit."
        )
    if name not in index.groups:
        raise InputError(
            f"method {method!r} names no group of this network; it has {', '.join(index.groups)}."
        )
    return index.group_of == index.groups.index(name)


def _rank_block(
    profile: Tensor,
    fit: TailFit,
    method: str,
    top_k: int,
    mask: Tensor | None,
    generator: torch.Generator,
    *,
    own: bool,
) -> dict[str, Tensor]:
    """Rank ``[N, F]`` float64 samples; gives columns of a :class:`Ranking`."""
    columns: dict[str, Tensor] = {}
    if method == "pot":
        log_p = log_tail_probability(profile, fit, own=own)
        columns["significant"] = significant_counts(log_p, int(fit.usable.sum()))
        score = tail_score(profile, log_p, fit)
    elif method == "zscore":
        score = z_score(profile, fit)
    elif method == "random":
        score = torch.rand(profile.shape, generator=generator, dtype=torch.float64)
    else:
        score = profile if mask is None else profile.masked_fill(~mask, torch.nan)
    score = score.masked_fill(~torch.isfinite(profile), torch.nan)
    columns["ranked"] = (~torch.isnan(score)).sum(1)
    if method == "pot" and fit.posterior is not None:
        filters, top = _exactly(profile, score, fit, top_k, own=own)
    else:
        filters, top = top_filters(score, top_k)
    at = filters.clamp_min(0)
    saliency = profile.gather(1, at).masked_fill(filters < 0, torch.nan)
    log_p = log_p_of(saliency, fit, at, own=own)
    low, high = (torch.full_like(saliency, torch.nan) for _ in range(2))
    raised = ~torch.isnan(log_p)
    values, numbers = saliency[raised], at[raised]
    if fit.posterior is not None:
        excess, rate = values - fit.threshold[numbers], _log_rate(fit, numbers, own=own)
        bounds = gpd.predictive_interval(fit.posterior, excess, numbers, own=own)
        low[raised], high[raised] = ((rate + b).clamp_min(LOG_P_FLOOR).exp() for b in bounds)
    return columns | {
        "filters": filters, "score": top, "saliency": saliency, "log_p": log_p,
        "p_low": low, "p_high": high, "z": _z(saliency, fit, at),
    }  # fmt: skip


def _exactly(
    profile: Tensor, score: Tensor, fit: TailFit, top_k: int, *, own: bool
) -> tuple[Tensor, Tensor]:
    """The highest scores by exact values, among a few more than wanted of those looked up."""
    filters = top_filters(score, top_k + SPARE)[0].sort(dim=1).values  # equal scores by number
    there = filters >= 0
    values = profile.gather(1, filters.clamp_min(0)).masked_fill(~there, torch.nan)
    log_p = log_p_of(values, fit, filters.clamp_min(0), own=own)
    place, top = top_filters(tail_score(values, log_p, fit, filters), top_k)
    return filters.gather(1, place.clamp_min(0)).masked_fill(place < 0, -1), top


def top_filters(score: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The highest scores of every row, best first, equal scores by filter number.

    Args:
        score: ``[N, F]``; NaN is not ranked.
        top_k: K.

    Returns:
        ``[N, K]`` filter numbers, -1 where none is left, and their scores, NaN there.
    """
    filled = torch.where(torch.isnan(score), -torch.inf, score)
    width = min(top_k, score.shape[1])
    floor = filled.topk(width, dim=1).values[:, -1:]
    # topk picks among equals as it likes; the stable sort of all that reach its floor does not.
    reach = int((filled >= floor).sum(1).amax()) if score.shape[0] else 0
    if reach > width:
        value, filters = filled.sort(dim=1, descending=True, stable=True)
        value, filters = value[:, :width], filters[:, :width]
    else:
        value, filters = filled.topk(width, dim=1)
        order = filters.argsort(dim=1)
        value, filters = value.gather(1, order), filters.gather(1, order)
        order = value.argsort(dim=1, descending=True, stable=True)
        value, filters = value.gather(1, order), filters.gather(1, order)
    missing = value == -torch.inf
    pad = (0, top_k - width)
    filters = torch.nn.functional.pad(filters.masked_fill(missing, -1), pad, value=-1)
    return filters, torch.nn.functional.pad(
        value.masked_fill(missing, torch.nan), pad, value=torch.nan
    )
