"""Tails of one layer shrunk towards each other: empirical Bayes for generalized Pareto shapes.

A shape fitted to a hundred excesses is uncertain by 0.1, and a tail taken for certain is several
times too light where it matters. The filters of a layer are related, so their shapes get a common
prior that is estimated from all of them,

    xi_f ~ N(mu_l, tau_l^2) on [-1, 3],      log sigma_f flat,

and what is reported is the *predictive* tail: the survival averaged over the posterior of
``(xi, sigma)``, kept as ``Q`` weighted points per filter.

Of a row of ``N`` excesses only ``m(t) = mean log((1-r) + r e^t)`` of :mod:`salmon.gpd.grimshaw` is
needed, with ``r = y/top`` and ``t = log(1 + xi top/sigma)``:

    log likelihood = -N (log sigma + (1 + 1/xi) m(t)).

:class:`Curve` holds ``m(t)/t``, which is smooth at ``t = 0`` too, as a Chebyshev series. Shapes are
integrated along the curve of the best scale for each shape: with ``B = (1-e^-t) m'(t)``, which
rises with ``t``, this is ``xi = B/(1-B)``, ``sigma = top e^-t m'/(1-B)``, for any ``xi > -1``.
Around it ``log sigma`` has about the density of a log-gamma variable of shape
``N (1 - (1-e^-t) (1 - m''/m'))``, exactly so at ``xi = 0``; the points use the likelihood itself.

Sources: Efron and Morris (1975), JASA 70, 311-319, for shrinkage; Dempster, Laird and Rubin (1977),
JRSS B 39, 1-38, for the expectation-maximization algorithm.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.polynomial import chebyshev, hermite_e
from torch import Tensor

TERMS = 14  # of a Chebyshev series
REACH = 8.0  # half the window of a curve, in standard errors of log(1 + xi)
LOWEST_SHAPE, HIGHEST_SHAPE = -0.98, 3.0  # of a curve; at -1 there is no best sigma
LEAST_WITH_PRIOR = 5  # excesses that a tail needs beside its prior

_LATTICE = 32  # shapes along the curve while the prior is looked for
_USED = 0.9  # part of the window that they span; points of other scales may lie outside
_STEPS = (-3.2, -2.2, -1.2, -0.2, 0.8, 1.8, 2.8, 3.8, 5.0, 6.8)
"""Places of the points in the window, in posterior standard deviations about the posterior mean;
more of them at the heavy end, which rare tails come from."""
_SCALES = 4  # points for each shape
_BLOCK_ROWS = 2048

_FIXED_MEAN, _FIXED_STD = 0.0, 0.3
"""Prior of a network of one layer with few filters: what an imagined further layer would have."""
_FEW = 10.0  # filters of a layer that count as much as the other layers
_FLOOR = 0.25  # least tau, in standard errors of a shape: less cannot be told from none
_TOLERANCE = 1e-3  # in units of tau
_MAX_ROUNDS = 200


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """All that the likelihood needs of rows of excesses; ``[F]`` unless said otherwise."""

    table: Tensor  # [F, 4 + TERMS] the columns below

    @property
    def count(self) -> Tensor:
        """N, an effective number where excesses have weights."""
        return self.table[:, 0]

    @property
    def top(self) -> Tensor:
        """Largest excess, in its unit."""
        return self.table[:, 1]

    @property
    def centre(self) -> Tensor:
        """Of the window in ``t``."""
        return self.table[:, 2]

    @property
    def half(self) -> Tensor:
        """Half the width of the window."""
        return self.table[:, 3]

    @property
    def series(self) -> Tensor:
        """``[F, TERMS]`` Chebyshev coefficients of ``m(t)/t`` in the window."""
        return self.table[:, 4:]

    def take(self, rows: Tensor) -> "Curve":
        """Select rows."""
        return Curve(self.table[rows])

    def weighted(self, share: Tensor) -> "Curve":
        """Count a share ``[F]`` of each row's excesses."""
        return Curve(torch.cat([self.table[:, :1] * share.unsqueeze(1), self.table[:, 1:]], 1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Posterior:
    """What is known of each filter's tail: its prior, and weighted points of ``(xi, sigma)``.

    NaN in rows without a fit, and in those whose likelihood lies far beyond ``xi = 3``.
    """

    xi: Tensor  # [F, Q]
    sigma: Tensor  # [F, Q] in the unit of the excesses
    log_weight: Tensor  # [F, Q] the weights of a row add up to 1
    prior_mean: Tensor  # [F] of the filter's layer
    prior_std: Tensor  # [F]
    top: Tensor  # [F] largest excess
    lookups: dict[bool, Any] = field(default_factory=dict, init=False, repr=False)
    """Tables of the predictive tail, made when they are first needed."""

    def take(self, rows: Tensor) -> "Posterior":
        """Select rows."""
        return Posterior(**{name: column[rows] for name, column in self.columns().items()})

    def columns(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """``[F]`` mean and standard deviation of ``xi``, and the geometric mean of ``sigma``."""
        weight = self.log_weight.exp()
        mean, variance = _moments(self.xi, weight)
        return mean, variance.sqrt(), (weight * self.sigma.log()).sum(1).exp()


def nodes() -> Tensor:
    """``[TERMS]`` places in ``[-1, 1]`` where a series is taken from."""
    return torch.from_numpy(chebyshev.chebpts1(TERMS))


def series_through(values: Tensor) -> Tensor:
    """``[B, TERMS]`` values at :func:`nodes` to Chebyshev coefficients."""
    return values @ torch.from_numpy(np.linalg.inv(chebyshev.chebvander(nodes(), TERMS - 1))).T


def fit_prior(xi: Tensor, log_mass: Tensor, layer: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """Estimate the prior of every layer by the EM algorithm, from the likelihoods of its filters.

    The layers' means and spreads have a prior in turn, with parameters from all layers and one
    imagined layer of mean 0 and spread 0.3: layers of a few filters lean on the others.

    Args:
        xi: ``[F, J]`` shapes, from :func:`likelihoods`.
        log_mass: ``[F, J]`` logarithms of the likelihood at them times their spacing.
        layer: ``[F]`` numbers of the filters' layers.
        layers: L.

    Returns:
        ``[L]`` means and standard deviations, before the cut at -1 and 3.
    """
    count = torch.bincount(layer, minlength=layers).double()

    def mean(values: Tensor) -> Tensor:
        total = values.new_zeros(layers).index_add_(0, layer, values)
        return total / count.clamp_min(1)

    shape, variance = _moments(xi, log_mass.softmax(1))
    trust = count / (count + _FEW)
    floor = _FLOOR * mean(variance.sqrt())
    mu = mean(shape)
    tau2 = mean((shape - mu[layer]).square()) - mean(variance)
    tau2 = torch.maximum(tau2, floor.square().clamp_min(1e-12))
    for _ in range(_MAX_ROUNDS):
        at, spread = mu[layer].unsqueeze(1), tau2[layer].unsqueeze(1)
        posterior = (log_mass - (xi - at).square() / (2 * spread)).softmax(1)
        shape, variance = _moments(xi, posterior)
        centre = mean(shape)
        width = mean(variance + (shape - centre[layer]).square())
        # A normal variable that is cut off has other moments than its parameters say.
        cut_mean, cut_variance = _cut_off(mu, tau2)
        own_mu, own_tau2 = mu + centre - cut_mean, tau2 * width / cut_variance
        own_tau2 = torch.maximum(own_tau2, floor.square().clamp_min(1e-12))
        # The layers' own prior: means around a common one, spreads around a geometric mean.
        voices = trust.sum() + 1
        common = ((trust * own_mu).sum() + _FIXED_MEAN) / voices
        between = ((trust * (own_mu - common).square()).sum() + _FIXED_STD**2) / voices
        within = (((trust * own_tau2.log()).sum() + 2 * math.log(_FIXED_STD)) / voices).exp()
        new_tau2 = (count * own_tau2 + _FEW * within) / (count + _FEW)
        known = count / new_tau2
        new_mu = (known * own_mu + common / between) / (known + 1 / between)
        moved = torch.maximum((new_mu - mu).abs() / tau2.sqrt(), (new_tau2 / tau2).log().abs() / 2)
        mu, tau2 = new_mu, new_tau2
        if float(moved.amax()) < _TOLERANCE:
            break
    return mu, tau2.sqrt()


def posterior(
    curve: Curve, layer: Tensor, *, prior: tuple[Tensor, Tensor] | None = None
) -> Posterior:
    """Estimate the layers' priors, and the posterior of every filter.

    Args:
        curve: Of F filters, NaN in rows without a fit.
        layer: ``[F]`` numbers of their layers.
        prior: ``[F]`` means and standard deviations instead.
    """
    fitted = (~torch.isnan(curve.top)).nonzero().squeeze(1)
    xi, log_mass = likelihoods(curve.take(fitted))
    # Of tails that are heavier than any other by far nothing can be computed; they speak for none.
    sound = torch.isfinite(log_mass).any(1)
    fitted, xi, log_mass = fitted[sound], xi[sound], log_mass[sound]
    if prior is None:
        layers = int(layer.max()) + 1 if len(layer) else 0
        mean, std = fit_prior(xi, log_mass, layer[fitted], layers)
        prior = mean[layer], std[layer]
    mean, std = prior
    log_mass -= ((xi - mean[fitted, None]) / std[fitted, None]).square() / 2
    points = [curve.table.new_full((len(layer), len(_STEPS) * _SCALES), torch.nan) for _ in "123"]
    for rows, weight in zip(
        fitted.split(_BLOCK_ROWS), log_mass.softmax(1).split(_BLOCK_ROWS), strict=True
    ):
        found = _points(curve.take(rows), weight, mean[rows, None], std[rows, None])
        for column, values in zip(points, found, strict=True):
            column[rows] = values
    xi, sigma, log_weight = points
    return Posterior(
        xi=xi, sigma=sigma, log_weight=log_weight, prior_mean=mean, prior_std=std, top=curve.top
    )


def _points(curve: Curve, weight: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, ...]:
    """Points of some rows: shapes about the posterior mean, and scales for each."""
    centre, variance = _moments(_places(), weight)
    steps = torch.tensor(_STEPS, dtype=torch.float64)
    s = (centre.unsqueeze(1) + variance.sqrt().unsqueeze(1) * steps).clamp(-1, 1)
    gap = (s[:, 1:] - s[:, :-1]) / 2
    width = torch.nn.functional.pad(gap, (0, 1)) + torch.nn.functional.pad(gap, (1, 0))
    xi, log_sigma, log_slope, spread, _ = _along(curve, _terms(curve, s), s)
    z, weight = (torch.from_numpy(x) for x in hermite_e.hermegauss(_SCALES))
    log_sigma = log_sigma.unsqueeze(2) + spread.unsqueeze(2) * z
    log_mass = (
        _log_likelihood(curve, xi.unsqueeze(2), log_sigma)
        + (weight.log() + z.square() / 2)
        + (log_slope + spread.log() + width.log()).unsqueeze(2)
        - ((xi - mean) / std).square().unsqueeze(2) / 2
    ).flatten(1)
    cut = (xi > HIGHEST_SHAPE).repeat_interleave(_SCALES, 1)
    log_mass = log_mass.masked_fill(cut, -torch.inf)
    sigma = (log_sigma + curve.top.log().view(-1, 1, 1)).exp().flatten(1)
    return xi.repeat_interleave(_SCALES, 1), sigma, log_mass.log_softmax(1)


def _moments(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every row."""
    mean = (values * weight).sum(1)
    return mean, (weight * (values - mean.unsqueeze(1)).square()).sum(1)


def _places() -> Tensor:
    """``[J]`` places in the window of a curve."""
    return torch.linspace(-_USED, _USED, _LATTICE, dtype=torch.float64)


def likelihoods(curve: Curve) -> tuple[Tensor, Tensor]:
    """``[F, J]`` shapes, and logarithms of the likelihood at them times their spacing."""
    place, basis = _places(), np.eye(TERMS)
    tables = [
        torch.from_numpy(chebyshev.chebval(place.numpy(), chebyshev.chebder(basis, order)))
        for order in range(3)
    ]
    xi, mass = [], []
    for rows in torch.arange(len(curve.top)).split(_BLOCK_ROWS):
        part = curve.take(rows)
        s = place.expand(len(rows), -1)
        shape, _, log_slope, spread, best = _along(part, [part.series @ t for t in tables], s)
        alpha = spread.reciprocal().square()
        gamma = alpha - alpha * alpha.log() + torch.lgamma(alpha)  # its integral over log sigma
        xi.append(shape)
        mass.append(best + gamma + log_slope)
    shapes, log_mass = torch.cat(xi), torch.cat(mass)
    cut = ~((shapes <= HIGHEST_SHAPE) & torch.isfinite(log_mass))  # the prior has nothing there
    return shapes.masked_fill(cut, HIGHEST_SHAPE), log_mass.masked_fill(cut, -torch.inf)


def _terms(curve: Curve, s: Tensor) -> list[Tensor]:
    """``m(t)/t`` and its first two derivatives in the place ``s``, ``[F, M]`` each."""
    down = torch.from_numpy(chebyshev.chebder(np.eye(TERMS), 1))
    first = curve.series @ torch.nn.functional.pad(down, (0, 0, 0, 1)).T
    second = first @ torch.nn.functional.pad(down, (0, 0, 0, 1)).T
    return [_series(c, s) for c in (curve.series, first, second)]


def _series(coefficients: Tensor, s: Tensor) -> Tensor:
    """Chebyshev series of every row at ``[F, M]`` places, by Clenshaw's recurrence."""
    one, two = torch.zeros_like(s), torch.zeros_like(s)
    twice = 2 * s
    for k in range(coefficients.shape[1] - 1, 0, -1):
        one, two = torch.addcmul(coefficients[:, k : k + 1] - two, twice, one), one
    return torch.addcmul(coefficients[:, :1] - two, s, one)


def _along(curve: Curve, terms: list[Tensor], s: Tensor) -> tuple[Tensor, ...]:
    """The curve at places ``s``: ``xi``, its best ``log sigma``, ``log dxi/ds``.

    Then the spread of ``log sigma`` there and the log-likelihood at its best. The unit is the row's
    largest excess.
    """
    half, n = curve.half.unsqueeze(1), curve.count.unsqueeze(1)
    t = curve.centre.unsqueeze(1) + half * s
    c, first, second = terms[0], terms[1] / half, terms[2] / half.square()
    rise = (c + t * first).clamp_min(1e-300)  # m'
    bend = 2 * first + t * second  # m''
    e, fall = -torch.expm1(-t), torch.exp(-t)
    b = (e * rise).clamp_max(1 - 1e-12)
    slope = (fall * rise + e * bend) / (1 - b).square()
    alpha = (n * (1 - e * (1 - bend / rise))).clamp_min(0.5)
    log_sigma = rise.log() - t - torch.log1p(-b)
    t_by_e = torch.where(t == 0, 1.0, t / e)
    best = -n * (log_sigma + c * (t + t_by_e * (1 - b) / rise))
    return b / (1 - b), log_sigma, (slope.clamp_min(1e-300) * half).log(), alpha.rsqrt(), best


def _log_likelihood(curve: Curve, xi: Tensor, log_sigma: Tensor) -> Tensor:
    """Of ``xi`` and ``sigma``, which broadcast, in units of the largest excess."""
    shape = torch.broadcast_shapes(xi.shape, log_sigma.shape)
    small = torch.exp(-log_sigma)
    x = (xi * small).flatten(1)
    x = torch.where(x.abs() < 1e-12, 1e-12, x)  # m(t)/x is smooth at 0
    ratio = (_mean_log(curve, torch.log1p(x.clamp_min(-1))) / x).view(shape)
    value = -curve.count.view(-1, 1, 1) * (log_sigma + ratio * small * (1 + xi))
    return torch.where(x.view(shape) > -1, value, -torch.inf)


def _mean_log(curve: Curve, t: Tensor) -> Tensor:
    """``m(t)``, ``[F, M]``, which goes on straight outside the window."""
    centre, half = curve.centre.unsqueeze(1), curve.half.unsqueeze(1)
    s = (t - centre) / half
    inside = s.clamp(-1, 1)
    nearest = centre + half * inside
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64).expand(len(t), -1)
    ends, first, _ = _terms(curve, signs)
    slopes = ends + (centre + half * signs) * first / half
    slope = torch.where(s < 0, slopes[:, :1], slopes[:, 1:])
    return nearest * _series(curve.series, inside) + slope * (t - nearest)


def _cut_off(mu: Tensor, tau2: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of normal variables that are cut off at -1 and 3."""
    tau = tau2.sqrt()
    low, high = (-1 - mu) / tau, (HIGHEST_SHAPE - mu) / tau
    density = [torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi) for x in (low, high)]
    inside = (torch.special.ndtr(high) - torch.special.ndtr(low)).clamp_min(1e-3)
    shift = (density[0] - density[1]) / inside
    spread = 1 + (low * density[0] - high * density[1]) / inside - shift.square()
    return mu + tau * shift, tau2 * spread.clamp_min(1e-3)
