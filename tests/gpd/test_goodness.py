"""Anderson-Darling against SciPy, fifty digits and the limit law; p-values that keep their size."""

import math

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats
from torch import Tensor

from salmon import InputError, gpd
from salmon.gpd.goodness import LEVELS, QUANTILES

Array = npt.NDArray[np.float64]


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def textbook(y: Array, xi: float, sigma: float) -> float:
    """The formula as it is printed, one excess after another."""
    law = stats.genpareto(xi, scale=sigma)
    ordered = np.sort(y)
    n = len(ordered)
    total = sum(
        (2 * i - 1) * (law.logcdf(ordered[i - 1]) + law.logsf(ordered[n - i]))
        for i in range(1, n + 1)
    )
    return float(-n - total / n)


def exact(y: list[float], xi: float) -> float:
    """The same with fifty digits, and sigma = 1."""
    with mpmath.workdps(50):
        ordered = [mpmath.mpf(v) for v in sorted(y)]
        shape, n = mpmath.mpf(xi), len(y)
        log_s = [-mpmath.log1p(shape * v) / shape if xi else -v for v in ordered]
        log_f = [mpmath.log(-mpmath.expm1(v)) for v in log_s]
        total = sum((2 * i + 1) * (log_f[i] + log_s[n - 1 - i]) for i in range(n))
        return float(-n - total / n)


def fitted(y: Tensor) -> tuple[Tensor, Tensor]:
    """Statistic and p-value of every row."""
    fit = gpd.fit(y)
    statistic = gpd.anderson_darling(y, fit.xi, fit.sigma)
    return statistic, gpd.goodness_p(statistic, fit.xi)


@pytest.mark.parametrize("xi", [-0.8, -0.3, -1e-9, 0.0, 1e-12, 1e-4, 0.3, 1.2])
@pytest.mark.parametrize("size", [1, 2, 17, 150])
def test_statistic_is_the_one_of_the_textbook(xi: float, size: int) -> None:
    y = stats.genpareto.rvs(xi, scale=3e-6, size=size, random_state=size)
    ours = gpd.anderson_darling(torch.from_numpy(y)[None], vector(xi), vector(3e-6))
    assert ours.dtype == torch.float64
    assert ours.item() == pytest.approx(textbook(y, xi, 3e-6), rel=1e-9)


@pytest.mark.parametrize(
    ("xi", "extremes"),
    [
        (0.5, [1e-300, 1e-17, 1e12, 1e150]),
        (0.0, [1e-300, 1e-17, 45.0, 800.0]),
        (-0.5, [1e-300, 1e-17, 2 - 1e-12, 2 - 1e-15]),
        (1e-14, [1e-300, 1e-17, 45.0, 800.0]),
    ],
)
def test_values_near_both_ends_keep_their_digits(xi: float, extremes: list[float]) -> None:
    y = [0.1, 0.4, 0.7, 1.1, 1.9, *extremes]
    ours = gpd.anderson_darling(vector(*y)[None], vector(xi), vector(1.0))
    assert ours.item() == pytest.approx(exact(y, xi), rel=1e-12)


def test_rows_are_measured_as_if_each_were_alone_whatever_their_padding() -> None:
    y = torch.from_numpy(stats.genpareto.rvs(0.2, scale=1e-5, size=(30, 90), random_state=1))
    for i, row in enumerate(y):  # padding anywhere, also inside the row
        row[torch.randperm(90, generator=torch.Generator().manual_seed(i))[: 2 * i]] = math.nan
    fit = gpd.fit(y)
    together = gpd.anderson_darling(y, fit.xi, fit.sigma)
    for i, row in enumerate(y):
        alone = row[~torch.isnan(row)][None]
        one = gpd.anderson_darling(alone, fit.xi[i, None], fit.sigma[i, None])
        assert together[i].item() == pytest.approx(one.item(), rel=1e-11)


def test_the_order_of_a_row_does_not_matter() -> None:
    y = torch.from_numpy(stats.genpareto.rvs(0.2, size=(20, 120), random_state=2))
    y[::2, 100:] = math.nan
    xi, sigma = torch.full((20,), 0.2), torch.ones(20)
    some = gpd.anderson_darling(y, xi, sigma)
    down = gpd.anderson_darling(
        y.nan_to_num(0).sort(1, descending=True).values[::2, :100], xi[::2], sigma[::2]
    )
    assert torch.equal(some, gpd.anderson_darling(y.flip(1), xi, sigma))
    assert torch.equal(some, gpd.anderson_darling(y.sort(1).values, xi, sigma))
    torch.testing.assert_close(some[::2], down, rtol=1e-12, atol=0)
    # Padding between two values hides from a comparison of neighbours that they rise.
    hidden = torch.tensor([[0.5, math.nan, 0.7, math.nan, 0.2]])
    plain = torch.tensor([[0.7, 0.5, 0.2]])
    one, other = (gpd.anderson_darling(v, xi[:1], sigma[:1]).item() for v in (hidden, plain))
    assert one == pytest.approx(other, rel=1e-14)


@pytest.mark.parametrize("unit", [1e-9, 1e7, 2.0**-200])
@pytest.mark.parametrize("xi", [-0.4, 0.0, 0.7])
def test_statistic_does_not_depend_on_the_unit(xi: float, unit: float) -> None:
    y = torch.from_numpy(stats.genpareto.rvs(xi, size=(30, 80), random_state=3))
    fit = gpd.fit(y)
    one = gpd.anderson_darling(y, fit.xi, fit.sigma)
    other = gpd.anderson_darling(y * unit, fit.xi, fit.sigma * unit)
    torch.testing.assert_close(other, one, rtol=1e-8, atol=0)


def test_tiny_shapes_join_the_exponential_smoothly() -> None:
    y = torch.from_numpy(stats.expon.rvs(size=(1, 200), random_state=4)).expand(6, 200)
    xi = vector(0.0, 1e-18, -1e-18, 1e-13, -1e-13, 1e-10)
    statistic = gpd.anderson_darling(y, xi, torch.ones(6))
    assert statistic[0].item() == pytest.approx(textbook(y[0].numpy(), 0.0, 1.0), rel=1e-10)
    torch.testing.assert_close(statistic, statistic[0].expand(6), rtol=1e-7, atol=0)


def test_rows_without_a_fit_and_boundary_fits_have_no_statistic() -> None:
    y = torch.from_numpy(stats.genpareto.rvs(0.2, size=(5, 40), random_state=5))
    y[0] = torch.linspace(0.9, 1, 40)  # boundary
    y[1] = 3e-7  # all equal
    y[2, 5:] = math.nan  # too few
    y[3] = math.nan  # none
    fit = gpd.fit(y)
    assert fit.xi[0].item() == -1.0
    statistic, p = fitted(y)
    assert torch.isnan(statistic).tolist() == [True, True, True, True, False]
    assert torch.isnan(p).tolist() == [True, True, True, True, False]
    empty = gpd.anderson_darling(y[3:4], vector(0.2), vector(1.0))  # a fit, but no excess
    assert math.isnan(empty.item())


@pytest.mark.parametrize("wrong", [0.0, -0.1, 2.0, 3.0, math.inf])
def test_an_excess_that_the_fit_rules_out_leaves_no_statistic(wrong: float) -> None:
    y = vector(0.1, 0.5, 1.0, wrong)[None]
    assert math.isnan(gpd.anderson_darling(y, vector(-0.5), vector(1.0)).item())


def test_the_given_excesses_are_left_as_they_are() -> None:
    y = torch.from_numpy(stats.genpareto.rvs(0.2, size=(3, 40), random_state=6))
    y[1, 30:] = math.nan
    before = y.clone()
    gpd.anderson_darling(y, torch.full((3,), 0.2), torch.ones(3))
    torch.testing.assert_close(y, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("elements", [1, 333, 5000])
def test_blocks_of_any_size_give_the_same(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.from_numpy(stats.genpareto.rvs(0.2, size=(50, 40), random_state=7)).float()
    y[7:20, 25:] = math.nan
    y[30:] = y[30:].sort(1, descending=True).values
    fit = gpd.fit(y)
    whole = gpd.anderson_darling(y, fit.xi, fit.sigma)
    monkeypatch.setattr("salmon.gpd.goodness.BLOCK_ELEMENTS", elements)
    assert torch.equal(gpd.anderson_darling(y, fit.xi, fit.sigma), whole)


def test_no_rows_and_no_columns_are_no_trouble() -> None:
    none = torch.empty(0)
    assert gpd.anderson_darling(torch.empty(0, 5), none, none).shape == (0,)
    assert gpd.goodness_p(none, none).shape == (0,)
    assert torch.isnan(gpd.anderson_darling(torch.empty(3, 0), *torch.ones(2, 3))).all()


def test_wrong_arguments_say_what_is_needed() -> None:
    one = torch.ones(3)
    with pytest.raises(InputError, match=r"\[filters, excesses\]"):
        gpd.anderson_darling(one, one, one)
    with pytest.raises(InputError, match="floating tensor"):
        gpd.anderson_darling(torch.ones(3, 4, dtype=torch.int64), one, one)
    with pytest.raises(InputError, match="3 filters but xi has shape"):
        gpd.anderson_darling(torch.ones(3, 4), one[:2], one)
    with pytest.raises(InputError, match="one number per filter"):
        gpd.goodness_p(one, one[:1])


def limit_law(xi: float, draws: int) -> Array:
    """Draws from the law of A^2 of infinitely many excesses, a weighted sum of chi-squares.

    The weights are eigenvalues of the covariance of the empirical process less what the fit takes
    out (Durbin 1973, Annals of Statistics 1(2), 279-290). On a grid even in ``log(u/(1-u))`` the
    weight ``1/(u(1-u))`` of the statistic is that of the grid.
    """
    x, step = np.linspace(-25, 25, 500, retstep=True)
    u, s, log_s = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x)), -np.logaddexp(0, x)
    growth = np.expm1(xi * log_s) / xi
    slopes = np.stack([s * (log_s - growth) / xi, s * growth])  # of F, by xi and by log sigma
    information = np.array([[2, 1], [1, 1 + xi]]) / ((1 + xi) * (1 + 2 * xi))
    bridge = np.where(x[:, None] < x, np.outer(u, s), np.outer(s, u))
    covariance = bridge - slopes.T @ np.linalg.solve(information, slopes)
    weights = np.linalg.eigvalsh(covariance * step)[::-1]
    chi = np.random.default_rng(0).chisquare(1, (draws, 20))
    draw: Array = chi @ weights[:20] + weights[20:].sum()
    return draw


@pytest.mark.parametrize("xi", [1e-4, 0.1, 0.27, 0.5, 1.0, 1.25, 2.5])
def test_p_values_are_those_of_the_limit_law(xi: float) -> None:
    statistic = torch.from_numpy(limit_law(xi, 150_000))
    p = gpd.goodness_p(statistic, torch.full_like(statistic, xi))
    for level in [0.9, 0.5, 0.1, 0.05, 0.01]:
        share = (p < level).double().mean().item()
        # 4 % for the 500 excesses of the table, and four binomial standard errors of both.
        error = 4 * math.sqrt(level * (1 - level) * (1 / 150_000 + 1 / 200_000))
        assert share == pytest.approx(level, abs=0.04 * level + error)


@pytest.mark.parametrize("xi", [-0.7, -0.45, -0.2, 0.0, 0.3, 1.0])
def test_p_values_of_generalized_pareto_data_are_uniform(xi: float) -> None:
    y = torch.from_numpy(stats.genpareto.rvs(xi, scale=1e-6, size=(4000, 300), random_state=8))
    _, p = fitted(y)
    assert not torch.isnan(p).any()
    for level in [0.01, 0.05, 0.5, 0.9]:
        share = (p < level).double().mean().item()
        assert share == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 4000))


def test_p_values_are_small_where_the_excesses_have_another_law() -> None:
    random = np.random.default_rng(9)
    size = (20, 2000)
    lognormal = random.lognormal(0, 0.5, size)
    mixture = random.exponential(1, size) + np.where(random.random(size) < 0.3, 8, 0)
    gamma = random.gamma(3, 1, size)
    for y in (lognormal, mixture, gamma):
        statistic, p = fitted(torch.from_numpy(y))
        assert statistic.min() > 3
        assert p.max() < 1e-4


def test_p_values_at_the_quantiles_are_their_levels() -> None:
    for xi, quantiles in QUANTILES.items():
        p = gpd.goodness_p(vector(*quantiles) / 1000, vector(xi).expand(len(LEVELS)))
        torch.testing.assert_close(p, vector(*LEVELS), rtol=1e-9, atol=0)


@pytest.mark.parametrize("xi", [-0.95, -0.45, 0.0, 0.6, 9.0])
def test_a_larger_statistic_has_a_smaller_p_value(xi: float) -> None:
    statistic = torch.linspace(0, 20, 4001, dtype=torch.float64)
    p = gpd.goodness_p(statistic, torch.full_like(statistic, xi))
    assert bool((p.diff() < 0).all())
    assert p[0].item() == 1
    assert 0 < p[-1].item() < 1e-12
    # No jumps: a step of 0.005 changes p by the steepest slope at most.
    assert p.diff().abs().max().item() < 0.02


def test_the_table_falls_in_the_shape_and_its_ends_go_on() -> None:
    table = torch.tensor(list(QUANTILES.values()))
    assert list(QUANTILES) == sorted(QUANTILES)
    assert bool((table.diff(dim=0) < 0).all())
    assert bool((table.diff(dim=1) > 0).all())
    statistic = vector(0.5, 0.5, 0.5, 0.5, math.inf)
    p = gpd.goodness_p(statistic, vector(-0.99, min(QUANTILES), 7.0, max(QUANTILES), 0.0))
    assert p[0] == p[1]
    assert p[2] == p[3]
    assert p[4].item() == torch.finfo(torch.float64).tiny


def test_p_values_of_nothing_are_nothing() -> None:
    p = gpd.goodness_p(vector(math.nan, 1.0, math.nan), vector(0.1, math.nan, math.nan))
    assert bool(torch.isnan(p).all())


def test_vectors_that_are_views_or_of_single_precision_will_do() -> None:
    statistic, xi = vector(0.3, 9, 0.9, 9, 1.6, 9), vector(0.25, 9, -0.5, 9, 1.5, 9)
    p = gpd.goodness_p(statistic[::2], xi[::2])
    single = gpd.goodness_p(statistic[::2].float(), xi[::2].float())
    torch.testing.assert_close(single, p, rtol=1e-6, atol=0)


def weighted(rows: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Descending draws with weights 1, 2, 4 or 8 as copies, and the effective share of each row."""
    random = np.random.default_rng(seed)
    draws = stats.genpareto.rvs(0.2, size=(rows, size), random_state=random)
    copies = 2 ** random.integers(0, 4, (rows, size))
    length = int(copies.sum(1).max())
    table = np.full((rows, length), np.nan)
    for row, (values, times) in enumerate(zip(draws, copies, strict=True)):
        every = -np.sort(-np.repeat(values, times))
        table[row, : len(every)] = every
    share = copies.sum(1) ** 2 / (copies.astype(float) ** 2).sum(1) / copies.sum(1)
    return torch.from_numpy(table), torch.from_numpy(share)


def test_the_effective_share_of_weighted_excesses_is_kish_s() -> None:
    excess, share = weighted(20, 30, 0)
    torch.testing.assert_close(gpd.effective_share(excess), share, rtol=1e-12, atol=0)
    torch.testing.assert_close(gpd.effective_share(7e-9 * excess), share, rtol=1e-12, atol=0)
    distinct = torch.tensor([[3.0, 2.0, 1.0], [3.0, math.nan, math.nan], [math.nan] * 3])
    assert gpd.effective_share(distinct).tolist() == [1, 1, 1]


def test_weighted_excesses_have_uniform_p_values_and_errors_of_the_right_size() -> None:
    excess, share = weighted(1500, 300, 1)
    fit = gpd.fit(excess)
    statistic = gpd.anderson_darling(excess, fit.xi, fit.sigma)
    p = gpd.goodness_p(statistic * share, fit.xi)
    # An approximation: between half as many and twice as many as should be are rejected.
    assert 0.025 < float((p < 0.05).double().mean()) < 0.1
    assert float((gpd.goodness_p(statistic, fit.xi) < 0.05).double().mean()) > 0.15
    error = gpd.standard_errors(excess, fit.xi, fit.sigma)[0] / share.sqrt()
    assert float(error.median() / fit.xi.std()) == pytest.approx(1, abs=0.1)
