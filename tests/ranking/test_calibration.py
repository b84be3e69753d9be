"""Calibration of tail probabilities, and what counts as significant."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from salmon import (
    InputError,
    Tails,
    bootstrap_interval,
    calibration,
    fit_tails,
    rank_filters,
)
from salmon.ranking import Strength
from salmon.ranking.methods import significant_counts


def samples(count: int, filters: int = 300, seed: int = 0) -> Tensor:
    """Profiles of generalized Pareto filters."""
    xi = np.random.default_rng(99).normal(0.15, 0.1, filters)
    return torch.from_numpy(stats.genpareto(xi).rvs((count, filters), random_state=seed))


def streamed(profile: Tensor) -> Tails:
    tails = Tails(profile.shape[1])
    tails.update(profile)
    return tails


def test_held_out_samples_lie_beyond_shrunk_tails_as_often_as_predicted() -> None:
    fit = fit_tails(streamed(samples(1000)))
    found = calibration(samples(4000, seed=1), fit)
    assert found.p[0] == 0.05
    assert float(found.p[-1]) == pytest.approx(1e-4)
    assert bool((found.p[1:] < found.p[:-1]).all())
    assert bool(((found.ratio > 0.8) & (found.ratio < 1.25))[:-1].all())
    assert 0.5 < float(found.ratio[-1]) < 2.0
    assert float(found.rivals["ml"][-1]) > 2.0
    assert float(found.rivals["normal"][-1]) > 20.0
    assert float(found.rivals["plug-in"][-1]) > float(found.ratio[-1])
    assert bool(((found.low <= found.ratio) & (found.ratio <= found.high)).all())


def test_the_ratios_are_counts_of_quantiles_passed() -> None:
    profile = samples(400, filters=20)
    fit = fit_tails(streamed(profile), estimator="ml")
    held_out = samples(300, filters=20, seed=2)
    found = calibration(held_out, fit)
    for place, p in enumerate(found.p.tolist()):
        inside = 1 - p / fit.rate.numpy()
        quantile = fit.threshold.numpy() + stats.genpareto.ppf(
            inside, fit.xi.numpy(), scale=fit.sigma.numpy()
        )
        beyond = (held_out.numpy() > quantile).mean()
        assert float(found.ratio[place]) == pytest.approx(beyond / p, rel=1e-9)
    assert set(found.rivals) == {"ml", "normal"}
    torch.testing.assert_close(found.rivals["ml"], found.ratio)


def test_a_filter_that_is_mostly_zero_counts_only_inside_its_short_tail() -> None:
    profile, held_out = samples(1000), samples(1000, seed=1)
    whole = calibration(held_out, fit_tails(streamed(profile)))
    for values in (profile, held_out):
        values[:, 0] = torch.where(torch.arange(1000) % 50 == 0, values[:, 0], 0.0)
    found = calibration(held_out, fit_tails(streamed(profile)))
    torch.testing.assert_close(found.p, whole.p)
    assert found.filters == 300
    torch.testing.assert_close(found.ratio, whole.ratio, rtol=0.02, atol=0)


def test_bands_of_filters_that_share_their_images_are_wide() -> None:
    one = samples(1000, filters=1)
    copies = one.expand(-1, 100)
    bands = [
        calibration(held_out, fit_tails(streamed(profile)))
        for profile, held_out in (
            (copies, samples(500, filters=1, seed=3).expand(-1, 100)),
            (samples(1000, filters=100), samples(500, filters=100, seed=3)),
        )
    ]
    shared, apart = ((each.high - each.low)[2] for each in bands)
    assert float(shared) > 5 * float(apart)


def test_a_stream_is_judged_as_its_profiles_as_far_as_it_keeps_them() -> None:
    fit, held_out = fit_tails(streamed(samples(1000))), samples(2000, seed=1)
    whole, stream = calibration(held_out, fit), calibration(streamed(held_out), fit)
    torch.testing.assert_close(stream.ratio, whole.ratio)
    assert bool(torch.isnan(stream.low).all())
    short = Tails(300, capacity=64)
    short.update(held_out)
    kept = calibration(short, fit)
    assert math.isnan(kept.ratio[0])
    torch.testing.assert_close(kept.ratio[4:], whole.ratio[4:])


def test_what_cannot_be_calibrated_is_refused() -> None:
    fit = fit_tails(streamed(samples(200, filters=3)))
    with pytest.raises(InputError, match="4 filters but fit 3"):
        calibration(torch.rand(5, 4), fit)
    with pytest.raises(InputError, match="0 samples and 3 fitted filters"):
        calibration(torch.rand(0, 3), fit)


@pytest.mark.parametrize("seed", range(8))
def test_significant_filters_are_those_of_benjamini_and_hochberg(seed: int) -> None:
    random = np.random.default_rng(seed)
    p = random.uniform(size=(20, 400)) ** random.uniform(1, 3, (20, 1))
    adjusted = stats.false_discovery_control(p, axis=1)
    log_p = torch.from_numpy(np.where(p < 0.3, np.log(p), np.nan))
    found = significant_counts(log_p, 400)
    assert found.tolist() == (adjusted <= 0.05).sum(1).tolist()
    assert bool((found > 0).any())


def test_a_rarity_that_chance_gives_is_called_ordinary() -> None:
    fit = fit_tails(streamed(samples(1000)))
    profile = samples(200, seed=5)
    profile[0, 7] = 1e6
    ranking = rank_filters(profile, fit)
    assert ranking.tested == 300
    torch.testing.assert_close(ranking.e, 300 * ranking.p, equal_nan=True)
    assert ranking.filters[0, 0] == 7
    assert ranking.strength[0, 0] == Strength.SIGNIFICANT
    assert bool(ranking.extrapolated[0, 0])
    strength, e = ranking.strength[1:], ranking.e[1:]
    assert bool((strength[e > 1] == Strength.ORDINARY).all())
    ordinary = (strength[:, 0] != Strength.SIGNIFICANT).double().mean()
    assert 0.9 < float(ordinary) <= 1.0  # five in a hundred samples have one by chance
    assert ranking.significant is not None
    assert ranking.significant.tolist()[0] == int((ranking.strength[0] == 2).sum())


def test_reported_probabilities_come_with_intervals_and_own_samples_are_left_out() -> None:
    profile = samples(500)
    fit = fit_tails(streamed(profile))
    own, other = (rank_filters(profile, fit, own=mine) for mine in (True, False))
    for ranking in (own, other):
        assert ranking.p_low is not None
        assert ranking.p_high is not None
        held = (ranking.filters < 0) | ((ranking.p_low < ranking.p) & (ranking.p < ranking.p_high))
        assert float(held.double().mean()) > 0.99
    # The rarest value of a filter pulls its own tail towards itself.
    assert float((own.log_p[:, 0] - other.log_p[:, 0]).nanmean()) < -0.05
    ml = rank_filters(profile, fit.as_ml(), own=True)
    torch.testing.assert_close(ml.log_p, rank_filters(profile, fit.as_ml()).log_p, equal_nan=True)
    assert ml.p_low is not None
    assert bool(torch.isnan(ml.p_low).all())


def test_the_order_is_that_of_the_exact_probabilities() -> None:
    profile, fit = samples(100), fit_tails(streamed(samples(1000)))
    ranking = rank_filters(profile, fit, top_k=10)
    score = ranking.score.nan_to_num(-math.inf)
    assert bool((score[:, 1:] <= score[:, :-1]).all())
    torch.testing.assert_close(-ranking.score, ranking.log_p, equal_nan=True)


def test_a_bootstrap_over_the_samples_gives_intervals() -> None:
    reference, profile = samples(300, filters=40), samples(5, filters=40, seed=4)
    fit = fit_tails(streamed(reference))
    ranking = rank_filters(profile, fit, top_k=3)
    low, high = bootstrap_interval(ranking, reference, draws=40)
    again, _ = bootstrap_interval(ranking, reference, draws=40)
    torch.testing.assert_close(low, again, equal_nan=True)
    known = ~torch.isnan(ranking.log_p)
    assert torch.equal(torch.isnan(low), ~known)
    inside = (low <= ranking.p) & (ranking.p <= high)
    assert float(inside[known].double().mean()) > 0.8
    wide = (high / low)[known].log().mean()
    # A single fit of a resample has its own threshold and rate, too.
    assert wide > 0.3
    with pytest.raises(InputError, match="names other filters"):
        bootstrap_interval(ranking, reference[:, :2])
