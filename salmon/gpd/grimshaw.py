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

Rows in descending order, as the stream gives them, are searched on a digest first: the extremes as
they are, the values between them as means of neighbours. Only the last steps see all values.
Logarithms are taken of products of 8 terms.

Sources: Grimshaw (1993), Technometrics 35(2), 185-191; appendix C.2 of the paper.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from salmon.errors import InputError
from salmon.gpd.distribution import check_rows
from salmon.gpd.posterior import (
    HIGHEST_SHAPE,
    LOWEST_SHAPE,
    REACH,
    TERMS,
    Curve,
    nodes,
    series_through,
)
from salmon.gpd.record import FitStatus

MIN_COUNT = 10
GRID_STEP = 1.0
MARGIN = 6.0
BLOCK_ELEMENTS = 1 << 19  # 4 MB a table: smaller ones cost calls, larger ones leave the cache

_T_LIMIT = 700.0  # e^t stays finite in float64
_PRODUCT_LIMIT = 85.0  # so does a product of 8 factors e^t
_HILLS = 3  # local maxima climbed per row
_NEAR_BEST = 0.25  # a hill lower than this below the best grid value cannot win
_MAX_STEPS = 100
_STEP_TOLERANCE = 1e-6  # error after the last Newton step is of the order of its square
_WORTH_A_COPY = 0.7  # share of unfinished rows below which the finished ones are left out
_NEAR_ZERO = 1e-3  # below in |t|, log1p keeps the digits that products lose
_EXTREMES = 32  # values at each end that a digest keeps as they are
_NEIGHBOURS = 16  # values between them that it takes the mean of
_EXPONENTIAL_GAIN = 1e-9  # log-likelihood gain over xi = 0 that is rounding


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GPDFit:
    """Fitted parameters, ``[F]`` each; NaN where ``status`` names no fit."""

    xi: Tensor
    sigma: Tensor  # > 0, in the unit of the excesses
    log_likelihood: Tensor  # sum over the row
    status: Tensor  # int8, FitStatus
    count: Tensor  # int64, excesses per row
    curve: Curve | None = None  # of the likelihood, NaN in rows without a fit


def fit(excess: Tensor, *, min_count: int = MIN_COUNT, curves: bool = False) -> GPDFit:
    """Fit every row by maximum likelihood within ``xi >= -1``.

    Args:
        excess: ``[F, N]`` excesses ``>= 0``, any floating type and unit; NaN entries are padding.
        min_count: Rows with fewer excesses get the status ``TOO_FEW``.
        curves: Whether to give the curve that a posterior is made from, too.

    Returns:
        Float64 parameters with a status for each row. A row whose excesses are all equal, or
        among which there are zeros (ties with the threshold; the likelihood is then unbounded),
        is ``DEGENERATE``.
    """
    check_rows(excess)
    rows, length = excess.shape
    nan = torch.full((rows,), torch.nan, dtype=torch.float64, device=excess.device)
    xi, sigma, likelihood = nan, nan.clone(), nan.clone()
    status = torch.full((rows,), FitStatus.TOO_FEW, dtype=torch.int8, device=excess.device)
    count = torch.zeros((rows,), dtype=torch.int64, device=excess.device)
    table = torch.full((rows, 4 + TERMS), torch.nan, dtype=torch.float64, device=excess.device)
    height = max(1, BLOCK_ELEMENTS // max(1, length))
    for start in range(0, rows if length else 0, height):
        block = slice(start, start + height)
        y = excess[block].double()
        low, high = torch.aminmax(y, dim=1)
        count[block] = length
        if bool(torch.isnan(low).any()):
            padding = torch.isnan(y)
            count[block] -= padding.sum(1)
            low = y.masked_fill(padding, torch.inf).amin(1)
            y = y.masked_fill(padding, 0)  # never in place: y may be the caller's own
            high = y.amax(1)
        if bool(((low < 0) | torch.isinf(high)).any()):
            raise InputError(
                "excess holds negative or infinite values; subtract the threshold, keep what is "
                "above it, and drop samples that are not finite."
            )
        enough = count[block] >= min_count
        status[block][enough] = FitStatus.DEGENERATE
        # Ratios far below float64's range would act as zeros.
        chosen = (enough & (low / high > 1e-290) & (high > low)).nonzero().squeeze(1)
        if chosen.numel() == 0:
            continue
        if chosen.numel() < len(y):
            y, low, high = y[chosen], low[chosen], high[chosen]
        at = chosen + start
        *found, rows_of_table = _fit_rows(y, low, high, count[at].double(), curves=curves)
        xi[at], sigma[at], likelihood[at], status[at] = found
        if rows_of_table is not None:
            table[at] = rows_of_table
    return GPDFit(
        xi=xi, sigma=sigma, log_likelihood=likelihood, status=status, count=count,
        curve=Curve(table) if curves else None,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Excesses in units of the row's largest one, in 8 slabs, padded with ``r = 0``."""

    r: Tensor  # [B, 8, M]
    q: Tensor  # [B, 8, M] 1 - r, exact near r = 1
    weight: Tensor  # [M] how many excesses each of the 8 values in a column stands for
    n: Tensor  # [B] float64

    def take(self, rows: Tensor) -> "_Rows":
        """Select rows."""
        return _Rows(self.r[rows], self.q[rows], self.weight, self.n[rows])

    def total(self, values: Tensor) -> Tensor:
        """``[B]`` weighted sums of ``[B, 8, M]``."""
        return values.sum(1) @ self.weight

    def log_total(self, factor: Tensor, t: Tensor) -> Tensor:
        """``[B]`` weighted sums of the logarithms of ``[B, 8, M]`` factors at ``t``."""
        if float(t.abs().amax()) > _PRODUCT_LIMIT:
            return self.total(factor.log())
        product = factor[:, :4] * factor[:, 4:]
        product = product[:, :2] * product[:, 2:]
        return (product[:, 0] * product[:, 1]).log_() @ self.weight


def _fit_rows(
    y: Tensor, low: Tensor, high: Tensor, n: Tensor, *, curves: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Fit rows without zeros (padding apart): ``xi``, ``sigma``, log-likelihood, status, curve."""
    top = high.unsqueeze(1)
    r, q = y / top, (top - y).div_(top)
    mean = r.sum(1) / n
    slabs = (_slabs(r, 0.0), _slabs(q, 1.0))
    data = _Rows(*slabs, r.new_ones(slabs[0].shape[2]), n)
    digest = _digest(r, q, n)
    # Of a digested row q rises, so its least positive value comes soon, unless many excesses tie.
    soon = digest is not None and bool((q[:, _EXTREMES - 1] > 0).all())
    grid = _grid(q[:, :_EXTREMES] if soon else q, low / high, mean)
    level = _levels(digest or data, grid)
    row, rank, start, left, right = _hills(grid, _on_grid(level, grid))
    if digest is not None:
        start, _, _ = _climb(digest.take(row), start, left, right)
    t, xi_t, height = (torch.empty_like(start) for _ in range(3))
    for some in (rank == 0, rank > 0):  # apart, since the first ones need no copy of the data
        rows = row[some]
        if len(rows) == 0:
            continue
        chosen = data if len(rows) == len(n) else data.take(rows)
        t[some], xi_t[some], height[some] = _climb(chosen, start[some], left[some], right[some])
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
    curve = _curve(digest or data, grid, level, t_best, xi, high) if curves else None
    return xi, sigma * high, n * (likelihood - high.log()), status, curve


def _curve(data: _Rows, grid: Tensor, level: Tensor, t: Tensor, xi: Tensor, high: Tensor) -> Tensor:
    """Rows of :class:`Curve`, whose window is ``REACH`` standard errors about the fit."""
    middle, step = (grid[:, 1:] + grid[:, :-1]) / 2, grid[:, 1:] - grid[:, :-1]
    slope = (level[:, 1:] - level[:, :-1]) / step.clamp_min(1e-9)
    # log(1 + xi) of the best scale rises with t; past a row's last point the grid repeats it.
    b = torch.where(step > 0, -torch.expm1(-middle) * slope, -torch.inf).clamp_max(1 - 1e-9)
    x = -torch.log1p(-b.cummax(1).values)

    def place(wanted: Tensor) -> Tensor:
        right = torch.searchsorted(x, wanted).clamp(1, x.shape[1] - 1)
        (x0, x1), (t0, t1) = ((v.gather(1, right - 1), v.gather(1, right)) for v in (x, middle))
        return t0 + ((wanted - x0) / (x1 - x0).clamp_min(1e-9)).clamp(-1, 2) * (t1 - t0)

    # Shapes below -1/2 have no standard error: all up to -1 are possible there.
    at = torch.log1p(xi.clamp(-0.5, HIGHEST_SHAPE)).unsqueeze(1)
    reach = REACH / data.n.sqrt().unsqueeze(1)
    short = (xi < -0.5).unsqueeze(1)
    lowest, highest = math.log1p(LOWEST_SHAPE), math.log1p(HIGHEST_SHAPE)
    left = torch.where(short, lowest, at - reach).clamp_min(lowest)
    shift = torch.where(short, 0.0, t.unsqueeze(1) - place(at))
    low, high_t = place(left) + shift, place((at + reach).clamp_max(highest)) + shift
    centre, half = (low + high_t) / 2, (high_t - low).clamp_min(0.2) / 2
    points = centre + half * nodes().to(centre)
    points = torch.where(points.abs() < 1e-4, 1e-4, points)
    series = series_through(_levels(data, points) / points)
    return torch.cat([data.n.unsqueeze(1), high.unsqueeze(1), centre, half, series], 1)


def _digest(r: Tensor, q: Tensor, n: Tensor) -> _Rows | None:
    """Extremes as they are and means of neighbours between them; None for short or odd rows."""
    length = r.shape[1]
    middle = (length - 2 * _EXTREMES) // (8 * _NEIGHBOURS) * 8 * _NEIGHBOURS
    full = bool((n == length).all())
    if middle < 8 * _NEIGHBOURS or not full or bool((r[:, 1:] > r[:, :-1]).any()):
        return None
    inner = slice(_EXTREMES, _EXTREMES + middle)
    slabs = []
    for x, fill in ((r, 0.0), (q, 1.0)):
        means = x[:, inner].unflatten(1, (-1, _NEIGHBOURS)).mean(2)
        ends = torch.cat([x[:, :_EXTREMES], x[:, _EXTREMES + middle :]], 1)
        slabs.append(torch.cat([_slabs(ends, fill), _slabs(means, fill)], 2))
    weight = r.new_ones(slabs[0].shape[2])
    weight[-(middle // _NEIGHBOURS // 8) :] = _NEIGHBOURS
    return _Rows(slabs[0], slabs[1], weight, n)


def _slabs(values: Tensor, fill: float) -> Tensor:
    """``[B, N]`` to ``[B, 8, M]``, filled up to a multiple of 8."""
    pad = -values.shape[1] % 8
    whole = torch.nn.functional.pad(values, (0, pad), value=fill) if pad else values
    slabs: Tensor = whole.unflatten(1, (8, -1))
    return slabs


def _grid(q: Tensor, r_min: Tensor, mean: Tensor) -> Tensor:
    """``[B, M]`` points in ``t`` that span all possible maxima, none exactly at 0."""
    gap = torch.where(q > 0, q, 1.0).amin(1)
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


def _levels(data: _Rows, points: Tensor) -> Tensor:
    """``[B, M]`` mean logarithms, ``xi(t)`` of the module header."""
    total = torch.empty_like(points)
    factor = torch.empty_like(data.r)
    for j in range(points.shape[1]):
        t = points[:, j]
        torch.addcmul(data.q, data.r, _by_row(t.exp()), out=factor)
        total[:, j] = data.log_total(factor, t)
    return total / data.n.unsqueeze(1)


def _on_grid(xi: Tensor, grid: Tensor) -> Tensor:
    """``[B, M]`` log-likelihood per excess; ``-inf`` where ``xi < -1``."""
    value = -(xi / torch.expm1(grid)).log() - xi - 1
    return torch.where(xi >= -1, value, torch.full_like(value, -torch.inf))


def _hills(grid: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Row, rank in it, start and bracket of the grid's local maxima worth climbing."""
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
    return row, rank, grid[row, j], left, right


def _climb(data: _Rows, t: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Newton on ``l'(t)`` inside a bracket; gives ``t``, ``xi`` and ``l`` of every start."""
    t, left, right = t.clone(), left.clone(), right.clone()
    final_xi, done = torch.zeros_like(t), torch.zeros_like(t, dtype=torch.bool)
    active = torch.arange(t.numel(), device=t.device)  # the rows of data
    for _ in range(_MAX_STEPS):
        at, live = t[active], ~done[active]
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
        there = xi + first * step + second * step.square() / 2
        # A finished row stays as it is, so that none depends on the others of its block.
        final_xi[active] = torch.where(live, there, final_xi[active])
        t[active] = torch.where(live, following, at)
        done[active] |= step.abs() <= _STEP_TOLERANCE * (1 + at.abs())
        keep = (~done[active]).nonzero().squeeze(1)
        if keep.numel() == 0:
            break
        if keep.numel() < _WORTH_A_COPY * active.numel():
            active, data = active[keep], data.take(keep)
    height = -(final_xi / torch.expm1(t)).log() - final_xi - 1
    valid = (final_xi >= -1) & ~torch.isnan(height)
    return t, final_xi, torch.where(valid, height, torch.full_like(height, -torch.inf))


def _xi(data: _Rows, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``xi(t)`` and its first two derivatives, one value per row."""
    growth = t.exp()
    factor = torch.addcmul(data.q, data.r, _by_row(growth))
    total = data.log_total(factor, t)
    near = (t.abs() < _NEAR_ZERO).nonzero().squeeze(1)
    if near.numel():  # there the products are 1 to within rounding
        some = data.take(near)
        logs = torch.log1p(some.r * _by_row(torch.expm1(t[near])))
        total[near] = some.total(logs)
    u = torch.div(data.r, factor, out=factor)  # s = u e^t
    first = growth * data.total(u)
    second = growth.square() * data.total(u.square_())
    return total / data.n, first / data.n, (first - second) / data.n


def _by_row(values: Tensor) -> Tensor:
    """``[B]`` to ``[B, 1, 1]``."""
    return values.unsqueeze(1).unsqueeze(1)
