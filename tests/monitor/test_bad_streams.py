"""Odd numbers, shapes and layouts: streams, fits and rankings take them, or have a status."""

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from salmon import (
    FitStatus,
    InputError,
    Tails,
    fit_tails,
    gpd,
    rank_filters,
)

TINY32, TINY64 = 2.0**-149, 5e-324  # the smallest positive numbers


def streamed(profile: Tensor, capacity: int = 128) -> Tails:
    tails = Tails(profile.shape[1], capacity)
    for part in profile.split(37):
        tails.update(part)
    return tails


def heavy(samples: int = 400, filters: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(samples, filters, generator=generator, dtype=torch.float64).pow(-0.3)


@pytest.mark.parametrize("exponent", [-1030, -1000, -600, 400, 1000])
def test_tails_of_any_size_are_those_of_ordinary_size(exponent: int) -> None:
    profile, unit = heavy(), 2.0**exponent
    one, other = fit_tails(streamed(profile)), fit_tails(streamed(profile * unit))
    assert other.counts()[FitStatus.OK] == 3
    torch.testing.assert_close(other.xi, one.xi, rtol=0, atol=1e-9)
    torch.testing.assert_close(other.sigma / unit, one.sigma, rtol=1e-9, atol=0)
    torch.testing.assert_close(other.xi_se, one.xi_se, rtol=1e-9, atol=0)
    torch.testing.assert_close(other.ad_p, one.ad_p, rtol=1e-8, atol=0)
    there, here = rank_filters(profile * unit, other), rank_filters(profile, one)
    assert torch.equal(there.filters, here.filters)
    torch.testing.assert_close(there.log_p, here.log_p, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_denormal_values_of_float32_are_fitted_as_they_are() -> None:
    profile = (heavy().float() * 1e-42)[:, :1]
    assert 0 < float(profile.max()) < torch.finfo(torch.float32).tiny
    fit = fit_tails(streamed(profile))
    values = np.sort(profile.double().numpy()[:, 0])
    above = values[values > values[-41]]
    assert float(fit.threshold) == values[-41]
    excess = torch.from_numpy(above - values[-41])
    shape, _, scale = stats.genpareto.fit(excess.numpy() * 2.0**140, floc=0)
    assert float(fit.xi) == pytest.approx(shape, abs=2e-2)
    assert float(fit.sigma) * 2.0**140 == pytest.approx(scale, rel=2e-2)
    mine = gpd.log_likelihood(excess, fit.xi, fit.sigma)
    theirs = gpd.log_likelihood(excess, torch.tensor([shape]), torch.tensor([scale * 2.0**-140]))
    assert float(mine) >= float(theirs) - 1e-9
    assert float(fit.std) == pytest.approx(profile.double().std().item(), rel=1e-9)


def exact_variance(values: list[float]) -> Fraction:
    """The square of the standard deviation, without rounding."""
    exact = [Fraction(value) for value in values]
    mean = sum(exact, Fraction()) / len(exact)
    return sum(((value - mean) ** 2 for value in exact), Fraction()) / (len(exact) - 1)


@given(
    exponent=st.integers(-1074, 1023),
    spread=st.sampled_from([0.0, 1e-9, 1e-3, 1.0]),
    seed=st.integers(0, 100),
)
@example(exponent=-512, spread=1.0, seed=0)
@example(exponent=-484, spread=1.0, seed=0)
@example(exponent=-480, spread=1e-3, seed=0)
@example(exponent=512, spread=1.0, seed=0)
@example(exponent=1023, spread=1.0, seed=0)
def test_a_standard_deviation_is_right_or_not_there(
    exponent: int, spread: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = np.ldexp(0.5 + spread * random.random(50) / 2.1, exponent)
    tails = Tails(1, 64)
    for part in torch.from_numpy(values)[:, None].split(7):
        tails.update(part)
    found, exact = float(tails.std), exact_variance(values.tolist())
    if math.isnan(found):
        assert exponent < -400 or exponent > 480
        return
    mean = Fraction(float(np.mean(values)))
    if exact <= (mean * Fraction(1, 10**11)) ** 2:  # what counts as constant
        assert Fraction(found) <= mean * Fraction(1, 10**10)
    else:
        assert Fraction(found) ** 2 / exact == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("unit", [1e-200, 1e-320, 1e160, 1e300])
def test_values_whose_squares_float64_cannot_hold_have_no_z_score(unit: float) -> None:
    profile = heavy() * unit
    fit = fit_tails(streamed(profile))
    assert bool(torch.isnan(fit.std).all())
    ranking = rank_filters(profile, fit, "zscore")
    assert bool((ranking.filters == -1).all())
    assert bool((ranking.ranked == 0).all())


def test_a_sum_beyond_the_largest_number_is_no_mean() -> None:
    tails = streamed(torch.full((100, 2), 1.5e308, dtype=torch.float64))
    assert bool(torch.isnan(tails.mean).all())
    assert bool(torch.isnan(tails.std).all())
    assert (tails.samples, tails.dropped) == (100, 0)
    again = Tails(2, 128)
    again.load_state_dict(tails.state_dict())
    assert bool(torch.isnan(again.mean).all())


def test_ties_everywhere_have_a_status_and_a_z_score_of_zero() -> None:
    profile = torch.cat([torch.zeros(300, 2), torch.full((300, 2), 1e-3)], 1)
    fit = fit_tails(streamed(profile))
    assert fit.status.tolist() == [FitStatus.DEGENERATE] * 4
    assert bool(torch.isnan(fit.xi).all())
    assert fit.std.tolist() == pytest.approx([0.0] * 4, abs=1e-15)
    assert bool((rank_filters(profile, fit).filters == -1).all())
    z = rank_filters(profile[:5], fit, "zscore")
    assert z.filters[:, :4].tolist() == [[0, 1, 2, 3]] * 5
    assert float(z.score[:, :4].abs().max()) < 1e-12


def test_one_sample_gives_no_fit_no_ranking_and_no_z_score() -> None:
    profile = torch.rand(1, 5)
    fit = fit_tails(streamed(profile))
    assert fit.status.tolist() == [FitStatus.TOO_FEW] * 5
    assert torch.equal(fit.mean, profile[0].double())
    assert bool(torch.isnan(fit.std).all())
    for method in ("pot", "zscore"):
        assert bool((rank_filters(profile, fit, method).filters == -1).all())
    assert rank_filters(profile, fit, "magnitude", top_k=1).filters.item() == int(profile.argmax())


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_excesses_that_are_asked_for_make_no_trouble(count: int) -> None:
    for samples in (0, 1, 2, 5):
        fit = fit_tails(streamed(heavy()[:samples]), 0.5, min_exceedances=count)
        fitted = fit.usable
        assert bool((fit.exceedances[fitted] >= 2).all())
        assert bool((fit.sigma[fitted] > 0).all())


def profiles() -> Iterator[tuple[str, Tensor]]:
    """Layouts and types of one profile."""
    plain = heavy(200, 4).float()
    yield "transposed", plain.t().contiguous().t()
    yield "every other", torch.stack([plain, plain + 1], 1).flatten(0, 1)[::2]
    yield "with a graph", plain.clone().requires_grad_()
    yield "float64", plain.double()
    coarse = plain.bfloat16()
    yield "bfloat16", coarse
    yield "float16", coarse.half()


@pytest.mark.parametrize(("name", "profile"), list(profiles()))
def test_profiles_of_any_layout_and_type_are_streamed_and_ranked(
    name: str, profile: Tensor
) -> None:
    plain = profile.detach().clone(memory_format=torch.contiguous_format).float()
    one, other = streamed(plain), streamed(profile)
    assert torch.equal(one.largest(), other.largest().float())
    torch.testing.assert_close(one.std, other.std, rtol=1e-12, atol=0)
    fit = fit_tails(one)
    ranked, again = rank_filters(plain, fit), rank_filters(profile, fit)
    assert torch.equal(ranked.filters, again.filters)
    torch.testing.assert_close(ranked.log_p, again.log_p, rtol=0, atol=0, equal_nan=True)


def test_one_row_used_again_and_again_is_as_good_as_copies() -> None:
    row = heavy(1, 6)
    one, other = streamed(row.expand(100, -1)), streamed(row.repeat(100, 1))
    assert torch.equal(one.largest(), other.largest())
    assert fit_tails(one).counts() == fit_tails(other).counts()


def test_half_precision_overflow_is_dropped_and_counted() -> None:
    profile = torch.rand(50, 3).half()
    profile[7] *= 1e4
    profile[7, 1] = math.inf
    profile[9] = 6e4  # the sum of the row has no place in float16, its values have
    tails = streamed(profile)
    assert (tails.samples, tails.dropped) == (49, 1)
    assert tails.largest()[:, 0].tolist() == [torch.tensor(6e4).half().item()] * 3


def test_a_hundred_thousand_filters_are_fitted_like_a_few() -> None:
    filters, some = 100_000, torch.arange(0, 100_000, 1999)
    tails = Tails(filters, 32)
    parts = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        # One in 16 million random numbers is 0, whose power would be infinite.
        part = torch.rand(75, filters, generator=generator).add_(1e-4).pow_(-0.3)
        part[:, 5] = 0
        tails.update(part)
        parts.append(part[:, some])
    fit = fit_tails(tails, 0.92)
    few = fit_tails(streamed(torch.cat(parts), 32), 0.92)
    assert len(fit.status) == filters
    assert (tails.samples, tails.dropped) == (300, 0)
    assert tails.nbytes <= filters * (32 + 64 + 1) * 4
    assert int(fit.status[5]) == FitStatus.DEGENERATE
    for name in ("threshold", "xi", "sigma", "log_likelihood", "ad_p", "mean", "std"):
        mine, theirs = getattr(fit, name)[some], getattr(few, name)
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12, equal_nan=True)
    ranking = rank_filters(part[:3], fit, top_k=10)
    assert bool((ranking.filters >= 0).all())
    assert 5 not in ranking.filters


def test_no_infinite_or_missing_saliency_is_ranked() -> None:
    profile = heavy(300, 4)
    fit = fit_tails(streamed(profile))
    odd = profile[:3].clone()
    odd[0, 1], odd[1], odd[2, 3] = math.inf, math.nan, -math.inf
    for method in ("pot", "zscore", "magnitude", "random"):
        ranking = rank_filters(odd, fit, method, top_k=4)
        assert 1 not in ranking.filters[0]
        assert ranking.filters[1].tolist() == [-1] * 4
        assert ranking.ranked[1] == 0
        assert 3 not in ranking.filters[2]
        named = ranking.filters >= 0
        assert bool(torch.isfinite(ranking.score[named]).all())
    assert rank_filters(profile[:0], fit).filters.shape == (0, 25)
    with pytest.raises(InputError, match="complex64; real numbers are needed"):
        rank_filters(profile.to(torch.complex64), fit)


def test_equal_scores_are_ranked_by_number_past_any_size() -> None:
    column = heavy(300, 1)
    profile = column.expand(-1, 500)
    fit = fit_tails(streamed(profile))
    far = column.max() * torch.tensor([[1.0], [1e3], [1e300]], dtype=torch.float64)
    ranking = rank_filters(far.expand(-1, 500), fit, top_k=40)
    assert ranking.filters.tolist() == [list(range(40))] * 3
    assert torch.isfinite(ranking.log_p).all()
    assert bool((ranking.log_p[1:] < ranking.log_p[:-1]).all())
