"""Posterior, prior and predictive tail against brute-force integration, refits and simulation."""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor

from salmon import gpd
from salmon.gpd.posterior import fit_prior, likelihoods

Floats = npt.NDArray[np.float64]


def rows(xi: float, count: int, filters: int = 1, seed: int = 0) -> Tensor:
    """``[filters, count]`` descending excesses in a tiny unit."""
    y = 1e-7 * stats.genpareto(xi).rvs((filters, count), random_state=seed)
    return torch.from_numpy(-np.sort(-y, axis=1))


def posterior_of(y: Tensor, mean: float, std: float) -> gpd.Posterior:
    """The posterior under a given prior, instead of the one that would be estimated."""
    curve = gpd.fit(y, min_count=5, curves=True).curve
    assert curve is not None
    at = torch.full((len(y),), mean, dtype=torch.float64)
    return gpd.posterior(curve, torch.zeros(len(y)).long(), prior=(at, torch.full_like(at, std)))


def lattice(y: Floats, mean: float, std: float) -> tuple[Floats, Floats, Floats]:
    """Shapes ``[X, 1]``, scales ``[1, S]`` and posterior weights ``[X, S]``, by brute force."""
    xi = np.linspace(-0.9995, 3, 600)[:, None]
    scale = np.log(np.median(y)) + np.linspace(-5, 6, 500)[None]
    value = -len(y) * scale - (((xi - mean) / std) ** 2) / 2
    inside = xi * y.max() / np.exp(scale) > -1
    for one in y:
        value = value - (1 + 1 / xi) * np.log(np.where(inside, 1 + xi * one / np.exp(scale), 1))
    weight = np.exp(np.where(inside, value - value[inside].max(), -np.inf))
    return xi, np.exp(scale), weight / weight.sum()


@pytest.mark.parametrize(
    ("count", "xi", "mean", "std", "close"),
    [
        (100, 0.15, 0.1, 0.1, 0.02),
        (100, -0.3, -0.26, 0.25, 0.04),
        (100, 0.2, 0.0, 0.05, 0.02),
        (100, 1.0, 0.2, 0.3, 0.02),
        (400, 0.3, 0.2, 0.2, 0.02),
        (20, 0.3, 0.1, 0.1, 0.02),
        (5, 0.3, 0.1, 0.2, 0.15),
        (100, -0.6, -0.5, 0.2, 0.15),
    ],
)
def test_the_posterior_is_that_of_brute_force_integration(
    count: int, xi: float, mean: float, std: float, close: float
) -> None:
    y = rows(xi, count, seed=count)
    posterior = posterior_of(y, mean, std)
    shapes, scales, weight = lattice(y[0].numpy(), mean, std)
    expected = float((weight.sum(1) * shapes[:, 0]).sum())
    spread = math.sqrt(float((weight.sum(1) * (shapes[:, 0] - expected) ** 2).sum()))
    found, width, _ = posterior.moments()
    assert float(found) == pytest.approx(expected, abs=0.05 * spread)
    assert float(width) == pytest.approx(spread, rel=0.05)
    at = 1e-7 * stats.genpareto(xi).isf([0.5, 0.1, 0.01, 1e-3])
    tails = [stats.genpareto.sf(v, shapes, scale=scales) for v in at]
    integral = [float((weight * tail).sum()) for tail in tails]
    zeros = torch.zeros(len(at)).long()
    log_s = gpd.predictive_log_survival(posterior, torch.from_numpy(at), zeros)
    np.testing.assert_allclose(log_s.exp().numpy(), integral, rtol=close)
    low, high = gpd.predictive_interval(posterior, torch.from_numpy(at), zeros)
    for tail, ends in zip(tails, zip(low.exp().tolist(), high.exp().tolist(), strict=True),
                          strict=True):  # fmt: skip
        order = np.argsort(tail, axis=None)
        reached = weight.ravel()[order].cumsum()
        exact = tail.ravel()[order][np.searchsorted(reached, [0.05, 0.95])]
        # In units of the interval's width in log S, where S is not much below its mean.
        least = 1e-3 * float((weight * tail).sum())
        mine, theirs = (np.log(np.maximum(x, least)) for x in (ends, exact))
        np.testing.assert_allclose(mine, theirs, atol=0.15 * (theirs[1] - theirs[0]))


def test_the_prior_is_the_one_of_the_highest_marginal_likelihood() -> None:
    random = np.random.default_rng(3)
    shapes = random.normal(0.2, 0.15, (150, 1))
    y = np.expm1(shapes * random.exponential(size=(150, 60))) / shapes
    curve = gpd.fit(torch.from_numpy(-np.sort(-y, axis=1)), curves=True).curve
    assert curve is not None
    mean, std = fit_prior(*likelihoods(curve), torch.zeros(150).long(), 1)

    xi = np.linspace(-0.9, 2.0, 117)
    scale = np.exp(np.linspace(-2, 2, 81))
    marginal = np.empty((150, len(xi)))
    for i, x in enumerate(np.where(np.abs(xi) > 1e-9, xi, 1e-9)):
        inside = x * y.max(1)[:, None] / scale > -1
        s = np.log1p(np.maximum(x * y[:, None] / scale[None, :, None], -1 + 1e-12)).sum(2)
        log_l = np.where(inside, -60 * np.log(scale) - (1 + 1 / x) * s, -np.inf)
        marginal[:, i] = np.logaddexp.reduce(log_l, axis=1)
    marginal = np.exp(marginal - marginal.max(1, keepdims=True))

    def loss(at: Floats) -> float:
        density = stats.norm.pdf(xi, at[0], np.exp(at[1]))
        return -float(np.log(marginal @ density).sum())

    best = optimize.minimize(loss, [0.0, -2.0], method="Nelder-Mead").x
    # The imagined layers of the network's prior move it by a little.
    assert float(mean) == pytest.approx(best[0], abs=0.01)
    assert float(std) == pytest.approx(np.exp(best[1]), rel=0.12)


def test_layers_of_unlike_shape_have_unlike_priors_and_a_small_one_leans_on_the_others() -> None:
    parts = [rows(0.1, 100, 200, seed=1), rows(1.2, 100, 200, seed=2), rows(3.0, 100, 2, seed=3)]
    curve = gpd.fit(torch.cat(parts), curves=True).curve
    assert curve is not None
    layer = torch.tensor([0] * 200 + [1] * 200 + [2] * 2)
    mean, std = fit_prior(*likelihoods(curve), layer, 4)
    assert mean[:2].tolist() == pytest.approx([0.1, 1.2], abs=0.03)
    assert bool((std[:2] < 0.15).all())
    assert 1.0 < float(mean[2]) < 3.0
    assert 0.2 < float(mean[3]) < 1.0  # a layer without a fit has what layers have in common
    alone = gpd.fit(rows(1.0, 20, seed=4), curves=True)
    assert alone.curve is not None
    shrunk, _ = fit_prior(*likelihoods(alone.curve), torch.zeros(1).long(), 1)
    assert 0.0 < float(shrunk) < 0.7 * float(alone.xi)  # a single filter is held to a fixed prior


def test_the_unit_and_the_other_filters_of_a_block_change_nothing() -> None:
    y, layer = rows(0.2, 80, 12, seed=5), torch.arange(12) // 6
    curves = [gpd.fit(y * unit, curves=True).curve for unit in (1.0, 2.0**40)]
    assert curves[0] is not None
    assert curves[1] is not None
    one, other = (gpd.posterior(curve, layer) for curve in curves if curve is not None)
    torch.testing.assert_close(one.xi, other.xi, rtol=1e-9, atol=0)
    torch.testing.assert_close(one.sigma * 2.0**40, other.sigma, rtol=1e-9, atol=0)
    alone = gpd.fit(y[3:4], curves=True).curve
    assert alone is not None
    torch.testing.assert_close(alone.table, curves[0].table[3:4], rtol=1e-9, atol=1e-14)


def test_a_value_left_out_of_its_tail_is_judged_as_by_a_fit_without_it() -> None:
    y = rows(0.3, 60, seed=7)
    own = gpd.predictive_log_survival(
        posterior_of(y, 0.1, 0.2), y[0], torch.zeros(60).long(), own=True
    )
    for place in (0, 1, 5, 30, 59):
        without = posterior_of(torch.cat([y[:, :place], y[:, place + 1 :]], 1), 0.1, 0.2)
        expected = gpd.predictive_log_survival(
            without, y[0, place : place + 1], torch.zeros(1).long()
        )
        assert float(own[place]) == pytest.approx(float(expected), rel=0.02, abs=1e-3)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("xi", [-0.4, 0.0, 0.4, 1.5])
def test_the_table_gives_the_predictive_tail(xi: float, own: bool) -> None:
    y = rows(xi, 100, 20, seed=11)
    posterior = posterior_of(y, xi, 0.2)
    at = y.flatten() if own else torch.cat([y, 2 * y, 1e-3 * y], 1).flatten()
    filters = torch.arange(20).repeat_interleave(len(at) // 20)
    exact = gpd.predictive_log_survival(posterior, at, filters, own=own)
    table = gpd.Lookup.of(posterior, own=own)
    assert gpd.Lookup.of(posterior, own=own) is table
    seen = exact > -20  # probabilities of any interest
    found = table.log_survival(at, filters)
    error = ((found - exact) / exact)[seen].abs()
    assert float(error.median()) < 2e-3
    assert float(error.quantile(0.99)) < 4e-2  # short tails, beyond all excesses


def test_the_true_tail_lies_in_nine_of_ten_intervals() -> None:
    random = np.random.default_rng(1)
    xi = random.normal(0.15, 0.1, (400, 1))
    y = torch.from_numpy(-np.sort(-np.expm1(xi * random.exponential(size=(400, 60))) / xi))
    curve = gpd.fit(y, curves=True).curve
    assert curve is not None
    posterior = gpd.posterior(curve, torch.zeros(400).long())
    for s in (0.1, 0.01, 0.001):
        at = torch.from_numpy(np.expm1(-xi[:, 0] * math.log(s)) / xi[:, 0])
        low, high = gpd.predictive_interval(posterior, at, torch.arange(400))
        held = ((low <= math.log(s)) & (math.log(s) <= high)).double().mean()
        assert 0.84 < float(held) < 0.97


def test_intervals_past_the_end_points_of_all_tails_are_of_probability_zero() -> None:
    random = np.random.default_rng(2)
    y = torch.from_numpy(-np.sort(-random.uniform(size=(20, 1000))))
    curve = gpd.fit(y, curves=True).curve
    assert curve is not None
    posterior = gpd.posterior(curve, torch.zeros(20).long())
    at, rows = torch.full((20,), 2.0).double(), torch.arange(20)
    assert bool(torch.isneginf(gpd.predictive_log_survival(posterior, at, rows)).all())
    for bound in gpd.predictive_interval(posterior, at, rows):
        assert bool((bound < -1e200).all())


def test_filters_without_a_fit_have_no_posterior() -> None:
    y = rows(0.2, 20, 3)
    y[1, 4:] = math.nan
    curve = gpd.fit(y, min_count=5, curves=True).curve
    assert curve is not None
    posterior = gpd.posterior(curve, torch.zeros(3).long())
    assert torch.isnan(posterior.xi).all(1).tolist() == [False, True, False]
    none = gpd.posterior(replace(curve, table=curve.table[1:2]), torch.zeros(1).long())
    assert bool(torch.isnan(none.sigma).all())


SERIES = {
    "weibull": stats.weibull_min(0.7),
    "lognormal": stats.lognorm(1),
    "gamma": stats.gamma(0.5),
    "t": stats.t(4),
}


@pytest.mark.slow
@pytest.mark.parametrize("k", [50, 100])
@pytest.mark.parametrize("series", ["gpd", *SERIES])
def test_one_in_a_thousand_lies_beyond_a_predictive_tail_of_a_thousandth(
    series: str, k: int
) -> None:
    ratios = [_observed_by_predicted(series, k, seed) for seed in range(4)]
    thousandth, tenth_of_it = np.mean(ratios, axis=0)
    assert 0.8 < thousandth < 1.25
    assert 0.5 < tenth_of_it < 2.0


def _observed_by_predicted(series: str, k: int, seed: int) -> list[float]:
    """True exceedance of the quantiles predicted at 1e-3 and 1e-4, by these, over 400 filters."""
    random = np.random.default_rng(seed)
    n = 10 * k
    xi = random.normal(0.15, 0.1, (400, 1))
    if series == "gpd":
        x = np.expm1(xi * random.exponential(size=(400, n))) / xi
    else:
        x = SERIES[series].rvs((400, n), random_state=random)
    x = -np.sort(-x, axis=1)
    threshold = torch.from_numpy(x[:, k])
    curve = gpd.fit(torch.from_numpy(x[:, :k] - x[:, k : k + 1]), min_count=5, curves=True).curve
    assert curve is not None
    posterior = gpd.posterior(curve, torch.zeros(400).long())
    rate = (k + 1) / (n + 1)

    def gap(at: Tensor, wanted: float) -> Tensor:
        log_s = gpd.predictive_log_survival(posterior, at, torch.arange(400))
        return log_s + math.log(rate) - math.log(wanted)

    found = []
    for wanted in (1e-3, 1e-4):
        low = torch.full((400,), 1e-9, dtype=torch.float64)
        high = torch.full((400,), 1e9, dtype=torch.float64)
        for _ in range(80):  # by bisection of the logarithm
            middle = (low * high).sqrt()
            light = gap(middle, wanted) < 0
            low, high = torch.where(light, low, middle), torch.where(light, middle, high)
        at = (low + threshold).numpy()
        gpd_tail = series == "gpd"
        true = stats.genpareto.sf(at, xi[:, 0]) if gpd_tail else SERIES[series].sf(at)
        found.append(float(true.mean()) / wanted)
    return found
