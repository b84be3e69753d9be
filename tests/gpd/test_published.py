"""Fits of data sets whose maximum-likelihood fits are published, to the digits printed.

``tests/data/published_tails.json`` holds the values at or above the lowest threshold of each:
``rain``, daily rainfall in south-west England in mm (Coles 2001, An Introduction to Statistical
Modeling of Extreme Values, section 4.4.1); ``danish``, fire losses in millions of kroner (McNeil
1997, ASTIN Bulletin 27(1), 117-137); ``nidd``, high levels of the River Nidd (Natural Environment
Research Council 1975, Flood Studies Report; Davison and Smith 1990, J. R. Statist. Soc. B 52(3)).
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from salmon import Tails, fit_tails, gpd

FILE = Path(__file__).parents[1] / "data" / "published_tails.json"
RAIN_DAYS = 17_531


def values(name: str) -> Tensor:
    return torch.tensor(json.loads(FILE.read_text())[name], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "threshold", "count", "sigma", "xi", "minus_log_likelihood"),
    [
        ("rain", 30, 152, "7.44", "0.184", "485.09"),
        ("danish", 10, 109, "6.98", "0.497", "374.89"),
        ("danish", 20, 36, "9.64", "0.684", "142.18"),
        ("nidd", 65, 154, "26.26", "0.202", "688.36"),
    ],
)
def test_fits_are_the_published_ones(
    name: str, threshold: float, count: int, sigma: str, xi: str, minus_log_likelihood: str
) -> None:
    above = values(name)
    fit = gpd.fit((above[above > threshold] - threshold)[None])
    assert fit.count.item() == count
    assert f"{fit.sigma.item():.2f}" == sigma
    assert f"{fit.xi.item():.3f}" == xi
    assert f"{-fit.log_likelihood.item():.2f}" == minus_log_likelihood


def test_standard_errors_are_the_published_ones() -> None:
    rain = values("rain")
    excess = (rain[rain > 30] - 30)[None]
    fit = gpd.fit(excess)
    xi_se, sigma_se = gpd.standard_errors(excess, fit.xi, fit.sigma)
    assert f"{xi_se.item():.2f}" == "0.10"
    assert f"{sigma_se.item():.2f}" == "0.96"


@pytest.mark.parametrize("k", [152, 153, 154, 155])
def test_days_that_tie_with_the_threshold_change_nothing(k: int) -> None:
    rain = values("rain")
    assert int((rain == 30).sum()) == 4
    tails = Tails(1)
    tails.update(torch.cat([rain, rain.new_zeros(RAIN_DAYS - len(rain))])[:, None])
    fit = fit_tails(tails, 1 - (k - 0.5) / RAIN_DAYS, estimator="ml")
    alone = gpd.fit((rain[rain > 30] - 30)[None])
    assert (fit.top, fit.threshold.item(), fit.exceedances.item()) == (k, 30, 152)
    assert fit.rate.item() == 152 / RAIN_DAYS
    assert fit.xi.item() == pytest.approx(alone.xi.item(), rel=1e-9)
    assert fit.sigma.item() == pytest.approx(alone.sigma.item(), rel=1e-9)
    assert f"{fit.xi_se.item():.2f} {fit.sigma_se.item():.2f}" == "0.10 0.96"
