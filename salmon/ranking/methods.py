"""Rankings of a sample's filters: POT, z-score and the rivals.

``pot`` ranks by the probability that saliency lies further up its filter's tail (eq. 5), rarest
first; ``zscore`` by eq. 2 (Levin et al. 2021); ``magnitude`` by the saliency itself; ``random`` by
a seeded shuffle; ``group:<name>`` by magnitude within one group.
"""

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

_BLOCK_ELEMENTS = 1 << 24


def rank_filters(
    profile: Tensor,
    fit: TailFit,
    method: str = "pot",
    *,
    top_k: int = 25,
    index: FilterIndex | None = None,
    seed: int = 0,
) -> Ranking:
    """Rank the filters of every sample.

    Args:
        profile: ``[N, F]`` saliency of the samples, in the unit that ``fit`` was made in.
        fit: Tails and moments of the same F filters, from these or other data.
        method: ``"pot"``, ``"zscore"``, ``"magnitude"``, ``"random"`` or ``"group:<name>"``.
        top_k: K, filters kept per sample.
        index: The filters; needed for ``"group:<name>"`` only.
        seed: Of ``"random"``; sample i of one call always gets the same shuffle.

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
        _rank_block(block.detach().cpu().double(), fit, method, top_k, mask, generator)
        for block in profile.split(max(1, _BLOCK_ELEMENTS // filters))
    ]
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return Ranking(
        method=method,
        filters=columns[0],
        score=columns[1],
        saliency=columns[2],
        log_p=columns[3],
        z=columns[4],
        ranked=columns[5],
    )


def log_tail_probability(profile: Tensor, fit: TailFit) -> Tensor:
    """Log of the probability that saliency lies further up its filter's tail (eq. 5).

    Args:
        profile: ``[N, F]`` float64 saliency.

    Returns:
        ``[N, F]`` in ``[LOG_P_FLOOR, log rate]``; NaN at or below the threshold, where a tail says
        nothing, and for filters without a fit.
    """
    found = torch.full(profile.shape, torch.nan, dtype=torch.float64)
    at = _raised(profile, fit)
    found[at] = _log_p(profile[at], fit, at[1])
    return found


def tail_score(profile: Tensor, fit: TailFit) -> Tensor:
    """A score that ranks by ``-log p`` and breaks ties at the floor by the relative excess.

    Args:
        profile: ``[N, F]`` float64 saliency.

    Returns:
        ``[N, F]`` ``-log p``; at the floor, values above it by less than 1 that grow with the
        excess; NaN where :func:`log_tail_probability` is.
    """
    score = torch.full(profile.shape, torch.nan, dtype=torch.float64)
    at = _raised(profile, fit)
    values, filters = profile[at], at[1]
    log_p = _log_p(values, fit, filters)
    ratio = (values - fit.threshold[filters]) / fit.sigma[filters]
    floored = log_p <= LOG_P_FLOOR
    score[at] = torch.where(floored, ratio / (1 + ratio), 0.0) - log_p
    return score


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


def _log_p(values: Tensor, fit: TailFit, filters: Tensor) -> Tensor:
    """Log probability of values of the given filters, all above their thresholds."""
    excess = values - fit.threshold[filters]
    tail = gpd.log_survival(excess, fit.xi[filters], fit.sigma[filters])
    return (fit.rate[filters].double().log() + tail).clamp_min(LOG_P_FLOOR)


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
) -> tuple[Tensor, ...]:
    """Rank some samples: filters, score, saliency, log p, z, number ranked."""
    if method == "pot":
        score = tail_score(profile, fit)
    elif method == "zscore":
        score = z_score(profile, fit)
    elif method == "random":
        score = torch.rand(profile.shape, generator=generator, dtype=torch.float64)
    else:
        score = profile if mask is None else profile.masked_fill(~mask, torch.nan)
    score = score.masked_fill(~torch.isfinite(profile), torch.nan)
    filters, top = top_filters(score, top_k)
    at = filters.clamp_min(0)
    saliency = profile.gather(1, at).masked_fill(filters < 0, torch.nan)
    raised = (saliency > fit.threshold[at]) & fit.usable[at]
    log_p = torch.full_like(saliency, torch.nan)
    log_p[raised] = _log_p(saliency[raised], fit, at[raised])
    return filters, top, saliency, log_p, _z(saliency, fit, at), (~torch.isnan(score)).sum(1)


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
