"""Whether a filter is blamed beyond chance: against counting, brute force and simulation."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from salmon.diagnosis import chance
from salmon.diagnosis.chance import excesses


def top(samples: int, filters: int, places: int, seed: int) -> Tensor:
    """Random top filters, some places empty."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.rand(samples, filters, generator=generator).argsort(1)[:, :places]
    empty = torch.rand(samples, places, generator=generator) < 0.2
    return found.masked_fill(empty, -1)


def ratio_by_hand(wrong: list[set[int]], right: list[set[int]], number: int) -> float:
    """Log-likelihood ratio of one filter's places, written out."""
    a, b = (sum(number in sample for sample in side) for side in (wrong, right))
    share = sum(map(len, wrong)) / (sum(map(len, wrong)) + sum(map(len, right)))
    if a <= (a + b) * share:
        return 0.0
    found = a * math.log(a / (a + b) / share)
    return found + (b * math.log(b / (a + b) / (1 - share)) if b else 0.0)


def named(rows: Tensor) -> list[set[int]]:
    return [{n for n in row if n >= 0} for row in rows.tolist()]


def test_p_is_the_share_of_all_relabellings_with_a_filter_as_striking() -> None:
    rows = top(8, 6, 2, seed=1)
    rows[:3, 0] = 4  # three mistakes that share a filter
    samples = named(rows)

    def statistics(wrong: tuple[int, ...]) -> list[float]:
        mine = [samples[i] for i in wrong]
        theirs = [s for i, s in enumerate(samples) if i not in wrong]
        return [ratio_by_hand(mine, theirs, number) for number in range(6)]

    every = [max(statistics(wrong)) for wrong in itertools.combinations(range(8), 3)]
    (found,) = excesses([(rows[:3], rows[3:])], 6)
    for mine, p in zip(statistics((0, 1, 2)), found.p.tolist(), strict=True):
        exact = sum(other >= mine * (1 - 1e-12) for other in every) / len(every)
        # 999 draws: four standard errors, and the one that counts the data themselves in.
        assert p == pytest.approx(exact, abs=4 * math.sqrt(0.25 / 999) + 1e-3)
        assert (p == 1) == (exact == 1)


def test_expected_are_as_many_as_right_samples_would_have_in_as_many_places() -> None:
    wrong, right = top(30, 20, 5, seed=2), top(50, 20, 5, seed=3)
    right[:, 2] = -1
    (found,) = excesses([(wrong, right)], 20)
    mine, theirs = named(wrong), named(right)
    counts = [sum(n in sample for sample in mine) for n in range(20)]
    scale = sum(map(len, mine)) / sum(map(len, theirs))
    assert found.mistakes.tolist() == counts
    expected = [scale * sum(n in s for s in theirs) for n in range(20)]
    assert found.expected.tolist() == pytest.approx(expected, rel=1e-12)


def test_mistakes_that_only_fill_more_places_blame_no_filter_beyond_chance() -> None:
    wrong, right = top(200, 300, 25, seed=4), top(200, 300, 25, seed=5)
    right[:, 6:] = -1
    (found,) = excesses([(wrong, right)], 300)
    assert float(found.p.min()) > 0.05


def test_a_filter_that_mistakes_share_is_found_and_the_others_are_not() -> None:
    wrong, right = top(60, 400, 10, seed=16), top(300, 400, 10, seed=17)
    for side in (wrong, right):
        side[side == 17] = -1
    wrong[:20, 3] = 17
    (found,) = excesses([(wrong, right)], 400)
    assert float(found.p[17]) == 1 / (1 + chance.DRAWS)
    assert int((found.p <= 0.05).sum()) == 1


@pytest.mark.parametrize(
    ("wrong", "right"),
    [(0, 5), (5, 0), (0, 0)],
)
def test_without_one_side_nothing_is_beyond_chance(wrong: int, right: int) -> None:
    (found,) = excesses([(top(wrong, 9, 3, seed=1), top(right, 9, 3, seed=2))], 9)
    assert found.p.tolist() == [1.0] * 9
    assert bool(torch.isnan(found.expected).all()) == (right == 0)


def test_several_comparisons_share_one_level() -> None:
    wrong, right = top(40, 50, 5, seed=8), top(80, 50, 5, seed=9)
    (alone,) = excesses([(wrong, right)], 50)
    many = [(top(40, 50, 5, seed=s), top(80, 50, 5, seed=s + 1)) for s in range(20, 40, 2)]
    first = excesses([(wrong, right), *many], 50)[0]
    assert bool((first.p >= alone.p).all())
    assert bool((first.p > alone.p).any())


def test_very_many_samples_take_fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chance, "ENTRIES", 20_000)
    wrong = torch.zeros(100, 1, dtype=torch.int64)
    (found,) = excesses([(wrong, torch.ones(10, 1, dtype=torch.int64))], 2)
    assert 1 / (1 + chance.DRAWS) < float(found.p[0]) < 0.05


def test_wrong_flags_drawn_at_random_name_filters_as_seldom_as_promised() -> None:
    """Filters that rise together, and samples of unlike sizes, as they really are."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(260, 4, generator=generator) @ torch.randn(4, 200, generator=generator)
    values = common + torch.randn(260, 200, generator=generator)
    rows = values.argsort(1, descending=True)[:, :20]
    sizes = torch.randint(1, 21, (260, 1), generator=generator)
    rows = rows.masked_fill(torch.arange(20) >= sizes, -1)
    named_any = 0
    for seed in range(100):
        order = torch.randperm(260, generator=generator)
        (found,) = excesses([(rows[order[:60]], rows[order[60:]])], 200, seed=seed)
        named_any += int(float(found.p.min()) <= 0.05)
    assert named_any <= 10  # 5 expected; more than 10 has probability 0.011
