"""Whom mistakes blame, against counting by hand."""

import statistics
from collections import Counter

import pytest
import torch
from torch import Tensor

from salmon import rank_filters
from salmon.diagnosis import Mistakes, confusions, most_blamed
from salmon.ranking import Ranking
from tests.ranking.test_ranking import doubles, hand_fit


def random_ranking(mistakes: int = 60, filters: int = 12, top_k: int = 4) -> Ranking:
    generator = torch.Generator().manual_seed(3)
    profile = 3 * torch.rand(mistakes, filters, generator=generator, dtype=torch.float64)
    return rank_filters(profile, hand_fit(torch.zeros(filters).double()), top_k=top_k)


def classes(*pairs: tuple[int, int]) -> Mistakes:
    numbers = torch.arange(len(pairs))
    target, predicted = torch.tensor(pairs).view(-1, 2).unbind(1)
    real = torch.zeros(len(pairs), dtype=torch.float64)
    return Mistakes(
        sample=numbers, ids=numbers.tolist(), batch=numbers, target=target, predicted=predicted,
        loss=real,
    )  # fmt: skip


def by_hand(ranking: Ranking) -> dict[int, list[float]]:
    """Tail probabilities of every filter in the mistakes that have it on top."""
    found: dict[int, list[float]] = {}
    for filters, p in zip(ranking.filters.tolist(), ranking.p.tolist(), strict=True):
        for number, value in zip(filters, p, strict=True):
            if number >= 0:
                found.setdefault(number, []).append(value)
    return found


def test_filters_are_counted_over_mistakes_with_their_median_probability() -> None:
    ranking = random_ranking()
    expected = by_hand(ranking)
    blame = most_blamed(ranking, 100)
    assert dict(zip(blame.filters.tolist(), blame.mistakes.tolist(), strict=True)) == {
        number: len(values) for number, values in expected.items()
    }
    medians = [statistics.median(expected[number]) for number in blame.filters.tolist()]
    torch.testing.assert_close(blame.median_p, doubles(*medians), rtol=1e-12, atol=0)
    counts = blame.mistakes.tolist()
    assert counts == sorted(counts, reverse=True)


def test_equal_counts_are_ordered_by_the_rarer_median() -> None:
    profile = doubles(2.0, 5.0, 0.0, 4.0).view(1, 4)
    blame = most_blamed(rank_filters(profile, hand_fit(doubles(0, 0, 0, 0)), top_k=4), 10)
    assert blame.filters.tolist() == [1, 3, 0]
    assert blame.mistakes.tolist() == [1, 1, 1]


def test_only_as_many_filters_are_named_as_asked_for() -> None:
    ranking = random_ranking()
    assert torch.equal(most_blamed(ranking, 3).filters, most_blamed(ranking, 100).filters[:3])


@pytest.mark.parametrize("profile", [torch.empty(0, 3), torch.zeros(2, 3)])
def test_without_ranked_filters_nobody_is_blamed(profile: Tensor) -> None:
    ranking = rank_filters(profile, hand_fit(doubles(0, 0, 0)), top_k=2)
    assert most_blamed(ranking, 5).filters.tolist() == []


def test_filters_that_the_z_score_ranks_below_their_threshold_have_no_probability() -> None:
    ranking = rank_filters(doubles(0.9, 2.0)[None], hand_fit(doubles(0, 0)), "zscore", top_k=2)
    blame = most_blamed(ranking, 5)
    assert blame.filters.tolist() == [1, 0]
    assert torch.isnan(blame.median_p).tolist() == [False, True]


def test_pairs_of_classes_are_counted_most_frequent_first() -> None:
    pairs = [(i % 3, (i % 3 + 1 + i % 2) % 3) for i in range(60)]
    found = confusions(classes(*pairs).classes)
    assert {(p.target, p.predicted): p.mistakes for p in found} == Counter(pairs)
    assert [p.mistakes for p in found] == sorted((p.mistakes for p in found), reverse=True)
    assert confusions(classes().classes) == []
