"""The generalized Pareto functions against SciPy and mpmath."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from salmon import gpd

SHAPES = [-0.9, -0.5, -0.3, -1e-9, 0.0, 1e-12, 1e-6, 0.4, 1.2, 2.0]
SCALES = [1e-9, 1.0, 3e4]


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize("xi", SHAPES)
@pytest.mark.parametrize("sigma", SCALES)
def test_log_survival_matches_scipy(xi: float, sigma: float) -> None:
    y = np.array([0.0, 1e-6, 0.1, 0.5, 1.0, 1.05]) * sigma
    ours = gpd.log_survival(torch.from_numpy(y), vector(xi), vector(sigma))
    theirs = stats.genpareto.logsf(y, xi, scale=sigma)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("xi", SHAPES)
def test_log_survival_matches_fifty_digits(xi: float) -> None:
    mpmath.mp.dps = 50
    for y in [1e-8, 0.3, 1.0]:
        exact = -mpmath.mpf(y) if xi == 0 else -mpmath.log1p(mpmath.mpf(xi) * y) / mpmath.mpf(xi)
        ours = float(gpd.log_survival(vector(y), vector(xi), vector(1.0)))
        assert ours == pytest.approx(float(exact), rel=1e-14)


@pytest.mark.parametrize("xi", SHAPES)
def test_quantile_inverts_survival(xi: float) -> None:
    p = vector(0.0, 1e-9, 0.3, 0.9, 0.999)
    y = gpd.quantile(p, vector(xi), vector(2.5))
    np.testing.assert_allclose(
        y.numpy(), stats.genpareto.ppf(p.numpy(), xi, scale=2.5), rtol=1e-8, atol=1e-15
    )
    torch.testing.assert_close(
        gpd.survival(y, vector(xi), vector(2.5)), 1 - p, rtol=1e-12, atol=1e-15
    )


def test_nothing_survives_past_the_end_point() -> None:
    end = gpd.quantile(vector(1.0), vector(-0.5), vector(3.0))
    assert end.item() == 6.0
    past = gpd.log_survival(vector(6.0, 7.0), vector(-0.5), vector(3.0))
    assert past.tolist() == [-math.inf, -math.inf]


def test_heavy_and_exponential_tails_have_no_end() -> None:
    assert gpd.quantile(vector(1.0), vector(0.0), vector(1.0)).item() == math.inf
    assert gpd.quantile(vector(1.0), vector(0.3), vector(1.0)).item() == math.inf


def test_probabilities_outside_zero_to_one_have_no_quantile() -> None:
    values = gpd.quantile(vector(-0.1, 1.1), vector(0.2), vector(1.0))
    assert bool(torch.isnan(values).all())


@pytest.mark.parametrize("xi", SHAPES)
def test_log_likelihood_matches_scipy_and_skips_padding(xi: float) -> None:
    y = stats.genpareto.rvs(xi, scale=0.02, size=40, random_state=1)
    padded = torch.cat([torch.from_numpy(y), torch.full((7,), math.nan, dtype=torch.float64)])
    ours = gpd.log_likelihood(padded[None], vector(xi), vector(0.02))
    theirs = stats.genpareto.logpdf(y, xi, scale=0.02).sum()
    assert ours.item() == pytest.approx(theirs, rel=1e-9)


def test_log_likelihood_is_minus_infinity_outside_the_support() -> None:
    rows = torch.tensor([[1.0, 2.0], [-0.1, 1.0], [1.0, 1.0]], dtype=torch.float64)
    value = gpd.log_likelihood(rows, vector(-0.6, 0.1, 0.1), vector(1.0, 1.0, -1.0))
    assert value.tolist() == [-math.inf] * 3


def test_the_boundary_fit_is_uniform_up_to_its_end_point() -> None:
    row = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64)
    value = gpd.log_likelihood(row, vector(-1.0), vector(4.0))
    assert value.item() == pytest.approx(-3 * math.log(4.0))
