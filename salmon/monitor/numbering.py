"""Where samples stand in a pass: with several processes each gets every so-many-th one.

The order is that of ``torch.utils.data.DistributedSampler``: with w processes, process r gets the
samples r, r + w, r + 2w and so on; what lies beyond the last sample repeats earlier ones, so that
all processes get as many.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Numbering:
    """Of one process."""

    rank: int = 0
    ranks: int = 1
    samples: int | None = None  # of all processes; those beyond are repeats

    def of(self, start: int, count: int) -> Tensor:
        """Number some samples.

        Args:
            start: Samples that this process got before.
            count: N, how many follow.

        Returns:
            ``[N]`` int64 positions in the whole pass.
        """
        return torch.arange(start, start + count) * self.ranks + self.rank

    def fresh(self, numbers: Tensor) -> Tensor:
        """Tell samples from repeats.

        Args:
            numbers: ``[N]`` of :meth:`of`.

        Returns:
            ``[N]`` bool.
        """
        if self.samples is None:
            return torch.ones_like(numbers, dtype=torch.bool)
        return numbers < self.samples

    def batch(self, number: int) -> int:
        """Number a batch.

        Args:
            number: Among those of this process.

        Returns:
            Among those of all.
        """
        return number * self.ranks + self.rank
