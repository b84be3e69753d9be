"""One level for the network: as low as the fits allow, whatever the unit and the order."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salmon import InputError, Tails, fit_tails, gpd
from salmon.tails import choose_level
from salmon.tails.fit import exceedance_count
from salmon.tails.level import ALPHA, CANDIDATES, forward_stop


def pareto(samples: int, filters: int, seed: int, xi: float = 0.2) -> Tensor:
    """Generalized Pareto all over, float64."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(samples, filters, generator=generator, dtype=torch.float64)
    return gpd.quantile(u, torch.tensor(xi), torch.tensor(1.0))


def pareto_above(start: float, samples: int, filters: int, seed: int) -> Tensor:
    """Uniform on [0, 1] up to the quantile ``start``, generalized Pareto from 2 on above it."""
    tail = math.ceil((1 - start) * samples)
    body = torch.rand(samples - tail, filters, dtype=torch.float64)
    return torch.cat([2 + pareto(tail, filters, seed), body])


def streamed(*parts: Tensor, capacity: int = 1024) -> Tails:
    tails = Tails(parts[0].shape[1], capacity)
    for part in parts:
        tails.update(part)
    return tails


def plain_forward_stop(p: list[float]) -> int:
    """How many of the first hypotheses are rejected."""
    return max(
        (k for k in range(1, len(p) + 1) if sum(-math.log(1 - q) for q in p[:k]) / k <= ALPHA),
        default=0,
    )


@pytest.mark.parametrize("filters", [1, 3, 24, 300])
@pytest.mark.parametrize("xi", [-0.3, 0.0, 0.4])
def test_tails_that_are_right_everywhere_get_the_lowest_level(filters: int, xi: float) -> None:
    choice = choose_level(streamed(pareto(1000, filters, 1, xi)))
    assert choice.level == 0.80
    assert choice.reason.startswith("level 0.8 of 0.8, 0.85, 0.9, 0.95: the lowest that")
    assert choice.rejected.keys() == set(CANDIDATES)


@pytest.mark.parametrize("filters", [1, 24, 300])
@pytest.mark.parametrize(("start", "level"), [(0.83, 0.85), (0.89, 0.90), (0.94, 0.95)])
def test_tails_that_begin_higher_get_the_level_right_above(
    filters: int, start: float, level: float
) -> None:
    choice = choose_level(streamed(pareto_above(start, 1000, filters, 2)))
    assert choice.level == level
    assert all(choice.rejected[q] == 1 for q in CANDIDATES if q < start)


def test_tails_that_begin_at_the_quantile_of_90_percent_get_it_or_the_next() -> None:
    profile = torch.rand(2000, 50, dtype=torch.float64)
    profile = torch.where(profile > 0.9, 2 + pareto(2000, 50, 3), profile)
    assert choose_level(streamed(profile)).level in {0.90, 0.95}


def test_choices_are_rarely_wrong() -> None:
    right = [
        choose_level(streamed(profile)).level == level
        for seed in range(40)
        for profile, level in [
            (pareto(400, 20, seed), 0.80),
            (pareto_above(0.89, 400, 20, seed), 0.90),
        ]
    ]
    assert sum(right) >= 0.93 * len(right)


def test_a_few_other_tails_do_not_raise_the_level_for_all() -> None:
    mixed = torch.cat([pareto(1000, 190, 4), pareto_above(0.94, 1000, 10, 4)], 1)
    assert choose_level(streamed(mixed)).level == 0.80
    half = torch.cat([pareto(1000, 100, 4), pareto_above(0.89, 1000, 100, 4)], 1)
    assert choose_level(streamed(half)).level == 0.90


def test_tails_that_are_right_at_no_candidate_get_the_level_that_fewest_reject() -> None:
    late = streamed(pareto_above(0.985, 1000, 30, 5))
    choice = choose_level(late)
    assert set(choice.rejected.values()) == {1.0}
    assert choice.level == 0.95
    assert "too many filters reject every one, and this one the fewest (100.0 %" in choice.reason
    mild = streamed(
        torch.cat([pareto_above(0.985, 1000, 15, 5), pareto_above(0.89, 1000, 15, 5)], 1)
    )
    choice = choose_level(mild)
    assert choice.level == 0.95
    assert 0.5 <= choice.rejected[0.95] < choice.rejected[0.90]


def test_shares_are_those_of_a_plain_forward_stop() -> None:
    tails = streamed(torch.cat([pareto(500, 6, 6), pareto_above(0.87, 500, 6, 6)], 1))
    p = torch.stack([fit_tails(tails, q).ad_p for q in CANDIDATES], 1)
    assert not torch.isnan(p).any()
    firsts = [plain_forward_stop(row) for row in p.tolist()]
    assert 0 in firsts
    assert max(firsts) >= 2
    rejected = choose_level(tails).rejected
    for i, q in enumerate(CANDIDATES):
        assert rejected[q] == sum(first > i for first in firsts) / len(firsts)


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5))
def test_forward_stop_passes_over_what_has_no_p_value(p: list[float]) -> None:
    with_gaps = torch.tensor([[math.nan, *p, math.nan]], dtype=torch.float64)
    first = plain_forward_stop(p)
    expected = [False] + [i < first for i in range(len(p))] + [False]
    assert forward_stop(with_gaps)[0].tolist() == expected


def test_forward_stop_rejects_earlier_ones_for_the_sake_of_later_ones() -> None:
    p = torch.tensor([[0.06, 0.01, 0.9], [0.01, 0.9, 0.9], [1.0, 0.0, 0.0], [0.2, 0.3, 0.2]])
    assert forward_stop(p).sum(1).tolist() == [2, 1, 0, 0]


@pytest.mark.parametrize("unit", [2.0**-40, 1e-9, 1e6])
def test_the_choice_does_not_depend_on_the_unit(unit: float) -> None:
    profile = pareto_above(0.87, 600, 10, 7)
    assert choose_level(streamed(profile * unit)) == choose_level(streamed(profile))


@settings(max_examples=10)
@given(cuts=st.lists(st.integers(0, 600), max_size=5), seed=st.integers(0, 100))
def test_any_split_and_order_gives_the_same_choice(cuts: list[int], seed: int) -> None:
    profile = pareto_above(0.87, 600, 8, 8)
    shuffled = profile[torch.randperm(600, generator=torch.Generator().manual_seed(seed))]
    edges = [0, *sorted(cuts), 600]
    tails = streamed(*(shuffled[a:b] for a, b in pairwise(edges)), capacity=128)
    assert choose_level(tails) == choose_level(streamed(profile, capacity=128))


def test_many_filters_are_taken_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    tails = streamed(pareto_above(0.87, 400, 20, 9))
    whole = choose_level(tails)
    monkeypatch.setattr("salmon.tails.fit._BLOCK_ELEMENTS", 1500)
    assert choose_level(tails) == whole


def test_candidates_beyond_the_kept_values_drop_out() -> None:
    choice = choose_level(streamed(pareto(1000, 10, 10), capacity=101))
    assert choice.level == 0.90
    assert choice.rejected.keys() == {0.90, 0.95}
    assert choice.reason.endswith(
        "; 0.8, 0.85 would have more exceedances than the 101 values kept per filter allow."
    )


@pytest.mark.parametrize("samples", [1000, 1_003, 6_000])
def test_where_all_drop_out_the_lowest_possible_level_is_taken(
    samples: int, caplog: pytest.LogCaptureFixture
) -> None:
    tails = streamed(pareto(samples, 2, 11), capacity=40)
    choice = choose_level(tails)
    assert exceedance_count(samples, choice.level, samples) == 39
    assert "untested, is the lowest possible: 0.8, 0.85, 0.9, 0.95 have more" in choice.reason
    assert choice.rejected == {}
    fit_tails(tails, choice.level)
    assert caplog.text == ""


@pytest.mark.parametrize(
    "profile",
    [torch.rand(0, 3), torch.rand(1, 3), torch.rand(40, 3), torch.ones(500, 3)],
    ids=["none", "one", "few", "constant"],
)
def test_without_a_fit_to_test_it_is_90_percent(profile: Tensor) -> None:
    choice = choose_level(streamed(profile))
    assert (choice.level, choice.rejected) == (0.90, {})
    assert f"no filter has a fit to test among {len(profile)} samples" in choice.reason


def test_without_a_fit_to_test_it_is_still_a_level_whose_values_are_kept() -> None:
    choice = choose_level(streamed(torch.ones(500, 3), capacity=40))
    assert choice.level == 0.95


def test_filters_without_a_fit_have_no_vote() -> None:
    profile = torch.cat([pareto(500, 5, 12), torch.zeros(500, 200, dtype=torch.float64)], 1)
    choice = choose_level(streamed(profile))
    assert choice.level == 0.80
    assert "of 5 tested" in choice.reason


def test_a_candidate_with_too_few_exceedances_is_not_chosen() -> None:
    choice = choose_level(streamed(pareto_above(0.93, 150, 20, 13)))
    assert 0.95 not in choice.rejected
    assert choice.level == 0.90


@pytest.mark.parametrize("candidates", [(), (0.0, 0.9), (0.9, 1.0), (90,)])
def test_candidates_that_are_no_levels_are_refused(candidates: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="candidates are"):
        choose_level(Tails(1), candidates)


def test_candidates_may_come_in_any_order_and_twice() -> None:
    tails = streamed(pareto_above(0.87, 500, 10, 14))
    assert choose_level(tails, (0.95, 0.8, 0.9, 0.85, 0.9)) == choose_level(tails)
