"""How far to trust fitted generalized Pareto tails: goodness of fit, and standard errors.

``[F]`` filters, ``[N]`` excesses; statistics are float64. With ``F_i`` the fitted probability of
the ``i``-th smallest of ``n`` excesses, the Anderson-Darling statistic is

    A^2 = -n - 1/n sum_i (2i - 1) (log F_i + log(1 - F_{n+1-i})).

It weighs both ends of the tail, has no unit, and is 0.3 to 0.5 in the median of good fits. Both
parameters were estimated from the same excesses, so that its law depends on ``xi`` and is far from
the one of a known distribution.

Standard errors come from the observed information: minus the matrix of second derivatives of the
log-likelihood in ``(xi, sigma)`` at the fit.

Sources: Choulakian and Stephens (2001), Technometrics 43(4), 478-484, case 3, but the table is our
own; Smith (1985), Biometrika 72(1), 67-90.
"""

import torch
from torch import Tensor

from salmon.errors import InputError
from salmon.gpd.distribution import check_rows, log_survival

BLOCK_ELEMENTS = 1 << 17  # 1 MB a table: about ten of them are alive at once

_REGULAR_ABOVE = -0.5  # the estimate is asymptotically normal only for larger xi
_SERIES_BELOW = 0.05
_SERIES_TERMS = 12

# Quantiles of A^2, in thousandths, where both parameters were fitted to 500 excesses: upper-tail
# probabilities LEVELS for each true xi. Made by: python -m tests.benchmarks.goodness_table
LEVELS = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.025, 0.01, 0.005, 0.001)
QUANTILES = {
    -0.9: (166, 222, 263, 326, 384, 445, 513, 593, 696, 842, 1097, 1370, 1652, 2037, 2344, 3067),
    -0.7: (159, 212, 251, 311, 366, 423, 487, 563, 661, 797, 1036, 1293, 1558, 1909, 2194, 2829),
    -0.5: (153, 204, 240, 296, 347, 401, 460, 530, 619, 744, 963, 1194, 1433, 1751, 2003, 2578),
    -0.4: (150, 199, 234, 289, 338, 389, 446, 512, 597, 715, 927, 1144, 1374, 1671, 1912, 2477),
    -0.3: (147, 195, 229, 281, 329, 378, 432, 496, 576, 689, 889, 1096, 1310, 1597, 1834, 2361),
    -0.2: (144, 191, 223, 274, 320, 367, 419, 479, 556, 664, 854, 1051, 1252, 1528, 1750, 2252),
    -0.1: (142, 187, 219, 267, 312, 357, 406, 465, 538, 641, 821, 1007, 1199, 1462, 1671, 2171),
    0.0: (139, 183, 214, 262, 304, 347, 395, 451, 521, 620, 791, 969, 1151, 1398, 1599, 2066),
    0.1: (138, 180, 210, 256, 298, 339, 385, 439, 506, 600, 764, 934, 1106, 1346, 1534, 1974),
    0.2: (136, 177, 207, 252, 292, 332, 376, 428, 492, 582, 740, 901, 1066, 1297, 1476, 1892),
    0.35: (134, 174, 202, 246, 284, 323, 365, 414, 475, 560, 710, 861, 1018, 1234, 1398, 1793),
    0.5: (132, 171, 199, 241, 278, 315, 356, 403, 462, 543, 685, 828, 978, 1181, 1338, 1713),
    0.75: (130, 168, 195, 235, 270, 306, 345, 389, 445, 521, 655, 788, 927, 1114, 1261, 1613),
    1.0: (128, 166, 192, 231, 266, 300, 337, 380, 433, 506, 633, 760, 890, 1067, 1211, 1558),
    1.5: (127, 164, 189, 226, 260, 293, 329, 370, 420, 489, 608, 728, 847, 1014, 1147, 1469),
    2.5: (126, 162, 187, 224, 257, 289, 324, 364, 413, 480, 595, 711, 828, 989, 1111, 1425),
}


def anderson_darling(excess: Tensor, xi: Tensor, sigma: Tensor) -> Tensor:
    """Distance ``A^2`` between each row of excesses and its fitted tail.

    Args:
        excess: ``[F, N]`` the excesses of the fit, any floating type and order; NaN entries are
            padding. Rows in descending order are not sorted again.
        xi: ``[F]`` fitted shapes.
        sigma: ``[F]`` fitted scales, in the unit of ``excess``.

    Returns:
        ``[F]`` float64, ``> 0``. NaN where there is no fit or no excess, and where the fit rules
        out an excess: at or past the end point, as the largest one of a boundary fit is, or at or
        below zero.
    """
    check_rows(excess)
    rows, length = excess.shape
    if xi.shape != (rows,) or sigma.shape != (rows,):
        raise InputError(
            f"excess has {rows} filters but xi has shape {tuple(xi.shape)} and sigma "
            f"{tuple(sigma.shape)}; give the parameters of the fit to these rows."
        )
    xi, sigma = xi.double().unsqueeze(1), sigma.double().unsqueeze(1)
    statistic = torch.full((rows,), torch.nan, dtype=torch.float64, device=excess.device)
    height = max(1, BLOCK_ELEMENTS // max(1, length))
    for start in range(0, rows if length else 0, height):
        block = slice(start, start + height)
        statistic[block] = _of_rows(excess[block].double(), xi[block], sigma[block])
    return torch.where(torch.isfinite(statistic), statistic, torch.nan)


def _of_rows(y: Tensor, xi: Tensor, sigma: Tensor) -> Tensor:
    """``[B]`` statistics of ``[B, N]``; not finite where the fit rules out an excess."""
    place = torch.arange(y.shape[1], dtype=y.dtype, device=y.device)
    n = torch.full_like(y[:, 0], y.shape[1])
    padded = bool(torch.isnan(y.amin(1)).any())
    if padded:
        padding = torch.isnan(y)
        n -= padding.sum(1)
        y = y.masked_fill(padding, -torch.inf)  # goes to the end; never in place: y may be given
    if bool((y[:, 1:] > y[:, :-1]).any()):
        y = y.sort(dim=1, descending=True).values
    log_s = log_survival(y, xi, sigma)
    # Where S is tiny this has an error of one rounding of 1, as -n in the result has anyway.
    log_f = torch.expm1(log_s).neg_().log_()
    if padded:
        past = place >= n.unsqueeze(1)
        log_s, log_f = log_s.masked_fill(past, 0), log_f.masked_fill(past, 0)
    # From the largest excess down, 2i - 1 weighs log S and 2n - (2i - 1) weighs log F.
    weighted = log_s.sub_(log_f).mul_(2 * place + 1).sum(1)
    statistic: Tensor = -n - 2 * log_f.sum(1) - weighted / n
    return statistic


def goodness_p(statistic: Tensor, xi: Tensor) -> Tensor:
    """Probability of a larger ``A^2`` if the excesses came from a generalized Pareto tail.

    One table serves every number of excesses from 50 on: for 50, 100 and 1,000 of them the 5 %
    quantile is 1.15, 1.14, 1.16 at ``xi = -0.4``, 0.96, 0.96, 0.97 at 0 and 0.83, 0.84, 0.83 at
    0.5; the 1 % quantile is 1.73, 1.66, 1.68; 1.43, 1.40, 1.39; and 1.20, 1.19, 1.19. The limit for
    ever more excesses is as good as reached for ``xi > -0.1``, and slow near ``xi = -0.5`` (1.22 at
    -0.4). Of true tails with ``xi`` from -0.9 to 3, 4.5 to 5.7 % have ``p < 0.05`` with 50 to 5,000
    excesses. With fewer the test is timid: 3.0 to 4.8 % with 20, 1.5 to 4.3 % with 10. That holds
    for ``xi <= -1/2`` too, where standard errors have no theory; of tails as short as that, though,
    short rows often end in a boundary fit and have no statistic.

    Args:
        statistic: ``[F]`` from :func:`anderson_darling`.
        xi: ``[F]`` fitted shapes; beyond the table, the nearest one of it stands in.

    Returns:
        ``[F]`` float64 in ``(0, 1]``, rough below 0.001, where the table ends; NaN where an
        argument is NaN.
    """
    if statistic.ndim != 1 or statistic.shape != xi.shape:
        raise InputError(
            f"statistic has shape {tuple(statistic.shape)} and xi {tuple(xi.shape)}; one number "
            "per filter is needed in each, of the same filters."
        )
    statistic, xi = statistic.double(), xi.double()
    shapes = xi.new_tensor(list(QUANTILES))
    table = xi.new_tensor(list(QUANTILES.values())) / 1000
    # A statistic of 0 has probability 1, and the table begins right above it.
    table = torch.cat([torch.zeros_like(table[:, :1]), table], 1)
    log_p = xi.new_tensor([1.0, *LEVELS]).log()
    place = torch.where(torch.isnan(xi), 0.0, xi).clamp(shapes[0], shapes[-1])
    right = torch.searchsorted(shapes, place).clamp(1, len(shapes) - 1)
    share = (place - shapes[right - 1]) / (shapes[right] - shapes[right - 1])
    row = torch.lerp(table[right - 1], table[right], share.unsqueeze(1))
    # Past the last quantile the last two go on: the law has an exponential tail.
    upper = (row <= statistic.unsqueeze(1)).sum(1).clamp(1, len(log_p) - 1)
    ends = torch.stack([upper - 1, upper], 1)
    (x0, x1), (y0, y1) = row.gather(1, ends).T, log_p[ends].T
    p = (y0 + (statistic - x0) * (y1 - y0) / (x1 - x0)).exp()
    p = p.clamp(torch.finfo(p.dtype).tiny, 1)  # NaN stays
    return torch.where(torch.isnan(xi), torch.nan, p)


def effective_share(excess: Tensor) -> Tensor:
    """How many independent values weighted excesses are worth, of their number (Kish 1965).

    Args:
        excess: ``[F, N]`` in descending order; NaN entries are padding, at the end. An excess of
            weight w comes w times.

    Returns:
        ``[F]`` float64 ``(sum w)^2 / sum w^2 / N``: 1 where all are distinct, and where none is.
    """
    present = ~torch.isnan(excess)
    other = torch.ones_like(present)
    other[:, 1:] = excess[:, 1:] != excess[:, :-1]
    number = (other.cumsum(1) - 1).masked_fill(~present, excess.shape[1])
    runs = torch.zeros((len(excess), excess.shape[1] + 1), dtype=torch.float64)
    runs.scatter_add_(1, number, torch.ones_like(number, dtype=torch.float64))
    total = present.sum(1).double()
    return torch.where(total > 0, total / runs[:, :-1].square().sum(1), 1.0)


def standard_errors(excess: Tensor, xi: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Standard errors of ``xi`` and ``sigma``.

    Args:
        excess: ``[F, N]`` the excesses of the fit; NaN entries are padding.
        xi: ``[F]`` fitted shapes.
        sigma: ``[F]`` fitted scales, in the unit of ``excess``.

    Returns:
        ``[F]`` standard error of ``xi``, and of ``sigma`` in its unit; NaN for ``xi <= -1/2``, for
        failed fits, and where the information is not positive definite.
    """
    excess, xi, sigma = excess.double(), xi.double(), sigma.double()
    present = ~torch.isnan(excess)
    z = torch.where(present, excess, 0.0) / sigma.unsqueeze(-1)
    n = present.sum(-1).double()
    x = xi.unsqueeze(-1) * z
    w = z / (1 + x)
    b, c = w.sum(-1), w.square().sum(-1)
    # d2l/dxi2 = -2a/xi^3 + 2b/xi^2 + (1 + 1/xi) c with a = sum log1p(x); it cancels for small xi.
    curvature = -2 * torch.log1p(x).sum(-1) / xi**3 + 2 * b / xi.square() + c / xi
    small = (xi.abs() < _SERIES_BELOW).nonzero().squeeze(1)
    if small.numel():
        curvature[small] = _shape_curvature(z[small], x[small], xi[small]).sum(-1)
    # Per unit of sigma, so that the matrix has no unit and its determinant cannot underflow.
    h_xx = -(curvature + c)
    h_xs = -(b - (1 + xi) * c)
    h_ss = -(n - (1 + xi) * (2 * b - xi * c))
    determinant = h_xx * h_ss - h_xs.square()
    good = (xi > _REGULAR_ABOVE) & (h_xx > 0) & (determinant > 0)
    nan = torch.full_like(xi, torch.nan)
    return (
        torch.where(good, (h_ss / determinant).sqrt(), nan),
        torch.where(good, (h_xx / determinant).sqrt() * sigma, nan),
    )


def _shape_curvature(z: Tensor, x: Tensor, xi: Tensor) -> Tensor:
    """Terms ``-2 log1p(x)/xi^3 + 2 z/(xi^2 (1+x)) + z^2/(xi (1+x)^2)``, safe near ``x = 0``."""
    # The terms cancel to second order; with x = xi z their sum is z^3 sum_m (-x)^m (-2/(m+3) - m).
    near = x.abs() < _SERIES_BELOW
    small = torch.where(near, x, torch.zeros_like(x))
    series = torch.zeros_like(x)
    for m in reversed(range(_SERIES_TERMS)):
        series = series * -small + (-2 / (m + 3) - m)
    far = torch.where(near, torch.ones_like(x), x)
    shape = torch.where(near, torch.ones_like(x), xi.unsqueeze(-1).expand_as(x))
    zz = torch.where(near, torch.ones_like(x), z)
    direct = (
        -2 * torch.log1p(far) / shape**3
        + 2 * zz / (shape.square() * (1 + far))
        + zz.square() / (shape * (1 + far).square())
    )
    return torch.where(near, z**3 * series, direct)
