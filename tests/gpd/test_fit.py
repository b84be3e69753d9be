"""The fit: never below SciPy, never below a dense grid, a status for everything else."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from salmon import FitStatus, InputError, gpd

Array = npt.NDArray[np.float64]
TOLERANCE = 1e-9  # of the log-likelihood, relative; the promise is 1e-6


def fit_one(y: npt.ArrayLike) -> gpd.GPDFit:
    return gpd.fit(torch.as_tensor(np.asarray(y))[None])


def best_on_a_dense_grid(y: Array, points: int = 20_001) -> float:
    """Highest log-likelihood within xi >= -1 by brute force, on a grid of its own."""
    top = y.max()
    r, gap = y / top, (top - y) / top
    t = np.linspace(np.log(gap[gap > 0].min()) - 12, np.log(1 / r.min()) + 12, points)
    t = t[np.abs(t) > 1e-7]
    best = max(0.0, -math.log(r.mean()) - 1)  # xi = -1, and xi = 0
    for part in np.array_split(t, 1 + len(t) * len(y) // 1_000_000):
        xi = np.log(gap + r * np.exp(part[:, None])).mean(1)
        with np.errstate(invalid="ignore"):
            value = -np.log(xi / np.expm1(part)) - xi - 1
        best = max(best, float(np.max(value[xi >= -1], initial=-np.inf)))
    return len(y) * (best - math.log(top))


@pytest.mark.parametrize("xi", [-0.9, -0.5, -0.2, 0.0, 0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [20, 200, 2000])
def test_likelihood_reaches_scipy_at_every_scale(xi: float, size: int) -> None:
    for i, scale in enumerate([1e-12, 1e-6, 1.0, 1e6]):
        y = stats.genpareto.rvs(xi, scale=scale, size=size, random_state=100 * size + i)
        y = y.astype(np.float32).astype(np.float64)
        ours = fit_one(y)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # SciPy's optimiser leaves its domain at times
            shape, _, sigma = stats.genpareto.fit(y, floc=0)
        if shape < -1:  # there the likelihood has no bound, and no meaning
            continue
        theirs = stats.genpareto.logpdf(y, shape, scale=sigma).sum()
        assert ours.log_likelihood.item() >= theirs - TOLERANCE * abs(theirs)


@pytest.mark.parametrize("xi", [-0.9, -0.4, 0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("size", [10, 20, 100, 1000])
def test_likelihood_reaches_a_dense_grid(xi: float, size: int) -> None:
    for seed in range(3):
        y = np.sort(stats.genpareto.rvs(xi, scale=1e-7, size=size, random_state=seed))[::-1].copy()
        grid = best_on_a_dense_grid(y)
        assert fit_one(y).log_likelihood.item() >= grid - TOLERANCE * abs(grid)


AWKWARD: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "lognormal": lambda random, n: random.lognormal(0, random.uniform(0.1, 4), n),
    "bounded": lambda random, n: random.uniform(0, 1, n) ** random.uniform(0.2, 3),
    "outlier": lambda random, n: np.append(random.uniform(0.9, 1, n - 1), 1e5),
    "near zero": lambda random, n: np.append(
        random.exponential(1, n - 1), 10 ** -random.uniform(3, 99)
    ),
    "rounded": lambda random, n: np.round(random.exponential(3, n)) + 1,
    "two clusters": lambda random, n: np.append(
        random.uniform(0.999, 1, n), random.exponential(1e-3, n)
    ),
}


@pytest.mark.parametrize("kind", AWKWARD)
def test_likelihood_reaches_a_dense_grid_on_awkward_data(kind: str) -> None:
    random = np.random.default_rng(list(AWKWARD).index(kind))
    for _ in range(40):
        y = AWKWARD[kind](random, int(random.choice([10, 15, 40])))
        ours = fit_one(y)
        assert ours.status.item() <= FitStatus.BOUNDARY
        grid = best_on_a_dense_grid(y, points=6001)
        assert ours.log_likelihood.item() >= grid - TOLERANCE * max(1.0, abs(grid))


@pytest.mark.parametrize("xi", [-0.3, 0.0, 0.5])
def test_reported_likelihood_is_that_of_the_reported_parameters(xi: float) -> None:
    y = torch.from_numpy(stats.genpareto.rvs(xi, scale=3e-5, size=(20, 150), random_state=3))
    fit = gpd.fit(y)
    torch.testing.assert_close(
        gpd.log_likelihood(y, fit.xi, fit.sigma), fit.log_likelihood, rtol=1e-10, atol=0
    )


def test_the_score_vanishes_at_an_interior_fit() -> None:
    y = torch.from_numpy(stats.genpareto.rvs(0.3, size=(50, 300), random_state=4))
    fit = gpd.fit(y)
    xi, log_sigma = fit.xi.clone().requires_grad_(), fit.sigma.log().requires_grad_()
    gradients = torch.autograd.grad(
        gpd.log_likelihood(y, xi, log_sigma.exp()).sum(), [xi, log_sigma]
    )
    for gradient in gradients:
        assert gradient.abs().max().item() < 1e-6 * 300


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), exponent=st.integers(-60, 60), xi=st.floats(-0.8, 1.5))
def test_fits_do_not_depend_on_the_unit(seed: int, exponent: int, xi: float) -> None:
    y = torch.from_numpy(stats.genpareto.rvs(xi, size=(1, 60), random_state=seed))
    unit = 2.0**exponent  # exact, so that the result must be exact as well
    one, other = gpd.fit(y), gpd.fit(y * unit)
    assert torch.equal(one.xi, other.xi)
    assert torch.equal(one.sigma * unit, other.sigma)
    assert torch.equal(one.status, other.status)


def test_rows_are_fitted_as_if_each_were_alone() -> None:
    y = torch.from_numpy(stats.genpareto.rvs(0.2, size=(30, 80), random_state=6))
    y[::3, 50:] = math.nan
    together = gpd.fit(y)
    for i, row in enumerate(y):
        alone = gpd.fit(row[~torch.isnan(row)][None])
        assert together.xi[i].item() == pytest.approx(alone.xi.item(), rel=1e-9)
        assert together.sigma[i].item() == pytest.approx(alone.sigma.item(), rel=1e-9)
        assert together.count[i] == alone.count[0]


def test_the_given_excesses_are_left_as_they_are() -> None:
    y = torch.from_numpy(stats.genpareto.rvs(0.2, size=(3, 40), random_state=9))
    y[1, 30:] = math.nan
    before = y.clone()
    gpd.fit(y)
    torch.testing.assert_close(y, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("xi", [-0.6, -0.2, 0.0, 0.4, 1.5])
def test_rows_in_descending_order_give_the_same_fit_as_in_any_order(xi: float) -> None:
    y = torch.from_numpy(stats.genpareto.rvs(xi, scale=1e-4, size=(40, 700), random_state=5))
    one, other = gpd.fit(y), gpd.fit(y.sort(dim=1, descending=True).values)
    torch.testing.assert_close(one.xi, other.xi, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(one.log_likelihood, other.log_likelihood, rtol=1e-12, atol=0)
    assert torch.equal(one.status, other.status)


@pytest.mark.parametrize("outlier", [2.0, 1e50, 1e200])
def test_rows_in_descending_order_with_several_hills_reach_a_dense_grid(outlier: float) -> None:
    random = np.random.default_rng(10)
    y = -np.sort(-random.uniform(0.9, 1, (40, 200)), axis=1)
    y[:, :20] = -np.sort(-outlier * random.uniform(0.9, 1, (40, 20)), axis=1)
    found = gpd.fit(torch.from_numpy(y)).log_likelihood.tolist()
    for row, ours in list(zip(y, found, strict=True))[::10]:
        grid = best_on_a_dense_grid(row, points=6001)
        assert ours >= grid - TOLERANCE * abs(grid)


def test_many_rows_are_fitted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.from_numpy(stats.genpareto.rvs(0.2, size=(50, 40), random_state=7))
    whole = gpd.fit(y)
    monkeypatch.setattr("salmon.gpd.grimshaw.BLOCK_ELEMENTS", 300)
    parts = gpd.fit(y)
    torch.testing.assert_close(parts.xi, whole.xi, rtol=1e-9, atol=1e-12)
    assert torch.equal(parts.status, whole.status)


def test_known_parameters_are_found_again_in_a_large_sample() -> None:
    for xi in [-0.4, 0.0, 0.4, 1.0]:
        y = stats.genpareto.rvs(xi, scale=2e-3, size=200_000, random_state=8)
        fit = fit_one(y)
        assert fit.xi.item() == pytest.approx(xi, abs=0.015)
        assert fit.sigma.item() == pytest.approx(2e-3, rel=0.015)


def test_data_with_the_moments_of_the_exponential_is_called_exponential() -> None:
    # mean(y^2) = 2 mean(y)^2 makes xi = 0 the stationary point; the last value is bisected to it.
    others = np.arange(1, 20) / 10.0
    low, high = 1.0, 40.0
    for _ in range(200):
        middle = (low + high) / 2
        y = np.r_[others, middle]
        low, high = (middle, high) if np.mean(y**2) < 2 * np.mean(y) ** 2 else (low, middle)
    fit = fit_one(np.r_[others, low])
    assert fit.status.item() == FitStatus.EXPONENTIAL
    assert fit.xi.item() == 0.0
    assert fit.sigma.item() == pytest.approx(np.r_[others, low].mean())


def test_short_tails_end_at_the_boundary() -> None:
    y = np.linspace(0.9, 1.0, 30)
    fit = fit_one(y)
    assert fit.status.item() == FitStatus.BOUNDARY
    assert (fit.xi.item(), fit.sigma.item()) == (-1.0, 1.0)


def test_equal_values_zeros_and_short_rows_get_a_status_and_no_numbers() -> None:
    nan = math.nan
    rows = torch.full((5, 12), nan, dtype=torch.float64)
    rows[0] = 3e-7  # all equal
    rows[1] = torch.linspace(0, 1, 12)  # a zero among them
    rows[2, :9] = torch.linspace(1, 2, 9)  # too few
    rows[3] = 0.0
    fit = gpd.fit(rows)
    expected = ["DEGENERATE", "DEGENERATE", "TOO_FEW", "DEGENERATE", "TOO_FEW"]
    assert [FitStatus(code).name for code in fit.status.tolist()] == expected
    for values in (fit.xi, fit.sigma, fit.log_likelihood):
        assert bool(torch.isnan(values).all())
    assert fit.count.tolist() == [12, 12, 9, 12, 0]


def test_one_huge_outlier_is_fitted_or_refused_but_never_nan() -> None:
    for size in [1e3, 1e12, 1e200, 1e300]:
        fit = fit_one(np.r_[np.linspace(1, 2, 30), size])
        if fit.status.item() <= FitStatus.BOUNDARY:
            assert math.isfinite(fit.xi.item())
            assert math.isfinite(fit.sigma.item())
            assert fit.sigma.item() > 0
        else:
            assert fit.status.item() == FitStatus.DEGENERATE


def test_no_rows_and_no_columns_are_no_trouble() -> None:
    assert gpd.fit(torch.empty(0, 5)).xi.shape == (0,)
    assert gpd.fit(torch.empty(3, 0)).status.tolist() == [FitStatus.TOO_FEW] * 3


def test_wrong_arguments_say_what_is_needed() -> None:
    with pytest.raises(InputError, match="floating tensor"):
        gpd.fit(torch.ones(3, 4, dtype=torch.int64))
    with pytest.raises(InputError, match=r"\[filters, excesses\]"):
        gpd.fit(torch.ones(4))
    with pytest.raises(InputError, match="negative or infinite"):
        gpd.fit(torch.tensor([[-1.0, 2.0]]))
    with pytest.raises(InputError, match="negative or infinite"):
        gpd.fit(torch.tensor([[math.inf, 2.0]]))
