"""Findings: filters that mistakes blame more often than right samples do, beyond chance.

Three questions are asked of every filter: do all mistakes blame it more often than right samples
do; those of one true class more often than right samples of that class (some filters always belong
to a class); those that take this class for a certain other one?
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from salmon.diagnosis.chance import Excess, excesses
from salmon.diagnosis.diagnosis import Finding, Findings, Mistakes
from salmon.ranking import ALPHA, Ranking

FEWEST = 5
"""Mistakes, and right samples, without which nothing is found: of all, of a class, of a pair."""

MOST = 40
"""Classes and confusions that are, those with most mistakes."""

_Kind = tuple[int, int | None]
"""True and predicted class, None for any."""


def find(
    mistakes: Mistakes,
    ranking: Ranking,
    right: Ranking,
    right_classes: Tensor | None,
    filters: int,
    *,
    seed: int = 0,
) -> Findings:
    """Look for filters that stand out.

    One pass in twenty, where none does, still names some: half of this is spent on the filters of
    all mistakes, half on classes and confusions.

    Args:
        mistakes: M samples.
        ranking: Of them.
        right: Of R right samples, chosen at random and ranked alike.
        right_classes: ``[R]`` their true classes; None where there are no classes.
        filters: F.
        seed: Of the permutations.
    """
    enough = min(len(ranking.filters), len(right.filters)) >= FEWEST
    if not enough or not bool((right.filters >= 0).any()):
        nothing = torch.full((filters,), torch.nan, dtype=torch.float64)
        return Findings(expected=nothing, p=nothing, found=())
    kinds, parts = list[_Kind](), list[tuple[Tensor, Tensor]]()
    if right_classes is not None:
        kinds = _kinds(mistakes, right_classes)
        parts = [
            (ranking.filters[among(mistakes, *kind)], right.filters[right_classes == kind[0]])
            for kind in kinds
        ]
    (overall,) = excesses([(ranking.filters, right.filters)], filters, seed=seed)
    found = list(_beyond(overall))
    for kind, excess in zip(kinds, excesses(parts, filters, seed=seed + 1), strict=True):
        found += _beyond(excess, *kind)
    found.sort(key=lambda each: each.expected - each.mistakes)
    return Findings(expected=overall.expected, p=(2 * overall.p).clamp_max(1), found=tuple(found))


def _beyond(
    excess: Excess, target: int | None = None, predicted: int | None = None
) -> Iterator[Finding]:
    """What stands out in one comparison."""
    for number in (2 * excess.p <= ALPHA).nonzero().squeeze(1).tolist():
        yield Finding(
            filter=number, mistakes=int(excess.mistakes[number]),
            expected=float(excess.expected[number]), p=2 * float(excess.p[number]),
            target=target, predicted=predicted,
        )  # fmt: skip


def _kinds(mistakes: Mistakes, right_classes: Tensor) -> list[_Kind]:
    """Classes and confusions of which there are enough mistakes, and right samples."""
    classes, counts = right_classes.unique(return_counts=True)
    known = set(classes[counts >= FEWEST].tolist())
    both = torch.stack([mistakes.target, mistakes.predicted], 1)
    pairs, of_pair = both.unique(dim=0, return_counts=True)
    targets, of_class = mistakes.target.unique(return_counts=True)
    counted: list[tuple[int, _Kind]] = [
        *((n, (c, None)) for c, n in zip(targets.tolist(), of_class.tolist(), strict=True)),
        *((n, (c, d)) for (c, d), n in zip(pairs.tolist(), of_pair.tolist(), strict=True)),
    ]
    enough = [each for each in counted if each[0] >= FEWEST and each[1][0] in known]
    enough.sort(key=lambda each: -each[0])
    return [kind for _, kind in enough[:MOST]]


def among(mistakes: Mistakes, target: int | None, predicted: int | None) -> Tensor:
    """``[M]`` bool, which mistakes are of a true class and taken for another; None for any."""
    found = torch.ones_like(mistakes.target, dtype=torch.bool)
    if target is not None:
        found &= mistakes.target.eq(target)
    return found if predicted is None else found & mistakes.predicted.eq(predicted)
