"""Rankings on numbers that can be checked by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from salmon import FilterIndex, FitStatus, InputError, TailFit, group_shares, rank_filters
from salmon.ranking import (
    LOG_P_FLOOR,
    Ranking,
    filter_shares,
    layer_counts,
    log_tail_probability,
    share_intervals,
    sum_over_samples,
    top_filters,
)


def doubles(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def hand_fit(
    xi: Tensor, sigma: Tensor | None = None, status: list[FitStatus] | None = None
) -> TailFit:
    """Tails with threshold 1 and rate 0.1; mean 0.5, std 0.25."""
    f = len(xi)
    ones = torch.ones(f, dtype=torch.float64)
    return TailFit(
        samples=1000, dropped=0, level=0.9, top=100,
        threshold=ones, rate=0.1 * ones, exceedances=torch.full((f,), 100),
        xi=xi, sigma=ones if sigma is None else sigma, xi_se=ones, sigma_se=ones,
        log_likelihood=ones,
        status=torch.tensor(status or [FitStatus.OK] * f, dtype=torch.int8),
        mean=0.5 * ones, std=0.25 * ones, ad_p=0.5 * ones,
    )  # fmt: skip


def test_pot_ranks_the_rarest_first_and_leaves_out_what_is_below_the_threshold() -> None:
    fit = hand_fit(doubles(0.0, 0.5, -0.2, 0.0))
    profile = doubles(3.0, 3.0, 3.0, 0.9)[None]  # excess 2, 2, 2, none
    ranking = rank_filters(profile, fit, top_k=4)
    p = [0.1 * math.exp(-2), 0.1 * (1 + 0.5 * 2) ** -2, 0.1 * (1 - 0.2 * 2) ** 5]
    assert ranking.filters.tolist() == [[2, 0, 1, -1]]
    np.testing.assert_allclose(ranking.p[0, :3].numpy(), [p[2], p[0], p[1]], rtol=1e-12)
    assert math.isnan(ranking.p[0, 3])
    assert ranking.ranked.tolist() == [3]
    np.testing.assert_allclose(ranking.saliency[0, :3].numpy(), 3.0)
    np.testing.assert_allclose(ranking.z[0, :3].numpy(), 10.0)


def test_pot_probabilities_match_scipy() -> None:
    random = np.random.default_rng(0)
    xi, sigma = random.uniform(-0.4, 1.5, 50), random.uniform(0.1, 3, 50)
    fit = hand_fit(torch.from_numpy(xi), torch.from_numpy(sigma))
    profile = torch.from_numpy(random.uniform(0, 1.1 + 0.2 * sigma, (20, 50)))
    ours = log_tail_probability(profile, fit).exp().numpy()
    theirs = 0.1 * stats.genpareto.sf(profile.numpy() - 1, xi, scale=sigma)
    above = profile.numpy() > 1
    np.testing.assert_allclose(ours[above], theirs[above], rtol=1e-10)
    assert np.isnan(ours[~above]).all()


def test_past_the_end_point_the_probability_floors_and_the_excess_breaks_ties() -> None:
    # Tails of xi < 0 end at excess -sigma/xi: 2 and 20.
    fit = hand_fit(doubles(-0.5, -0.5, -0.05, 0.0), doubles(1.0, 1.0, 1.0, 1e-3))
    profile = doubles(5.0, 6.0, 20.0, 3.0)[None]
    ranking = rank_filters(profile, fit, top_k=4)
    assert ranking.filters.tolist() == [[3, 1, 0, 2]]  # excess/sigma 2000, 5, 4; then not floored
    assert ranking.log_p[0].tolist()[:3] == [LOG_P_FLOOR] * 3
    assert not bool(torch.isnan(ranking.score).any())
    assert ranking.p[0, 0].item() > 0


def test_filters_without_a_fit_are_never_ranked_by_pot() -> None:
    status = [FitStatus.TOO_FEW, FitStatus.DEGENERATE, FitStatus.BOUNDARY, FitStatus.EXPONENTIAL]
    xi = doubles(math.nan, math.nan, -1.0, 0.0)
    ranking = rank_filters(doubles(9.0, 9.0, 1.5, 1.5)[None], hand_fit(xi, status=status), top_k=4)
    assert ranking.filters.tolist() == [[3, 2, -1, -1]] or ranking.filters.tolist() == [
        [2, 3, -1, -1]
    ]
    np.testing.assert_allclose(sorted(ranking.p[0, :2].tolist()), [0.05, 0.1 * math.exp(-0.5)])


def test_zscore_magnitude_and_group_rank_by_their_numbers() -> None:
    fit = replace(hand_fit(doubles(0, 0, 0)), std=doubles(1.0, 0.1, 0.0))
    profile = doubles(3.0, 1.0, 2.0)[None]
    assert rank_filters(profile, fit, "zscore", top_k=3).filters.tolist() == [[1, 0, 2]]
    assert rank_filters(profile, fit, "magnitude", top_k=3).filters.tolist() == [[0, 2, 1]]
    index = FilterIndex.from_model(
        nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)), groups=lambda layer: f"g{layer}"
    )
    ranking = rank_filters(profile, fit, "group:g0", top_k=3, index=index)
    assert ranking.filters.tolist() == [[0, 1, -1]]


def test_a_constant_filter_has_a_finite_zscore_in_every_unit() -> None:
    for unit in (1.0, 1e-9):
        fit = replace(hand_fit(doubles(0.0)), mean=doubles(0.5) * unit, std=doubles(1e-15) * unit)
        ranking = rank_filters(doubles(0.7)[None] * unit, fit, "zscore", top_k=1)
        assert ranking.z.item() == pytest.approx(0.2 * unit)


def test_random_rankings_repeat_with_their_seed() -> None:
    fit = hand_fit(torch.zeros(40, dtype=torch.float64))
    profile = torch.rand(5, 40)
    one, same, other = (rank_filters(profile, fit, "random", seed=s).filters for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
    assert sorted(rank_filters(profile, fit, "random", top_k=40).filters[0].tolist()) == list(
        range(40)
    )


def test_equal_scores_are_ranked_by_filter_number() -> None:
    filters, score = top_filters(doubles(1, 2, 2, 2, math.nan)[None], 2)
    assert filters.tolist() == [[1, 2]]
    assert score.tolist() == [[2.0, 2.0]]


def test_samples_that_are_not_finite_have_no_ranked_filters() -> None:
    fit = hand_fit(doubles(0, 0))
    profile = torch.tensor([[math.nan, 3.0], [math.inf, 3.0]])
    for method in ("pot", "zscore", "magnitude", "random"):
        ranking = rank_filters(profile, fit, method, top_k=2)
        assert ranking.filters.tolist() == [[1, -1], [1, -1]]
    everything = rank_filters(torch.full((1, 2), math.nan), fit, "pot", top_k=2)
    assert everything.filters.tolist() == [[-1, -1]]
    assert everything.ranked.tolist() == [0]


def test_fewer_filters_than_asked_for_end_in_empty_places() -> None:
    ranking = rank_filters(doubles(3.0, 2.0)[None], hand_fit(doubles(0, 0)), top_k=5)
    assert ranking.filters.tolist() == [[0, 1, -1, -1, -1]]
    assert rank_filters(torch.empty(0, 2), hand_fit(doubles(0, 0))).filters.shape == (0, 25)


def test_many_samples_are_ranked_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = hand_fit(torch.linspace(-0.3, 1, 30, dtype=torch.float64))
    profile = torch.rand(50, 30) * 4
    whole = {m: rank_filters(profile, fit, m) for m in ("pot", "random")}
    monkeypatch.setattr("salmon.ranking.methods._BLOCK_ELEMENTS", 100)
    for method, ranking in whole.items():
        parts = rank_filters(profile, fit, method)
        assert torch.equal(parts.filters, ranking.filters)


def test_rankings_do_not_depend_on_the_unit() -> None:
    fit = hand_fit(torch.linspace(-0.3, 1, 30, dtype=torch.float64))
    unit = 2.0**-30
    scaled = replace(
        fit, threshold=fit.threshold * unit, sigma=fit.sigma * unit,
        mean=fit.mean * unit, std=fit.std * unit,
    )  # fmt: skip
    profile = torch.rand(20, 30, dtype=torch.float64) * 4
    for method in ("pot", "zscore", "magnitude"):
        one = rank_filters(profile, fit, method)
        other = rank_filters(profile * unit, scaled, method)
        assert torch.equal(one.filters, other.filters)


def test_batches_add_up_what_their_samples_say() -> None:
    values = torch.tensor([[-1.0, math.nan, -4.0], [-2.0, math.nan, math.nan]])
    total = sum_over_samples(values)
    assert total.tolist()[0] == -3.0
    assert math.isnan(total[1])
    assert total.tolist()[2] == -4.0


def test_shares_and_counts_follow_the_ranked_filters() -> None:
    index = FilterIndex.from_model(
        nn.ModuleList([nn.Conv2d(1, 3, 1), nn.Conv2d(1, 1, 1)]), groups=lambda layer: f"g{layer}"
    )
    fit = hand_fit(doubles(0, 0, 0, 0))
    profile = doubles(2.0, 3.0, 0.0, 4.0, 0.0, 0.0, 0.0, 5.0).view(2, 4)
    ranking = rank_filters(profile, fit, top_k=3)
    assert layer_counts(ranking, index).tolist() == [2, 2]
    assert group_shares(ranking, index) == {"g0": 0.5, "g1": 0.5}
    assert filter_shares(index) == {"g0": 0.75, "g1": 0.25}
    nothing = rank_filters(torch.zeros(2, 4), fit)
    assert all(math.isnan(share) for share in group_shares(nothing, index).values())


def test_wrong_arguments_say_what_is_needed() -> None:
    fit = hand_fit(doubles(0, 0))
    index = FilterIndex.from_model(nn.Sequential(nn.Conv2d(1, 2, 1)))
    with pytest.raises(InputError, match="but fit has 2 filters"):
        rank_filters(torch.zeros(1, 3), fit)
    with pytest.raises(InputError, match="top_k is 0"):
        rank_filters(torch.zeros(1, 2), fit, top_k=0)
    with pytest.raises(InputError, match="method is 'best'; one of pot, zscore"):
        rank_filters(torch.zeros(1, 2), fit, "best")
    with pytest.raises(InputError, match="needs index="):
        rank_filters(torch.zeros(1, 2), fit, "group:conv1")
    with pytest.raises(InputError, match="it has depth1of1"):
        rank_filters(torch.zeros(1, 2), fit, "group:conv1", index=index)
    ranking = rank_filters(doubles(3, 3, 3)[None], hand_fit(doubles(0, 0, 0)))
    with pytest.raises(InputError, match="the index holds 2"):
        layer_counts(ranking, index)


def places(rows: Tensor) -> Ranking:
    """Samples with these filters on top, -1 where a place is empty."""
    profile = torch.zeros(len(rows), 6, dtype=torch.float64)
    for row, filters in enumerate(rows.tolist()):
        profile[row, [k for k in filters if k >= 0]] = 2.0
    return rank_filters(profile, hand_fit(doubles(*[0.0] * 6)), top_k=rows.shape[1])


def test_intervals_of_shares_hold_the_true_share_in_19_of_20_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    part_of = torch.tensor([0, 0, 0, 1, 1, 2])
    inside, runs = torch.zeros(3), 200
    for seed in range(runs):
        # A sample has all its filters in one part: they come together.
        kind = torch.multinomial(
            torch.tensor([0.5, 0.3, 0.2]), 80, replacement=True, generator=generator
        )
        rows = torch.tensor([[0, 1], [3, 4], [5, -1]])[kind]
        low, high = share_intervals(places(rows), part_of, 3, seed=seed).unbind(1)
        true = doubles(1.0, 0.6, 0.2) / 1.8
        inside += ((low <= true) & (true <= high)).float()
    assert bool((inside / runs > 0.89).all())  # 0.95 with a standard error of 0.015, and some bias
    assert bool((inside / runs < 0.995).all())


def test_intervals_of_one_sample_are_its_shares_and_of_none_are_nan() -> None:
    part_of = torch.tensor([0, 0, 0, 1, 1, 2])
    one = share_intervals(places(torch.tensor([[0, 1, 3, -1]])), part_of, 3)
    torch.testing.assert_close(one, doubles(2, 2, 1, 1, 0, 0).view(3, 2) / 3)
    rows = torch.tensor([[0, 1, 3, -1]] + 3 * [4 * [-1]])  # a draw may hold the empty ones alone
    assert torch.equal(share_intervals(places(rows), part_of, 3), one)
    nothing = share_intervals(places(torch.tensor([[-1, -1]])), part_of, 3)
    assert bool(torch.isnan(nothing).all())
