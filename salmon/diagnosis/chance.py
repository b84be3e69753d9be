"""Whether mistakes blame a filter more often than right samples do, beyond chance.

The yardstick are right samples ranked alike, not uniform draws: filters are correlated, differ in
shape, and share the loss of a sample. What is compared is how the *places* among the top K are
shared out. Mistakes fill more of them than right samples, since all their gradients are larger;
that alone makes no filter a finding.

The statistic of a filter is the log-likelihood ratio of its places being divided between wrong and
right samples otherwise than all places are. Its p-value comes from permuting which whole samples
are wrong, with the largest statistic of all filters for comparison, so that it is adjusted for
their number and dependence: Westfall and Young (1993), Resampling-Based Multiple Testing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.special
import torch
from torch import Tensor

DRAWS = 999
"""Permutations; the smallest p-value is 1 in 1,000."""

FEWEST = 99
"""Of them, where samples are so many that fewer have to do: :data:`ENTRIES` by their number."""

ENTRIES = 1 << 26

_Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Excess:
    """Mistakes against right samples; ``[F]`` each."""

    mistakes: Tensor  # int64, that have the filter among their top K
    expected: Tensor  # as many, if mistakes shared their places out as right samples do
    p: Tensor  # adjusted for all filters of all comparisons that were made at once


def excesses(
    pairs: Sequence[tuple[Tensor, Tensor]], filters: int, *, seed: int = 0
) -> list[Excess]:
    """Compare mistakes with right samples.

    Args:
        pairs: The ``[M, K]`` top filters of mistakes, and the ``[R, K]`` ones of right samples, -1
            where a place is empty. Over several pairs the largest statistic is taken as if they
            were independent, which is on the safe side where they share samples.
        filters: F.
        seed: Of the permutations.

    Returns:
        One for each pair. ``expected`` is NaN where no right sample has a place.
    """
    most = max((len(wrong) + len(right) for wrong, right in pairs), default=0)
    draws = min(DRAWS, max(FEWEST, ENTRIES // max(1, most)))
    random = np.random.default_rng(seed % (1 << 64))  # which takes no negative number
    highest = np.zeros(draws)
    found = []
    for wrong, right in pairs:
        places = _places(torch.cat([wrong, right]), filters)
        is_wrong = np.arange(places.shape[1]) < len(wrong)
        mine = (places @ is_wrong.astype(np.int32)).astype(np.int64)
        theirs = places.sum(1) - mine
        statistic = _ratio(mine, mine + theirs, mine.sum() / max(1, places.nnz))
        total = theirs.sum()
        expected = theirs * (mine.sum() / total) if total else np.full(filters, np.nan)
        found.append((statistic, mine, expected))
        at_once = max(1, ENTRIES // 8 // max(1, len(is_wrong)))
        for start in range(0, draws, at_once):
            part = highest[start : start + at_once]
            drawn = random.permuted(np.tile(is_wrong, (len(part), 1)), axis=1).T
            np.maximum(part, _highest(places, drawn), out=part)
    highest.sort()
    return [
        Excess(
            torch.from_numpy(mine),
            torch.from_numpy(expected),
            torch.from_numpy((1 + draws - np.searchsorted(highest, statistic)) / (1 + draws)),
        )
        for statistic, mine, expected in found
    ]


def _places(top: Tensor, filters: int) -> scipy.sparse.csr_array:
    """``[F, N]`` int32, 1 where a sample has a filter among its top ones."""
    samples, places = (top >= 0).nonzero(as_tuple=True)
    at = top[samples, places].numpy(), samples.numpy()
    ones = np.ones(len(samples), dtype=np.int32)
    return scipy.sparse.csr_array((ones, at), shape=(filters, len(top)))


def _highest(places: scipy.sparse.csr_array, wrong: _Array) -> _Array:
    """``[B]`` highest statistic of all filters, for each column of ``[N, B]`` bool."""
    wrong = wrong.astype(np.int32)
    totals = np.diff(places.indptr)
    rows = totals.argsort(kind="stable")
    rows = rows[totals[rows] > 0]
    if not len(rows):
        return np.zeros(wrong.shape[1])
    # Of filters with as many places, the one with most mistakes has the highest ratio.
    numbers, starts = np.unique(totals[rows], return_index=True)
    most = np.maximum.reduceat(places[rows] @ wrong, starts, axis=0)
    share = places.sum(0) @ wrong / places.nnz
    highest: _Array = _ratio(most, numbers[:, None], share).max(0)
    return highest


def _ratio(mine: _Array, both: _Array, share: _Array) -> _Array:
    """Log-likelihood ratio; 0 where mistakes have no more than their share of the places."""
    theirs = both - mine
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (
            scipy.special.xlogy(mine, mine / (both * share))
            + scipy.special.xlogy(theirs, theirs / (both * (1 - share)))
        )  # fmt: skip
    return np.where(mine > both * share, found, 0.0)
