"""Whether tail probabilities hold on samples that the tails were not fitted to.

At probability p, one held-out sample in 1/p should lie beyond a filter's tail of p. The ratio of
observed to predicted is 1 where the tail is true, above 1 where it is too light.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from salmon import gpd
from salmon.errors import InputError
from salmon.gpd import TailFit
from salmon.ranking.methods import log_tail_probability, z_score
from salmon.tails import Tails

BAND = 0.9
"""Probability of the bands."""

_BLOCK_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """Observed by predicted exceedance at P probabilities, mean over the filters; ``[P]`` each."""

    p: Tensor  # falling, from 0.05 to 0.1/n
    samples: int  # held out
    fitted: int  # n, samples of the fit
    filters: int  # with a fit; each counts at probabilities inside its tail
    ratio: Tensor  # of the probabilities that are reported
    low: Tensor  # band of it, by a bootstrap over the held-out samples; NaN for a stream
    high: Tensor
    rivals: dict[str, Tensor]
    """Ratios of ``"plug-in"`` (the posterior mean), ``"ml"`` and ``"normal"`` (the z-score)."""


def calibration(
    held_out: Tensor | Tails, fit: TailFit, *, draws: int = 200, seed: int = 0
) -> Calibration:
    """Compare tail probabilities with held-out samples.

    Filters of one network share the samples, so that one unusual image moves all ratios: the bands
    draw whole samples. They say nothing of the luck of the samples that were fitted; halves of
    several seeds do.

    Args:
        held_out: ``[M, F]`` saliency of samples that are not among those of ``fit``, or a stream of
            them; samples that are not finite are left out. A stream has no bands, and NaN at
            probabilities of more samples than it kept.
        fit: Tails of the same F filters.
        draws: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InputError: If the filters differ, no filter has a fit, or there are no samples.
    """
    stream = held_out if isinstance(held_out, Tails) else None
    values = held_out.largest().T if isinstance(held_out, Tails) else held_out
    filters, usable = len(fit.threshold), fit.usable
    if values.ndim != 2 or values.shape[1] != filters:
        raise InputError(
            f"held_out has {values.shape[-1]} filters but fit {filters}; both need the same ones."
        )
    if stream is None:
        values = values[torch.isfinite(values).all(1)]
    samples = len(values) if stream is None else stream.samples
    if samples == 0 or not bool(usable.any()):
        raise InputError(
            f"{samples} samples and {int(usable.sum())} fitted filters came; at least one of each "
            "is needed."
        )
    p = _probabilities(fit)
    inside = fit.rate[usable] > p.unsqueeze(1)  # [P, F]
    names = ["shown", *(["plug-in"] if fit.posterior is not None else []), "ml", "normal"]
    beyond = {name: torch.zeros((len(values), len(p)), dtype=torch.float64) for name in names}
    height = max(1, _BLOCK_ELEMENTS // filters)
    for start in range(0, len(values), height):
        block = values[start : start + height].detach().cpu().double()
        for name in names:
            log_p = _log_p(name, block, fit)[:, usable]
            for place, level in enumerate(p.log().tolist()):
                over = (log_p <= level) & inside[place]
                beyond[name][start : start + height, place] = over.sum(1).double()
    predicted = samples * p * inside.sum(1)
    ratio = {name: counts.sum(0) / predicted for name, counts in beyond.items()}
    low = high = torch.full_like(p, torch.nan)
    if stream is None:
        generator = torch.Generator().manual_seed(seed)
        times = torch.randint(samples, (draws, samples), generator=generator)
        drawn = torch.stack([beyond["shown"][rows].sum(0) for rows in times]) / predicted
        edges = torch.tensor([(1 - BAND) / 2, (1 + BAND) / 2], dtype=torch.float64)
        low, high = drawn.quantile(edges, dim=0)
    else:
        unseen = p * samples > len(values) / 2  # there may be more than were kept
        ratio = {name: each.masked_fill(unseen, torch.nan) for name, each in ratio.items()}
    return Calibration(
        p=p, samples=samples, fitted=fit.samples, filters=int(usable.sum()),
        ratio=ratio.pop("shown"), low=low, high=high, rivals=ratio,
    )  # fmt: skip


def _probabilities(fit: TailFit) -> Tensor:
    """0.05, 0.02, 0.01 and so on down to 0.1/n, within the tails of most filters."""
    least, rate = 0.1 / fit.samples, float(fit.rate[fit.usable].median())
    steps = (m * 10.0**-e for e in range(2, 12) for m in (5, 2, 1))
    inside = [p for p in steps if p < rate and p > least * 1.0001]
    return torch.tensor([*inside, least], dtype=torch.float64)


def _log_p(name: str, profile: Tensor, fit: TailFit) -> Tensor:
    """``[N, F]`` by one estimator; NaN or above the rate below the thresholds."""
    if name == "shown":
        return log_tail_probability(profile, fit)
    if name == "normal":
        log_p: Tensor = torch.special.log_ndtr(-z_score(profile, fit))
        return log_p
    xi, sigma = fit.xi, fit.sigma
    rate = fit.exceedances.double() / fit.samples
    if name == "plug-in" and fit.posterior is not None:
        xi, _, sigma = fit.posterior.moments()
        rate = fit.rate
    excess = profile - fit.threshold
    inside = gpd.log_survival(excess.clamp_min(0), xi, sigma) + rate.log()
    return torch.where(excess > 0, inside, torch.nan)
