"""Standard errors against fifty-digit second derivatives, and against simulation."""

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from salmon import gpd


def exact_errors(y: list[float], xi: float, sigma: float) -> tuple[float, float]:
    """Standard errors from numerical second derivatives with fifty digits."""
    mpmath.mp.dps = 50

    def likelihood(shape: mpmath.mpf, scale: mpmath.mpf) -> mpmath.mpf:
        if shape == 0:
            return sum(-mpmath.log(scale) - v / scale for v in y)
        return sum(
            -mpmath.log(scale) - (1 + 1 / shape) * mpmath.log1p(shape * v / scale) for v in y
        )

    at = (mpmath.mpf(xi), mpmath.mpf(sigma))
    a = -mpmath.diff(likelihood, at, (2, 0))
    b = -mpmath.diff(likelihood, at, (1, 1))
    c = -mpmath.diff(likelihood, at, (0, 2))
    det = a * c - b * b
    return float(mpmath.sqrt(c / det)), float(mpmath.sqrt(a / det))


@pytest.mark.parametrize("xi", [-0.3, -1e-3, 1e-7, 0.02, 0.4, 1.5])
def test_standard_errors_match_fifty_digits(xi: float) -> None:
    y = stats.genpareto.rvs(xi, scale=2e-5, size=60, random_state=1)
    expected = exact_errors(y.tolist(), xi, 2e-5)
    tensors = [torch.tensor([v], dtype=torch.float64) for v in (xi, 2e-5)]
    ours = gpd.standard_errors(torch.from_numpy(y)[None], *tensors)
    np.testing.assert_allclose([v.item() for v in ours], expected, rtol=1e-8)


def test_standard_errors_cover_the_truth() -> None:
    y = torch.from_numpy(stats.genpareto.rvs(0.2, size=(3000, 300), random_state=2))
    fit = gpd.fit(y)
    xi_se, sigma_se = gpd.standard_errors(y, fit.xi, fit.sigma)
    # 95 % intervals; three binomial standard errors of 3,000 rows are 1.2 points.
    assert ((fit.xi - 0.2).abs() < 1.96 * xi_se).double().mean().item() == pytest.approx(
        0.95, abs=0.02
    )
    assert ((fit.sigma - 1).abs() < 1.96 * sigma_se).double().mean().item() == pytest.approx(
        0.95, abs=0.02
    )


def test_there_are_none_where_the_theory_has_none() -> None:
    y = torch.from_numpy(np.linspace(0.5, 1, 30))[None]
    fit = gpd.fit(y)
    xi_se, sigma_se = gpd.standard_errors(y, fit.xi, fit.sigma)
    assert fit.xi.item() <= -0.5
    assert np.isnan(xi_se.item())
    assert np.isnan(sigma_se.item())
