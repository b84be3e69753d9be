"""From a stream to fitted tails: threshold, excesses, maximum likelihood, standard errors."""

import logging
import math
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from salmon import gpd
from salmon.errors import InputError
from salmon.filters import FilterIndex
from salmon.gpd import TailFit
from salmon.tails.stream import Tails

logger = logging.getLogger(__name__)

Estimator = Literal["shrunk", "ml"]

_BLOCK_ELEMENTS = 1 << 22


def fit_tails(
    tails: Tails,
    level: float = 0.90,
    *,
    index: FilterIndex | None = None,
    estimator: Estimator = "shrunk",
    min_exceedances: int | None = None,
    stands_for: int | None = None,
) -> TailFit:
    """Fit a generalized Pareto tail to every filter of a stream.

    Every filter is fitted by maximum likelihood. With ``"shrunk"`` the shapes of the filters of a
    layer are then shrunk towards each other, and probabilities are those of the predictive tail
    (:mod:`salmon.gpd.posterior`) times ``(N_k + 1) / (n + 1)``; with ``"ml"``, as in the paper,
    they are those of the fitted tail times ``N_k / n``.

    With n samples and capacity C the threshold is the ``(k+1)``-th largest value, where
    ``k = min(ceil((1 - level) n), C - 1)``; the excesses are the values above it. Beyond
    ``n = (C - 1) / (1 - level)`` the fit is that of the higher level ``1 - k/n``, which is logged.

    Args:
        tails: The stream; it stays as it is.
        level: Quantile level q of the threshold, in (0, 1).
        index: The filters; None takes them for those of one layer. Only ``"shrunk"`` needs it.
        estimator: ``"shrunk"`` or ``"ml"``.
        min_exceedances: Filters with fewer excesses get no fit; None is 5 for ``"shrunk"`` and 10
            for ``"ml"``.
        stands_for: n, where the stream got some of the samples, each as often as it counts; None
            takes as many as came. Standard errors, posteriors and tests of the fit then go by the
            effective number of excesses (:func:`salmon.gpd.effective_share`).

    Returns:
        The fits, on the CPU.

    Raises:
        InputError: If ``level`` is not in (0, 1), ``estimator`` is another word, or ``index`` is
            of other filters.
    """
    if not 0 < level < 1:
        raise InputError(f"level is {level!r}; a quantile level in (0, 1) is needed (90 % is 0.9).")
    shrunk = is_shrunk(estimator)
    if index is not None and len(index) != tails.num_filters:
        raise InputError(
            f"the stream is of {tails.num_filters} filters but index of {len(index)}; give the "
            "FilterIndex that the profiles were made with."
        )
    n = tails.samples if stands_for is None else stands_for
    most = min(tails.capacity, tails.samples)
    k = exceedance_count(n, level, most)
    if min_exceedances is None:
        min_exceedances = gpd.LEAST_WITH_PRIOR if shrunk else gpd.MIN_COUNT
    parts = [
        _fit_block(rows, k, min_exceedances, curves=shrunk, weighted=stands_for is not None)
        for rows in largest_in_blocks(tails)
    ]
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    posterior = None
    if shrunk:
        layer = torch.zeros(tails.num_filters).long() if index is None else index.layer_of
        posterior = gpd.posterior(gpd.Curve(columns.pop("curve")), layer)
        _fall_back(posterior, columns)
    more = int(shrunk)
    fit = TailFit(
        samples=n,
        dropped=tails.dropped,
        level=float(level),
        rate=(columns["exceedances"].double() + more) / max(n + more, 1),
        mean=tails.mean.cpu(),
        std=tails.std.cpu(),
        top=k,
        posterior=posterior,
        **columns,
    )
    if k == tails.capacity - 1 < exceedance_count(n, level, n + 2):
        logger.warning(
            "%d samples at level %g have more exceedances than the %d values kept per filter; the "
            "tails were fitted at level %.6g instead. Raise max_exceedances to keep %g.",
            n, level, tails.capacity, fit.effective_level, level,
        )  # fmt: skip
    return fit


def example_filters(fit: TailFit) -> Tensor:
    """Find the filters with the best, the median and the worst fit.

    Returns:
        Their numbers, in that order; fewer than three where fewer fits could be tested.
    """
    tested = (~torch.isnan(fit.ad_p)).nonzero().squeeze(1)
    order = tested[fit.ad_p[tested].argsort(descending=True, stable=True)]
    places = dict.fromkeys([0, len(order) // 2, len(order) - 1]) if len(order) else {}
    return order[list(places)]


def example_excesses(tails: Tails, filters: Tensor, fit: TailFit) -> dict[int, Tensor]:
    """Hand out what was fitted to a few filters.

    Args:
        filters: ``[K]`` numbers of filters.

    Returns:
        Rising excesses by filter number, in the order of ``filters``.
    """
    largest = tails.largest(filters).cpu().double()
    return {
        number: (row[: fit.exceedances[number]] - fit.threshold[number]).flip(0)
        for number, row in zip(filters.tolist(), largest, strict=True)
    }


def exceedance_count(samples: int, level: float, capacity: int) -> int:
    """Number k of values above the threshold, ties apart.

    Args:
        level: q in (0, 1), taken as the decimal number it prints as: ``ceil((1 - 0.7) * 10)`` is 3.
        capacity: C.

    Returns:
        ``min(ceil((1 - q) n), C - 1, n - 1)``, at least 0.
    """
    share = 1 - Fraction(repr(float(level)))
    return max(
        0, min(-(-share.numerator * samples // share.denominator), capacity - 1, samples - 1)
    )


def largest_in_blocks(tails: Tails) -> tuple[Tensor, ...]:
    """Hand out the kept values in blocks of filters that one fit can take.

    Returns:
        ``[B, min(n, C)]`` each, on the CPU, every row in descending order.
    """
    largest = tails.largest().cpu()
    height = max(1, _BLOCK_ELEMENTS // max(1, largest.shape[1]))
    blocks: tuple[Tensor, ...] = largest.split(height)
    return blocks


def split_at(largest: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Split rows of descending values into a threshold and what lies above it.

    Args:
        largest: ``[B, N]`` with ``N > k``, or no columns at all.
        k: Number of values above the threshold, ties apart.

    Returns:
        ``[B]`` float64 thresholds and ``[B, k]`` float64 excesses, NaN where a value ties with the
        threshold.
    """
    if largest.shape[1] == 0:
        threshold = torch.full((largest.shape[0],), torch.nan, dtype=torch.float64)
        return threshold, torch.empty((largest.shape[0], 0), dtype=torch.float64)
    threshold = largest[:, k].double()
    excess = largest[:, :k].double() - threshold.unsqueeze(1)
    return threshold, excess.masked_fill(excess == 0, torch.nan)


def _fall_back(posterior: gpd.Posterior, columns: dict[str, Tensor]) -> None:
    """Give filters with a fit but no posterior the tail of maximum likelihood, and say so."""
    fitted = columns["status"] <= gpd.FitStatus.BOUNDARY
    lost = fitted & torch.isnan(posterior.log_weight).any(1)
    if not bool(lost.any()):
        return
    posterior.xi[lost] = columns["xi"][lost].unsqueeze(1)
    posterior.sigma[lost] = columns["sigma"][lost].unsqueeze(1)
    posterior.log_weight[lost] = -math.log(posterior.xi.shape[1])
    logger.warning(
        "%d of %d filters have tails far beyond those of their layer, as one enormous value makes "
        "them; their probabilities are those of maximum likelihood. Look for broken samples.",
        int(lost.sum()), int(fitted.sum()),
    )  # fmt: skip


def is_shrunk(estimator: str) -> bool:
    """Check the name of an estimator, and tell which it is."""
    if estimator not in ("shrunk", "ml"):
        raise InputError(f"estimator is {estimator!r}; 'shrunk' or 'ml' is needed.")
    return estimator == "shrunk"


def fit_p(excess: Tensor, fit: gpd.GPDFit, share: Tensor) -> Tensor:
    """``[B]`` p-values of fits to descending excesses.

    Args:
        share: ``[B]`` of the excesses that are independent, by which the statistic shrinks.
    """
    statistic = gpd.anderson_darling(excess, fit.xi, fit.sigma) * share
    return gpd.goodness_p(statistic, fit.xi)


def independent(excess: Tensor, *, weighted: bool) -> Tensor:
    """``[B]`` share of descending excesses that is independent; 1 where they have no weights."""
    return gpd.effective_share(excess) if weighted else excess.new_ones(len(excess))


def _fit_block(
    largest: Tensor, k: int, min_exceedances: int, *, curves: bool, weighted: bool
) -> dict[str, Tensor]:
    """Fit some rows of descending values; gives fields of a :class:`TailFit`."""
    threshold, excess = split_at(largest, k)
    fit = gpd.fit(excess, min_count=min_exceedances, curves=curves)
    share = independent(excess, weighted=weighted)
    # Too few excesses because the top values tie is another matter than too few samples.
    tied = (fit.status == gpd.FitStatus.TOO_FEW) & (k >= min_exceedances)
    status = torch.where(tied, int(gpd.FitStatus.DEGENERATE), fit.status).to(torch.int8)
    xi_se, sigma_se = gpd.standard_errors(excess, fit.xi, fit.sigma)
    return {
        "threshold": threshold,
        "exceedances": fit.count,
        "xi": fit.xi,
        "sigma": fit.sigma,
        "xi_se": xi_se / share.sqrt(),
        "sigma_se": sigma_se / share.sqrt(),
        "log_likelihood": fit.log_likelihood,
        "status": status,
        "ad_p": fit_p(excess, fit, share),
    } | ({} if fit.curve is None else {"curve": fit.curve.weighted(share).table})
