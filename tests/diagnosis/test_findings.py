"""Findings of a pass: of all mistakes, of classes and of confusions."""

import torch
from torch import Tensor

from salmon import FilterIndex, Tails, filter_saliency, fit_tails, rank_filters
from salmon.diagnosis import Findings, Mistakes, find
from salmon.ranking import Ranking
from tests.diagnosis.test_blame import classes
from tests.networks import PlainNet, batch
from tests.ranking.test_ranking import doubles, hand_fit

FILTERS = 80


def ranking(rows: Tensor) -> Ranking:
    """Samples whose filters of these numbers lie in their tails."""
    profile = torch.zeros(len(rows), FILTERS, dtype=torch.float64)
    profile.scatter_(1, rows, 2 + torch.rand(rows.shape, dtype=torch.float64))
    return rank_filters(profile, hand_fit(doubles(*[0.0] * FILTERS)), top_k=rows.shape[1])


def drawn(samples: int, seed: int, *, common: int | None = None) -> Tensor:
    """Five filters a sample at random; all have one in common, if asked."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(samples, FILTERS - 10, generator=generator).argsort(1)[:, :5]
    if common is not None:
        rows[:, 0] = common
    return rows


def test_a_filter_of_all_mistakes_is_a_finding_with_its_numbers() -> None:
    rows = drawn(40, 1)
    rows[:15, 0] = 75
    mistakes, right = classes(*[(i % 4, 4) for i in range(40)]), drawn(200, 2)
    found = find(mistakes, ranking(rows), ranking(right), torch.arange(200) % 4, FILTERS)
    (first, *_) = found.filters
    assert (first.filter, first.mistakes, first.expected) == (75, 15, 0.0)
    assert (first.target, first.predicted) == (None, None)
    assert first.p == 2 / 1000 == float(found.p[75])
    assert found.compared


def test_a_filter_that_belongs_to_a_class_is_no_finding_within_that_class() -> None:
    """Most mistakes are of class 0, whose samples always have filter 70, right or wrong."""
    rows = torch.cat([drawn(30, 3, common=70), drawn(10, 4)])
    mistakes = classes(*[(0, 1)] * 30, *[(1, 0)] * 10)
    right = torch.cat([drawn(60, 5, common=70), drawn(200, 6)])
    of_class = torch.tensor([0] * 60 + [1] * 200)
    found = find(mistakes, ranking(rows), ranking(right), of_class, FILTERS)
    assert 70 in [each.filter for each in found.filters]
    assert not [each for each in found.found if each.target == 0 and each.filter == 70]


def test_a_confusion_has_findings_of_its_own() -> None:
    rows = torch.cat([drawn(25, 7, common=71), drawn(25, 8)])
    mistakes = classes(*[(2, 3)] * 25, *[(2, 4)] * 25)
    found = find(mistakes, ranking(rows), ranking(drawn(100, 9)), torch.full((100,), 2), FILTERS)
    kinds = {(each.target, each.predicted) for each in found.found if each.filter == 71}
    assert kinds == {(None, None), (2, None), (2, 3)}
    excess = [each.mistakes - each.expected for each in found.found]
    assert excess == sorted(excess, reverse=True)


def test_classes_of_few_samples_are_not_looked_at_by_themselves() -> None:
    rows = drawn(24, 10, common=72)
    mistakes = classes(*[(0, 1)] * 4, *[(1, 0)] * 20)
    right = torch.tensor([0] * 100 + [1] * 4)
    found = find(mistakes, ranking(rows), ranking(drawn(104, 11)), right, FILTERS)
    assert {each.target for each in found.found} == {None}


def test_any_whole_number_is_a_seed() -> None:
    rows = drawn(24, 10, common=72)
    given = classes(*[(1, 0)] * 24), ranking(rows), ranking(drawn(60, 11)), torch.ones(60).long()
    for seed in (-3, 0, 2**70):
        assert find(*given, FILTERS, seed=seed).filters[0].filter == 72


def test_without_mistakes_or_right_samples_nothing_is_compared() -> None:
    some, none = ranking(drawn(9, 12)), ranking(drawn(0, 12))
    labels = torch.zeros(9, dtype=torch.int64)
    for found in (
        find(classes(), none, some, labels, FILTERS),
        find(classes(*[(0, 1)] * 9), some, none, labels[:0], FILTERS),
    ):
        assert not found.compared
        assert found.found == ()


def test_a_network_whose_flags_are_drawn_at_random_has_findings_in_few_passes() -> None:
    """Targets and profiles of real samples stay as they are; only who counts as wrong is drawn."""
    torch.manual_seed(3)
    model = PlainNet().eval()
    images, labels = batch(400, seed=3)
    index = FilterIndex.from_model(model)
    profile = filter_saliency(model, images, labels, index)
    tails = Tails(len(index))
    tails.update(profile)
    every = rank_filters(profile, fit_tails(tails, 0.8), top_k=4, own=True)
    predicted = model(images).argmax(1)
    with_findings = 0
    for seed in range(100):
        order = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
        wrong, right = order[:120], order[120:]
        found = flagged(every, labels, predicted, wrong, right, len(index), seed)
        with_findings += bool(found.found)
    assert with_findings <= 10


def flagged(
    every: Ranking, labels: Tensor, predicted: Tensor, wrong: Tensor, right: Tensor, filters: int,
    seed: int,
) -> Findings:  # fmt: skip
    """What is found if these samples are called wrong."""
    pairs = torch.stack([labels[wrong], predicted[wrong]], 1).tolist()
    mistakes: Mistakes = classes(*[(a, b) for a, b in pairs])
    return find(mistakes, every.take(wrong), every.take(right), labels[right], filters, seed=seed)


def test_fewer_than_five_mistakes_or_right_samples_find_nothing() -> None:
    for wrong, right in ((4, 200), (200, 4)):
        rows, others = drawn(wrong, 1, common=75), drawn(right, 2)
        mistakes = classes(*[(i % 4, 4) for i in range(wrong)])
        got = find(mistakes, ranking(rows), ranking(others), torch.arange(right) % 4, FILTERS)
        assert (got.compared, got.found) == (False, ())
        assert bool(torch.isnan(got.p).all())
    rows, mistakes = drawn(5, 1, common=75), classes(*[(0, 1)] * 5)
    assert find(mistakes, ranking(rows), ranking(drawn(200, 2)), None, FILTERS).compared
