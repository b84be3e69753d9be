"""Profiles of some samples within a memory budget, the same ones for any order of arrival.

Every sample draws a priority from its number and the seed; those with the smallest priorities stay.
Hence the choice depends on neither the order nor the split of the samples (bottom-k sampling).
Where samples have scores, those with the highest stay, and priorities decide among equal ones.
"""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def priorities(numbers: Tensor, seed: int) -> Tensor:
    """Hash sample numbers to uniform priorities (SplitMix64, Steele et al. 2014).

    Args:
        numbers: ``[N]`` int64.

    Returns:
        ``[N]`` int64, uniform over all values; distinct for distinct numbers.
    """
    offset = (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % (1 << 64)
    z = (numbers ^ (offset - (1 << 64) if offset >> 63 else offset)) + _GOLDEN
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)


class Reservoir:
    """At most ``capacity`` rows of ``width`` numbers, with number and class of each sample."""

    def __init__(self, capacity: int, width: int, seed: int) -> None:
        """Start empty; memory grows with what comes."""
        self.capacity = capacity
        self._seed = seed
        self._held = 0
        self._rows = torch.empty((0, width))
        self._numbers = torch.empty(0, dtype=torch.int64)
        self._classes = torch.empty(0, dtype=torch.int64)
        self._priorities = torch.empty(0, dtype=torch.int64)
        self._scores = torch.empty(0, dtype=torch.float64)  # 0 where there are none
        self._scored = False

    @property
    def dtype(self) -> torch.dtype:
        """Of its rows."""
        return self._rows.dtype

    def admits(self, numbers: Tensor) -> Tensor:
        """``[M]`` bool, which samples it is worth to offer; the others could not stay."""
        if self._held < self.capacity or self._scored:
            return torch.ones_like(numbers, dtype=torch.bool)
        return priorities(numbers, self._seed) < self._priorities[: self._held].amax()

    def offer(
        self, numbers: Tensor, rows: Tensor, classes: Tensor, scores: Tensor | None = None
    ) -> None:
        """Offer samples; those that stay push out others once the reservoir is full.

        Args:
            numbers: ``[M]`` int64 sample numbers, each offered once.
            rows: ``[M, width]`` on the CPU.
            classes: ``[M]`` int64.
            scores: ``[M]`` float64; the highest stay. None leaves it to chance.
        """
        incoming = priorities(numbers, self._seed)
        score = torch.zeros(len(numbers), dtype=torch.float64) if scores is None else scores
        stay = torch.cat([self._priorities[: self._held], incoming]).argsort()
        if scores is not None:
            self._scored = True
            of_all = torch.cat([self._scores[: self._held], score])
            stay = stay[of_all[stay].argsort(descending=True, stable=True)]
        stay = stay[: self.capacity]
        chosen = stay[stay >= self._held] - self._held
        leaving = torch.ones(self._held, dtype=torch.bool)
        leaving[stay[stay < self._held]] = False
        # Those that leave make room first; the others go behind the last one.
        freed = leaving.nonzero().squeeze(1)
        fresh = torch.arange(self._held, self._held + len(chosen) - len(freed))
        self._grow(self._held + len(fresh), rows.dtype)
        self._held += len(fresh)
        slots = torch.cat([freed, fresh])
        self._rows[slots] = rows[chosen].to(self._rows.dtype)
        self._numbers[slots] = numbers[chosen]
        self._classes[slots] = classes[chosen]
        self._priorities[slots] = incoming[chosen]
        self._scores[slots] = score[chosen]

    def merge(self, other: "Reservoir") -> None:
        """Offer what another one keeps of other samples."""
        held = slice(0, other._held)
        scores = other._scores[held] if other._scored else None
        self.offer(other._numbers[held], other._rows[held], other._classes[held], scores)

    def kept(self) -> tuple[Tensor, Tensor, Tensor]:
        """Hand out what stayed.

        Returns:
            ``[M]`` sample numbers in ascending order, their ``[M, width]`` rows, and classes.
        """
        order = self._numbers[: self._held].argsort()
        return self._numbers[order], self._rows[order], self._classes[order]

    def _grow(self, size: int, dtype: torch.dtype) -> None:
        """Make room for ``size`` rows, doubling so that each row is copied a few times at most."""
        wide = torch.promote_types(self._rows.dtype, dtype)
        have = len(self._numbers)
        if size <= have and wide == self._rows.dtype:
            return
        length = have if size <= have else min(self.capacity, max(size, 2 * have))
        rows = torch.empty((length, self._rows.shape[1]), dtype=wide)
        rows[: self._held] = self._rows[: self._held]
        self._rows = rows
        padding = self._numbers.new_zeros(length - have)
        self._numbers = torch.cat([self._numbers, padding])
        self._classes = torch.cat([self._classes, padding])
        self._priorities = torch.cat([self._priorities, padding])
        self._scores = torch.cat([self._scores, padding.double()])


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
