"""The predictive tail: generalized Pareto tails averaged over a posterior, and their spread.

``S(y) = sum_q w_q S(y; xi_q, sigma_q)`` over the points of a :class:`Posterior`. A value that
helped to fit its own tail is left out of it by the weights ``w_q / f(y; xi_q, sigma_q)`` (Gelfand,
Dey and Chang 1992, "Model determination using predictive distributions", Bayesian Statistics 4).

To rank, all values are looked up in a table, since a mixture costs Q times a single tail. With
``g = log(1 + y/scale)``, ``log(-log S / g)`` is nearly straight for light, heavy and exponential
tails, so that 32 values with straight lines between them give ``log S`` to 0.2 %, and to a
few per cent where a short tail ends.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from salmon.gpd.posterior import Posterior

INTERVAL = 0.9  # probability that an interval holds

_FAR = 8.0  # in log S, below the predictive tail
_DEEPEST = 1e300  # for -log S, where all tails end below the value
_Z = NormalDist().inv_cdf((1 + INTERVAL) / 2)
_NODES = 32
_BEYOND = 4.0  # in g, past the largest excess; from there on the table's tail is a power law
_BLOCK_ELEMENTS = 1 << 18  # 2 MB a table; larger ones leave the cache


def predictive_log_survival(
    posterior: Posterior, excess: Tensor, rows: Tensor, *, own: bool = False
) -> Tensor:
    """Logarithm of the predictive tail.

    Args:
        posterior: Of F filters.
        excess: ``[M]`` values > 0.
        rows: ``[M]`` filter of each value.
        own: Whether each value helped to fit its tail, and is to be left out of it.

    Returns:
        ``[M]``, ``<= 0``; ``-inf`` past the end points of all tails of the filter.
    """

    def mixed(y: Tensor, part: Posterior) -> Tensor:
        return _mixed(y, part, own=own).squeeze(1)

    return _by_block(mixed, posterior, excess, rows)


def predictive_interval(
    posterior: Posterior, excess: Tensor, rows: Tensor, *, own: bool = False
) -> tuple[Tensor, Tensor]:
    """Bounds between which ``log S`` lies with probability 0.9, ``[M]`` each.

    The predictive tail, which a few heavy tails may hold above all others, is always between them.
    """

    def bounds(y: Tensor, part: Posterior) -> Tensor:
        # The points are too few to read quantiles off; log(-log S) is nearly normal.
        tail, log_weight = (x.squeeze(1) for x in _tails(y, part, own=own))
        weight = log_weight.softmax(1)
        # Tails that end below y are as good as those that are too light by far.
        predictive = (tail + weight.log()).logsumexp(1, keepdim=True).clamp_min(-_DEEPEST)
        depth = torch.minimum(-tail, _FAR - predictive).clamp_min(1e-300).log()
        mean = (weight * depth).sum(1, keepdim=True)
        gap = depth - mean
        spread = (weight * gap.square()).sum(1, keepdim=True).sqrt()
        skew = (weight * (gap / spread.clamp_min(1e-300)) ** 3).sum(1, keepdim=True).clamp(-1, 1)
        ends = torch.tensor([_Z, -_Z]).to(mean)
        # Cornish and Fisher (1938)
        low, high = (-(mean + spread * (ends + skew * (_Z**2 - 1) / 6)).exp()).split(1, dim=1)
        return torch.cat([torch.minimum(low, predictive), torch.maximum(high, predictive)], 1)

    found = _by_block(bounds, posterior, excess, rows)
    return found[:, 0], found[:, 1]


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """The predictive tail of F filters, tabulated."""

    scale: Tensor  # [F] in the unit of the excesses
    step: Tensor  # [F] in g
    table: Tensor  # [F, nodes] log(-log S / g)

    @classmethod
    def of(cls, posterior: Posterior, *, own: bool = False) -> "Lookup":
        """Tabulate, once for each posterior."""
        if own not in posterior.lookups:
            posterior.lookups[own] = cls._made(posterior, own=own)
        found: Lookup = posterior.lookups[own]
        return found

    @classmethod
    def _made(cls, posterior: Posterior, *, own: bool) -> "Lookup":
        scale = (posterior.log_weight.exp() * posterior.sigma).sum(1)
        # No value that is left out of its tail lies above the largest one.
        step = (torch.log1p(posterior.top / scale) + (0.0 if own else _BEYOND)) / (_NODES - 1)
        places = torch.arange(_NODES).to(step)
        places[0] = 1e-3  # in place of the limit at 0
        g = step.unsqueeze(1) * places
        table = torch.empty_like(g)
        height = max(1, _BLOCK_ELEMENTS // (_NODES * posterior.xi.shape[1]))
        for rows in torch.arange(len(g)).split(height):
            y = scale[rows].unsqueeze(1) * torch.expm1(g[rows])
            table[rows] = _mixed(y, posterior.take(rows), own=own)
        return cls(scale, step, (-table / g).clamp(1e-300, 1e300).log())

    def log_survival(self, excess: Tensor, rows: Tensor) -> Tensor:
        """``[M]``, as :func:`predictive_log_survival` gives it to 0.2 %."""
        g = torch.log1p(excess / self.scale[rows])
        place = g / self.step[rows]
        left = place.long().clamp_(0, _NODES - 2)
        share = (place - left).clamp_max_(1)
        at = rows * _NODES + left
        flat = self.table.view(-1)
        return -g * torch.lerp(flat[at], flat[at + 1], share).exp()


def _by_block(
    function: Callable[[Tensor, Posterior], Tensor],
    posterior: Posterior,
    excess: Tensor,
    rows: Tensor,
) -> Tensor:
    """Apply a function of ``[B, 1]`` excesses and their posteriors, some at a time."""
    height = max(1, _BLOCK_ELEMENTS // posterior.xi.shape[1])
    parts = [
        function(y.unsqueeze(1), posterior.take(some))
        for y, some in zip(excess.split(height), rows.split(height), strict=True)
    ]
    return torch.cat(parts)


def _tails(y: Tensor, posterior: Posterior, *, own: bool) -> tuple[Tensor, Tensor]:
    """``[B, M, Q]`` log-survival of ``[B, M]`` excesses by point, and log-weights."""
    xi, sigma = posterior.xi.unsqueeze(1), posterior.sigma.unsqueeze(1)
    xi = torch.where(xi.abs() < 1e-12, 1e-12, xi)  # the limit, to all digits
    log_factor = torch.log1p((xi * (y.unsqueeze(2) / sigma)).clamp_min_(-1))
    tail = -log_factor / xi
    log_weight = posterior.log_weight.unsqueeze(1).expand_as(tail)
    if own:
        # A point whose tail ends below y had no weight, if y was among the excesses.
        ended = torch.isinf(tail)
        density = tail - log_factor - sigma.log()
        log_weight = torch.where(ended, -torch.inf, log_weight - density)
    return tail, log_weight


def _mixed(y: Tensor, posterior: Posterior, *, own: bool) -> Tensor:
    """``[B, M]`` logarithm of the mixture's tail."""
    tail, log_weight = _tails(y, posterior, own=own)
    mixed = (tail + log_weight).logsumexp(2)
    return mixed - log_weight.logsumexp(2) if own else mixed
