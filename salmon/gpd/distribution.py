"""The generalized Pareto distribution of threshold excesses: survival, quantile, likelihood.

Pure tensor functions; statistics are float64. ``excess`` is saliency minus threshold, in the unit
of the saliency; ``xi`` has SciPy's sign (``xi > 0`` is heavy-tailed, ``xi < 0`` ends at
``-sigma/xi``). All arguments broadcast against each other.

Source: equations 4-5 of "Understanding Parameter Saliency via Extreme Value Theory"; Grimshaw
(1993), Technometrics 35(2), 185-191.
"""

import torch
from torch import Tensor

from salmon.errors import InputError


def check_rows(excess: Tensor) -> None:
    """Refuse anything but a floating tensor ``[F, N]``."""
    if excess.ndim != 2 or not excess.is_floating_point():
        raise InputError(
            f"excess is {excess.dtype} of shape {tuple(excess.shape)}; a floating tensor "
            "[filters, excesses] is needed. Pad shorter rows with NaN."
        )


def log_survival(excess: Tensor, xi: Tensor, sigma: Tensor) -> Tensor:
    """Natural logarithm of ``P(Y > excess)``.

    Args:
        excess: Values ``>= 0``.
        xi: Shape.
        sigma: Scale ``> 0``, in the unit of ``excess``.

    Returns:
        Float64, ``<= 0``; ``-inf`` at and past the end point of ``xi < 0``; NaN where an argument
        is NaN.
    """
    z = excess.double() / sigma.double()
    xi = xi.double()
    x = xi * z
    # log1p(x)/x tends to 1 at x = 0 and is -log(0)/1 = +inf at the end point x = -1.
    inside = torch.where(x > -1, x, torch.zeros_like(x))
    ratio = torch.where(inside == 0, torch.ones_like(x), torch.log1p(inside) / inside)
    value = -z * ratio
    return torch.where(x <= -1, torch.full_like(x, -torch.inf), value)


def survival(excess: Tensor, xi: Tensor, sigma: Tensor) -> Tensor:
    """``P(Y > excess)``.

    Args:
        excess: Values ``>= 0``.
        xi: Shape.
        sigma: Scale ``> 0``, in the unit of ``excess``.

    Returns:
        Float64 in ``[0, 1]``; NaN where an argument is NaN.
    """
    return log_survival(excess, xi, sigma).exp()


def quantile(probability: Tensor, xi: Tensor, sigma: Tensor) -> Tensor:
    """The excess below which a share ``probability`` of the tail lies.

    Args:
        probability: In ``[0, 1]``.
        xi: Shape.
        sigma: Scale ``> 0``.

    Returns:
        Float64, in the unit of ``sigma``; at probability 1 the end point, infinite for ``xi >= 0``;
        NaN for probabilities outside ``[0, 1]``.
    """
    probability, xi, sigma = probability.double(), xi.double(), sigma.double()
    valid = torch.where(
        (probability >= 0) & (probability <= 1),
        probability,
        torch.full_like(probability, torch.nan),
    )
    # y = sigma * ((1-p)^(-xi) - 1) / xi = sigma * e * expm1(xi e) / (xi e), with e = -log(1-p).
    e = -torch.log1p(-valid)
    x = xi * e
    exponential = x == 0
    safe_xi = torch.where(xi == 0, torch.ones_like(xi), xi)
    value = torch.where(exponential, e, torch.expm1(x) / safe_xi)
    # xi = 0 at e = inf gives x = NaN; the end point is infinite there.
    value = torch.where((xi == 0) & torch.isinf(e), e, value)
    return sigma * value


def log_likelihood(excess: Tensor, xi: Tensor, sigma: Tensor) -> Tensor:
    """Log-likelihood of each row of excesses.

    Args:
        excess: ``[..., N]``; NaN entries are padding and do not count.
        xi: ``[...]`` shapes.
        sigma: ``[...]`` scales.

    Returns:
        ``[...]`` float64 sums over the row; ``-inf`` where an excess is negative or lies past the
        end point, or where ``sigma <= 0``.
    """
    excess = excess.double()
    xi, sigma = xi.double().unsqueeze(-1), sigma.double().unsqueeze(-1)
    present = ~torch.isnan(excess)
    y = torch.where(present, excess, torch.zeros_like(excess))
    x = xi * y / sigma
    # log f = -log(sigma) - (1 + 1/xi) log(1 + xi y/sigma) = -log(sigma) - log1p(x) + log S(y)
    term = -sigma.log() - torch.log1p(x) + log_survival(y, xi, sigma)
    # At xi = -1 the density is 1/sigma up to and including the end point, where log S is -inf.
    term = torch.where((xi == -1) & (x >= -1), -sigma.log().expand_as(x), term)
    outside = (y < 0) | (x < -1) | (sigma <= 0)
    term = torch.where(outside | ((x == -1) & (xi != -1)), torch.full_like(x, -torch.inf), term)
    return torch.where(present, term, torch.zeros_like(term)).sum(-1)
