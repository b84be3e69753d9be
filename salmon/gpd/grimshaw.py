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
climbed by Halley's method on ``l'`` with a bracket. ``l`` is unbounded where ``xi < -1``; the
search stays in ``xi >= -1``, whose boundary solution is ``xi = -1, sigma = max(y)``.

Rows in descending order, as the stream gives them, are searched on a digest first: the extremes as
they are, and for neighbours between them two values of the same mean and variance. Only the last
step sees all values. Logarithms are taken of products of 8 terms, polynomials in ``e^t``.

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
BLOCK_ELEMENTS = 1 << 20  # 8 MB a table: smaller ones cost calls, larger ones leave the cache

_T_LIMIT = 700.0  # e^t stays finite in float64
_PRODUCT_LIMIT = 85.0  # so does a product of 8 factors e^t
_POINTS = 8  # of the grid at once
_HILLS = 3  # local maxima climbed per row
_NEAR_BEST = 0.25  # a hill lower than this below the best grid value cannot win
_MAX_STEPS = 100
_STEP_TOLERANCE = 1e-4  # error after the last step is of the order of its third power
_WORTH_A_COPY = 0.7  # share of unfinished rows below which the finished ones are left out
_NEAR_ZERO = 0.1  # below in |t|, log1p keeps the digits that products lose
_EXTREMES = 32  # values at each end that a digest keeps as they are
_NEIGHBOURS = 32  # values between them for which two stand, of the same mean and variance
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
    height = max(1, min(rows, BLOCK_ELEMENTS // max(1, length)))
    room = nan.new_zeros((4, height, length + -length % 8))  # made once: new memory is slow
    room[1] = 1
    for start in range(0, rows if length else 0, height):
        block = slice(start, start + height)
        y = room[1, : min(height, rows - start), :length].copy_(excess[block])
        low, high = torch.aminmax(y, dim=1)
        count[block] = length
        if bool(torch.isnan(low).any()):
            padding = torch.isnan(y)
            count[block] -= padding.sum(1)
            low = y.masked_fill(padding, torch.inf).amin(1)
            high = y.masked_fill_(padding, 0).amax(1)
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
            y[: len(chosen)], low, high = y[chosen], low[chosen], high[chosen]
        at = chosen + start
        *found, rows_of_table = _fit_rows(
            room[:, : len(chosen)], length, low, high, count[at].double(), curves=curves
        )
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
    weight: Tensor  # [8 M] how many excesses each value stands for, the same in every slab
    n: Tensor  # [B] float64
    room: Tensor  # [2, B, 8, M] to compute in

    def take(self, rows: Tensor) -> "_Rows":
        """Select rows."""
        r, room = self.r[rows], self.room[:, : len(rows)]
        room = room if room.shape[1] == len(rows) else r.new_empty(2, *r.shape)  # rows may repeat
        return _Rows(r, self.q[rows], self.weight, self.n[rows], room)

    def total(self, values: Tensor) -> Tensor:
        """``[B]`` weighted sums of ``[B, 8, M]``."""
        return values.flatten(1) @ self.weight


def _fit_rows(
    room: Tensor, length: int, low: Tensor, high: Tensor, n: Tensor, *, curves: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Fit the rows in ``room[1]``: ``xi``, ``sigma``, log-likelihood, status, and curve."""
    top = high.unsqueeze(1)
    r, q, spare, _ = room[:, :, :length]
    torch.div(q, top, out=r)
    torch.sub(top, q, out=q).div_(top)
    mean = r.sum(1) / n
    slabs = room.unflatten(2, (8, -1))
    data = _Rows(slabs[0], slabs[1], r.new_ones(room.shape[2]), n, slabs[2:])
    rises = torch.sub(r[:, 1:], r[:, :-1], out=spare[:, 1:]).amax() > 0
    digest = None if bool(rises | (n < length).any()) else _digest(r, q, n)
    # Of a digested row q rises, so its least positive value comes soon, unless many excesses tie.
    soon = digest is not None and bool((q[:, _EXTREMES - 1] > 0).all())
    grid = _grid(q[:, :_EXTREMES] if soon else q, low / high, mean)
    coarse = digest or data
    product = _products(coarse)
    level = _levels(coarse, product, grid)
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
    curve = None
    if curves:
        curve = _curve(coarse, product, grid, level, t_best, xi, high)
    return xi, sigma * high, n * (likelihood - high.log()), status, curve


def _curve(
    data: _Rows, product: Tensor, grid: Tensor, level: Tensor, t: Tensor, xi: Tensor, high: Tensor
) -> Tensor:
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
    series = series_through(_levels(data, product, points) / points)
    return torch.cat([data.n.unsqueeze(1), high.unsqueeze(1), centre, half, series], 1)


def _digest(r: Tensor, q: Tensor, n: Tensor) -> _Rows | None:
    """Extremes as they are, neighbours between them as two values; None for short rows."""
    middle = (r.shape[1] - 2 * _EXTREMES) // (4 * _NEIGHBOURS) * 4 * _NEIGHBOURS
    if middle <= 0:
        return None
    inner = slice(_EXTREMES, _EXTREMES + middle)
    parts, gaps = (x[:, inner].unflatten(1, (-1, _NEIGHBOURS)) for x in (r, q))
    near, gap = parts.mean(2), gaps.mean(2)
    square = torch.linalg.vector_norm(parts, dim=2).square() / _NEIGHBOURS
    spread = (square - near.square()).clamp_min(0).sqrt()
    spread = torch.minimum(spread, torch.minimum(near, gap) / 2)  # keeps r and q above 0
    slabs = []
    for x, fill, mean, way in ((r, 0.0, near, spread), (q, 1.0, gap, -spread)):
        ends = torch.cat([x[:, :_EXTREMES], x[:, _EXTREMES + middle :]], 1)
        pairs = torch.cat([mean - way, mean + way], 1)
        slabs.append(torch.cat([_slabs(ends, fill), _slabs(pairs, fill)], 2))
    weight = r.new_ones(slabs[0].shape[1:])
    weight[:, -(middle // _NEIGHBOURS // 4) :] = _NEIGHBOURS / 2
    return _Rows(slabs[0], slabs[1], weight.flatten(), n, torch.stack(slabs))


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


def _levels(data: _Rows, product: Tensor, points: Tensor) -> Tensor:
    """``[B, M]`` mean logarithms, ``xi(t)`` of the module header."""
    order = torch.arange(9, dtype=points.dtype, device=points.device)
    parts = []
    for t in points.split(_POINTS, dim=1):
        if float(t.abs().amax()) > _PRODUCT_LIMIT:
            parts.append(torch.stack([_xi(data, one)[0] for one in t.unbind(1)], 1))
            continue
        logs = torch.bmm((t.unsqueeze(2) * order).exp_(), product).log_()
        parts.append(logs @ data.weight[: logs.shape[2]] / data.n.unsqueeze(1))
    return torch.cat(parts, 1)


def _on_grid(xi: Tensor, grid: Tensor) -> Tensor:
    """``[B, M]`` log-likelihood per excess; ``-inf`` where ``xi < -1``."""
    value = -(xi / torch.expm1(grid)).log() - xi - 1
    return torch.where(xi >= -1, value, torch.full_like(value, -torch.inf))


def _products(data: _Rows) -> Tensor:
    """``[B, 9, M]`` coefficients of the products of 8 factors as polynomials in ``e^t``."""
    product = torch.stack([data.q, data.r])
    while product.shape[2] > 1:
        one, other = product.chunk(2, dim=2)
        product = other.new_zeros(2 * len(one) - 1, *one.shape[1:])
        for i, part in enumerate(one):
            product[i : i + len(other)].addcmul_(part, other)
    return product.squeeze(2).transpose(0, 1).contiguous()


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
    """Halley on ``l'(t)`` inside a bracket; gives ``t``, ``xi`` and ``l`` of every start."""
    t, left, right = t.clone(), left.clone(), right.clone()
    final_xi, done = torch.zeros_like(t), torch.zeros_like(t, dtype=torch.bool)
    active = torch.arange(t.numel(), device=t.device)  # the rows of data
    for _ in range(_MAX_STEPS):
        at, live = t[active], ~done[active]
        xi, first, second, third = _xi(data, at)
        # Derivatives of l (module header); 1/(1 - e^-t) is that of log expm1(t).
        a = -1 / torch.expm1(-at)
        f, g = first / xi, second / xi
        slope = a - first - f
        bend = a * (1 - a) - second - g + f.square()
        twist = a * (1 - a) * (1 - 2 * a) - third - third / xi + 3 * f * g - 2 * f**3
        rising = (slope > 0) | (xi < -1)  # xi < -1 is forbidden ground: turn back to the right
        left[active] = torch.where(rising, at, left[active])
        right[active] = torch.where(rising, right[active], at)
        newton = -slope / bend
        turn = newton * twist / (2 * bend)
        halley = at + newton / (1 + turn.clamp(-0.5, 0.5))
        lo, hi = left[active], right[active]
        trusted = (bend < 0) & (xi >= -1) & (halley >= lo) & (halley <= hi)
        middle = (lo + hi) / 2
        following = torch.where(trusted, halley, torch.where(middle == 0, hi / 2, middle))
        step = following - at
        there = xi + step * (first + step * (second / 2 + step * third / 6))
        # A finished row stays as it is, so that none depends on the others of its block.
        final_xi[active] = torch.where(live, there, final_xi[active])
        t[active] = torch.where(live, following, at)
        # Where rounding spoils the derivatives (near t = 0) or they mislead, steps must be smaller.
        sure = trusted & (turn.abs() < 3 * _STEP_TOLERANCE)
        tolerance = _STEP_TOLERANCE * torch.where(sure, at.abs().clamp(0.01, 1), 0.01)
        done[active] |= step.abs() <= tolerance
        keep = (~done[active]).nonzero().squeeze(1)
        if keep.numel() == 0:
            break
        if keep.numel() < _WORTH_A_COPY * active.numel():
            active, data = active[keep], data.take(keep)
    height = -(final_xi / torch.expm1(t)).log() - final_xi - 1
    valid = (final_xi >= -1) & ~torch.isnan(height)
    return t, final_xi, torch.where(valid, height, torch.full_like(height, -torch.inf))


def _xi(data: _Rows, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``xi(t)`` and its first three derivatives, one value per row."""
    growth = t.exp()
    factor = torch.addcmul(data.q, data.r, _by_row(growth), out=data.room[0])
    if float(t.abs().amax()) > _PRODUCT_LIMIT:
        total = data.total(factor.log())
    else:
        total = factor.prod(1).log_() @ data.weight[: factor.shape[2]]
    near = (t.abs() < _NEAR_ZERO).nonzero().squeeze(1)
    if near.numel():  # there the products are 1 to within rounding
        some = data.take(near)
        logs = torch.log1p(some.r * _by_row(torch.expm1(t[near])))
        total[near] = some.total(logs)
    s = torch.div(data.r, factor, out=factor).mul_(_by_row(growth))
    first, power = data.total(s), torch.square(s, out=data.room[1])
    second = first - data.total(power)
    third = 3 * second - 2 * (first - data.total(power.mul_(s)))
    return total / data.n, first / data.n, second / data.n, third / data.n


def _by_row(values: Tensor) -> Tensor:
    """``[B]`` to ``[B, 1, 1]``."""
    return values.unsqueeze(1).unsqueeze(1)
