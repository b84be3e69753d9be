"""One quantile level for the whole network, chosen by goodness of fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salmon import gpd
from salmon.errors import InputError
from salmon.tails.fit import (
    exceedance_count,
    fit_p,
    independent,
    largest_in_blocks,
    split_at,
)
from salmon.tails.stream import Tails

CANDIDATES = (0.80, 0.85, 0.90, 0.95)
ALPHA = 0.05  # rate of false rejections that ForwardStop keeps to in every filter
ALLOWED = 0.10  # share of filters that may have another tail
UNTESTED = 0.90  # the level where nothing can be tested


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelChoice:
    """A quantile level and why it was chosen."""

    level: float  # in (0, 1)
    reason: str  # one sentence for a log
    rejected: dict[float, float]  # share of the tested filters with a rejected tail, by candidate


def choose_level(
    tails: Tails, candidates: Sequence[float] = CANDIDATES, stands_for: int | None = None
) -> LevelChoice:
    """Choose the level at which the filters' tails are generalized Pareto.

    In every filter the Anderson-Darling p-values at the candidates, in rising order, go through
    ForwardStop, which rejects the first ``max{k: -1/k sum_{i<=k} log(1 - p_i) <= 0.05}`` of them.
    A filter has no vote at a candidate where it has no p-value. The choice is the lowest candidate
    at which the share of votes against it is at most

        c + 0.10 + 2 sqrt(c (1 - c) / votes),    c = 1 - exp(-0.05 i) at the i-th candidate.

    ``c`` is what chance gives where all tails are right from the i-th candidate on: after i - 1
    certain rejections, ForwardStop rejects one more if ``p_i <= c`` (5 % of the filters at the
    first candidate, 18 % at the fourth). On top come 10 % of filters that may have another tail,
    since a higher level takes excesses from all others, and two standard errors, so that luck in
    few filters does not decide. If no candidate qualifies, the one with the smallest share is
    taken, of equal ones the highest, since tails come nearer to generalized Pareto as levels rise.

    Candidates with more exceedances than the stream keeps drop out; if all do, the lowest level
    that the kept values allow is taken, untested. Where no filter can be tested the level is 0.90,
    or the lowest candidate left above it.

    Args:
        tails: The stream; it stays as it is.
        candidates: Levels in (0, 1), in any order.
        stands_for: As in :func:`salmon.fit_tails`.

    Returns:
        The choice, the same for every unit and any split of the samples.

    Raises:
        InputError: If there are no candidates, or one is not in (0, 1).

    Sources: G'Sell, Wager, Chouldechova and Tibshirani (2016), J. R. Statist. Soc. B 78(2),
    423-444; for thresholds Bader, Yan and Zhang (2018), Annals of Applied Statistics 12(1),
    310-329. The vote of the filters is our own.
    """
    levels = sorted({float(level) for level in candidates})
    if not levels or levels[0] <= 0 or levels[-1] >= 1:
        raise InputError(
            f"candidates are {levels}; at least one quantile level in (0, 1) is needed (90 % is "
            "0.9)."
        )
    n = tails.samples if stands_for is None else stands_for
    most = min(tails.capacity, tails.samples)
    beyond = [q for q in levels if exceedance_count(n, q, n + 2) >= tails.capacity]
    tried = levels[len(beyond) :]  # the lower the level, the more exceedances
    kept = f"more exceedances than the {tails.capacity} values kept per filter allow"
    if not tried:
        level = 1 - (tails.capacity - 1.5) / n  # half an exceedance from where rounding matters
        reason = f"level {level:.4g}, untested, is the lowest possible: {_list(levels)} have {kept}"
        return LevelChoice(level=level, reason=reason + ".", rejected={})
    counts = [exceedance_count(n, q, most) for q in tried]
    p = _p_values(tails, counts, weighted=stands_for is not None)
    votes = (~torch.isnan(p)).sum(0).tolist()
    against = forward_stop(p).sum(0).tolist()
    rejected = {q: a / v for q, a, v in zip(tried, against, votes, strict=True) if v}
    limits = {q: _limit(i, v) for i, (q, v) in enumerate(zip(tried, votes, strict=True), 1) if v}
    good = [q for q in rejected if rejected[q] <= limits[q]]
    if not rejected:
        level = max(UNTESTED, tried[0])
        reason = f"level {level:g}, untested: no filter has a fit to test among {n} samples"
    else:
        level = good[0] if good else min(reversed(rejected), key=lambda q: rejected[q])
        why = (
            "the lowest that few enough filters reject"
            if good
            else "too many filters reject every one, and this one the fewest"
        )
        reason = (
            f"level {level:g} of {_list(tried)}: {why} ({100 * rejected[level]:.1f} % of "
            f"{votes[tried.index(level)]} tested, {100 * limits[level]:.1f} % allowed)"
        )
    if beyond:
        reason += f"; {_list(beyond)} would have {kept}"
    return LevelChoice(level=level, reason=reason + ".", rejected=rejected)


def forward_stop(p: Tensor) -> Tensor:
    """Reject the first of each row's ordered hypotheses, up to the last with a small mean.

    Args:
        p: ``[F, M]`` p-values; those that are NaN are passed over.

    Returns:
        ``[F, M]`` bool, true where rejected; false for NaN.
    """
    tested = ~torch.isnan(p)
    terms = torch.where(tested, -torch.log1p(-p), 0.0)
    small = tested & (terms.cumsum(1) <= ALPHA * tested.cumsum(1))
    before_the_last: Tensor = small.flip(1).cumsum(1).flip(1) > 0
    return before_the_last & tested


def _p_values(tails: Tails, counts: Sequence[int], *, weighted: bool) -> Tensor:
    """``[F, M]`` p-values of the fits to each number of largest values."""

    def of(largest: Tensor, k: int) -> Tensor:
        _, excess = split_at(largest, k)
        return fit_p(excess, gpd.fit(excess), independent(excess, weighted=weighted))

    return torch.cat(
        [torch.stack([of(rows, k) for k in counts], 1) for rows in largest_in_blocks(tails)]
    )


def _limit(place: int, votes: int) -> float:
    """Largest share of votes against the ``place``-th candidate at which it qualifies."""
    chance = -math.expm1(-ALPHA * place)
    return chance + ALLOWED + 2 * math.sqrt(chance * (1 - chance) / votes)


def _list(levels: Sequence[float]) -> str:
    """Levels as in a sentence."""
    return ", ".join(f"{q:g}" for q in levels)
