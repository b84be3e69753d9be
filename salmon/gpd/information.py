"""Standard errors of a generalized Pareto fit from the observed information.

The observed information is minus the matrix of second derivatives of the log-likelihood in
``(xi, sigma)`` at the fit. The maximum likelihood estimate is asymptotically normal only for
``xi > -1/2`` (Smith 1985, Biometrika 72(1), 67-90); outside, standard errors are NaN.
"""

import torch
from torch import Tensor

REGULAR_ABOVE = -0.5
_SERIES_BELOW = 0.05
_SERIES_TERMS = 12


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
    good = (xi > REGULAR_ABOVE) & (h_xx > 0) & (determinant > 0)
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
