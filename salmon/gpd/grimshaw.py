"""Maximum likelihood of the generalized Pareto distribution for many filters at once.

Grimshaw's reduction leaves one equation in ``theta = xi/sigma``. Here every row is measured in
units of its largest excess, ``r = y/max(y)`` in ``(0, 1]``, and searched in
``t = log(1 + theta max(y))``, where

    xi(t)  = mean log((1-r) + r e^t),        sigma(t) = xi(t) / expm1(t),
    l(t)   = -log sigma(t) - xi(t) - 1       (log-likelihood per excess),
    xi'(t) = mean s,  xi''(t) = mean s(1-s), with s = r e^t / ((1-r) + r e^t).

Each term of ``xi`` is a softened hinge of width about 1 in ``t``, wherever the data lie. So a grid
of spacing ``GRID_STEP`` sees every hill of ``l``; below ``log(min(1-r)) - MARGIN`` and above
``log(1/min(r)) + MARGIN`` all hinges are straight and ``l`` has no maximum. The best hills are
climbed by Newton's method on ``l'`` with a bracket. ``l`` is unbounded where ``xi < -1``; the
search stays in ``xi >= -1``, whose boundary solution is ``xi = -1, sigma = max(y)``.

Sources: Grimshaw (1993), Technometrics 35(2), 185-191; appendix C.2 of the paper.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from salmon.errors import InputError
from salmon.gpd.record import FitStatus

MIN_COUNT = 10
GRID_STEP = 1.0
MARGIN = 6.0
BLOCK_ELEMENTS = 1 << 20

_T_LIMIT = 700.0  # e^t stays finite in float64
_PRODUCT_LIMIT = 85.0  # so does a product of 8 factors e^t
_HILLS = 3  # local maxima climbed per row
_NEAR_BEST = 0.25  # a hill lower than this below the best grid value cannot win
_MAX_STEPS = 100
_STEP_TOLERANCE = 1e-7  # error after the last Newton step is of the order of its square
_DEEP = -5.0  # below, log1p(expm1(t) r) loses digits at r = 1
_EXPONENTIAL_GAIN = 1e-9  # log-likelihood gain over xi = 0 that is rounding


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GPDFit:
    """Fitted parameters, ``[F]`` each; NaN where ``status`` names no fit."""

    xi: Tensor
    sigma: Tensor  # > 0, in the unit of the excesses
    log_likelihood: Tensor  # sum over the row
    status: Tensor  # int8, FitStatus
    count: Tensor  # int64, excesses per row


def fit(excess: Tensor, *, min_count: int = MIN_COUNT) -> GPDFit:
    """Fit every row by maximum likelihood within ``xi >= -1``.

    Args:
        excess: ``[F, N]`` excesses ``>= 0``, any floating type and unit; NaN entries are padding.
        min_count: Rows with fewer excesses get the status ``TOO_FEW``.

    Returns:
        Float64 parameters with a status for each row. A row whose excesses are all equal, or
        among which there are zeros (ties with the threshold; the likelihood is then unbounded),
        is ``DEGENERATE``.

    Raises:
        InputError: If ``excess`` is no floating matrix, or holds negative or infinite values.
    """
    if excess.ndim != 2 or not excess.is_floating_point():
        raise InputError(
            f"excess is {excess.dtype} of shape {tuple(excess.shape)}; a floating tensor "
            "[filters, excesses] is needed. Pad shorter rows with NaN."
        )
    if bool(((excess < 0) | torch.isinf(excess)).any()):
        raise InputError(
            "excess holds negative or infinite values; subtract the threshold, keep what is above "
            "it, and drop samples that are not finite."
        )
    rows = excess.shape[0]
    nan = torch.full((rows,), torch.nan, dtype=torch.float64, device=excess.device)
    xi, sigma, likelihood = nan, nan.clone(), nan.clone()
    count = (~torch.isnan(excess)).sum(1)
    status = torch.full_like(count, FitStatus.DEGENERATE, dtype=torch.int8)
    status[count < min_count] = FitStatus.TOO_FEW
    height = max(1, BLOCK_ELEMENTS // max(1, excess.shape[1]))
    for start in range(0, rows, height):
        block = slice(start, start + height)
        y = excess[block].double()
        padding = torch.isnan(y)
        low = y.masked_fill(padding, torch.inf).amin(1) if y.shape[1] else nan[block]
        high = y.masked_fill(padding, 0).amax(1) if y.shape[1] else nan[block]
        # Ratios far below float64's range would act as zeros.
        fittable = (count[block] >= min_count) & (low / high > 1e-290) & (high > low)
        chosen = fittable.nonzero().squeeze(1)
        if chosen.numel() == 0:
            continue
        rows_y = y[chosen].masked_fill_(padding[chosen], 0)
        found = _fit_rows(rows_y, low[chosen], high[chosen], count[block][chosen].double())
        at = chosen + start
        xi[at], sigma[at], likelihood[at], status[at] = found
    return GPDFit(xi=xi, sigma=sigma, log_likelihood=likelihood, status=status, count=count)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Excesses in units of the row's largest one, padded with ``r = 0``."""

    r: Tensor  # [B, N]
    q: Tensor  # [B, N] 1 - r, exact near r = 1
    n: Tensor  # [B] float64

    def take(self, rows: Tensor) -> "_Rows":
        """Select rows."""
        return _Rows(self.r[rows], self.q[rows], self.n[rows])


def _fit_rows(y: Tensor, low: Tensor, high: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    """Fit rows without zeros (padding apart): ``xi``, ``sigma``, log-likelihood, status."""
    top = high.unsqueeze(1)
    data = _Rows(y / top, (top - y) / top, n)
    mean = data.r.sum(1) / n
    grid = _grid(data, low / high, mean)
    value = _on_grid(data, grid)
    row, start, left, right = _hills(grid, value)
    t, xi_t, height = _climb(data.take(row), start, left, right)
    # Best hill of each row: scatter the heights, then pick whoever reached the maximum.
    best = torch.full_like(n, -torch.inf).scatter_reduce(0, row, height, "amax")
    t_best, xi = torch.zeros_like(n), torch.zeros_like(n)
    winner = height >= best[row]
    t_best[row[winner]], xi[row[winner]] = t[winner], xi_t[winner]
    exponential = -mean.log() - 1
    ok = best > torch.maximum(exponential + _EXPONENTIAL_GAIN / n, torch.zeros_like(best))
    boundary = ~ok & (exponential <= 0)
    sigma = torch.where(ok, xi / torch.expm1(t_best), torch.where(boundary, 1.0, mean))
    xi = torch.where(ok, xi, torch.where(boundary, -1.0, 0.0))
    likelihood = torch.where(ok, best, torch.where(boundary, 0.0, exponential))
    status = torch.full_like(n, FitStatus.EXPONENTIAL, dtype=torch.int8)
    status[ok] = FitStatus.OK
    status[boundary] = FitStatus.BOUNDARY
    return xi, sigma * high, n * (likelihood - high.log()), status


def _grid(data: _Rows, r_min: Tensor, mean: Tensor) -> Tensor:
    """``[B, M]`` points in ``t`` that span all possible maxima, none exactly at 0."""
    gap = torch.where(data.q > 0, data.q, torch.ones_like(data.q)).amin(1)
    lower = gap.log() - MARGIN
    # Grimshaw's upper bound on theta, in logarithms, against the end of the last hinge.
    bound = torch.log(2 * (mean - r_min).clamp_min(torch.finfo(torch.float64).tiny))
    upper = torch.minimum(
        torch.logaddexp(bound - 2 * r_min.log(), torch.zeros_like(bound)), MARGIN - r_min.log()
    )
    upper = upper.clamp(min=GRID_STEP, max=_T_LIMIT)
    lower = lower.clamp(min=-_T_LIMIT)
    points = int(((upper - lower).amax() / GRID_STEP).ceil()) + 1
    # A row's points do not depend on the other rows; those past its end repeat the end.
    steps = GRID_STEP * torch.arange(points, dtype=lower.dtype, device=lower.device)
    grid = torch.minimum(lower.unsqueeze(1) + steps, upper.unsqueeze(1))
    return torch.where(grid.abs() < 1e-6, torch.full_like(grid, 1e-6), grid)


def _on_grid(data: _Rows, grid: Tensor) -> Tensor:
    """``[B, M]`` log-likelihood per excess; ``-inf`` where ``xi < -1``."""
    pad = -data.r.shape[1] % 8
    r = torch.nn.functional.pad(data.r, (0, pad))
    q = torch.nn.functional.pad(data.q, (0, pad), value=1.0)
    total = torch.empty_like(grid)
    factor = torch.empty_like(r)
    for j in range(grid.shape[1]):
        t = grid[:, j]
        torch.addcmul(q, r, t.exp().unsqueeze(1), out=factor)
        if float(t.abs().amax()) > _PRODUCT_LIMIT:
            total[:, j] = factor.log().sum(1)
            continue
        product, width = factor, factor.shape[1]
        for _ in range(3):  # products of 8 factors: one logarithm for 8 excesses
            width //= 2
            product = product[:, :width] * product[:, width:]
        total[:, j] = product.log().sum(1)
    xi = total / data.n.unsqueeze(1)
    value = -(xi / torch.expm1(grid)).log() - xi - 1
    return torch.where(xi >= -1, value, torch.full_like(value, -torch.inf))


def _hills(grid: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Row, start and bracket of the grid's local maxima worth climbing."""
    points = grid.shape[1]
    edge = torch.full_like(value[:, :1], -torch.inf)
    before, after = torch.cat([edge, value[:, :-1]], 1), torch.cat([value[:, 1:], edge], 1)
    hill = (value >= before) & (value >= after) & (value > -torch.inf)
    height = torch.where(hill, value, torch.full_like(value, -torch.inf))
    best, at = height.topk(min(_HILLS, points), dim=1)
    worth = best > best[:, :1] - _NEAR_BEST
    row, rank = worth.nonzero(as_tuple=True)
    j = at[row, rank]
    left, right = grid[row, (j - 1).clamp(min=0)], grid[row, (j + 1).clamp(max=points - 1)]
    return row, grid[row, j], left, right


def _climb(data: _Rows, t: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Newton on ``l'(t)`` inside a bracket; gives ``t``, ``xi`` and ``l`` of every start."""
    t, left, right = t.clone(), left.clone(), right.clone()
    final_xi = torch.zeros_like(t)
    active = torch.arange(t.numel(), device=t.device)
    for _ in range(_MAX_STEPS):
        at = t[active]
        xi, first, second = _xi(data, at)
        # l' and l'' of the module header; 1/(1 - e^-t) is the derivative of log expm1(t).
        a = -1 / torch.expm1(-at)
        slope = a - first * (1 + 1 / xi)
        bend = a * (1 - a) - second * (1 + 1 / xi) + (first / xi).square()
        rising = (slope > 0) | (xi < -1)  # xi < -1 is forbidden ground: turn back to the right
        left[active] = torch.where(rising, at, left[active])
        right[active] = torch.where(rising, right[active], at)
        newton = at - slope / bend
        lo, hi = left[active], right[active]
        trusted = (bend < 0) & (xi >= -1) & (newton >= lo) & (newton <= hi)
        middle = (lo + hi) / 2
        following = torch.where(trusted, newton, torch.where(middle == 0, hi / 2, middle))
        step = following - at
        # Taylor to second order: the error is of the third power of a step below the tolerance.
        final_xi[active] = xi + first * step + second * step.square() / 2
        t[active] = following
        done = step.abs() <= _STEP_TOLERANCE * (1 + at.abs())
        keep = (~done).nonzero().squeeze(1)
        if keep.numel() == 0:
            break
        if keep.numel() < active.numel():
            active, data = active[keep], data.take(keep)
    height = -(final_xi / torch.expm1(t)).log() - final_xi - 1
    valid = (final_xi >= -1) & ~torch.isnan(height)
    return t, final_xi, torch.where(valid, height, torch.full_like(height, -torch.inf))


def _xi(data: _Rows, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``xi(t)`` and its first two derivatives, one value per row."""
    grown = data.r * t.exp().unsqueeze(1)
    factor = data.q + grown
    logs = torch.log1p(data.r * torch.expm1(t).unsqueeze(1))
    deep = (t < _DEEP).nonzero().squeeze(1)
    if deep.numel():
        logs[deep] = factor[deep].log()
    s = grown / factor
    total = s.sum(1)
    return logs.sum(1) / data.n, total / data.n, (total - s.square().sum(1)) / data.n
