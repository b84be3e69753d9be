"""The ranked filters of samples, and what is known of each."""

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor


class Strength(IntEnum):
    """How striking a tail probability is, given how many filters the network has."""

    ORDINARY = 0  # E > 1: an ordinary sample has a filter as rare
    WEAK = 1  # rarer than that
    SIGNIFICANT = 2  # passes the procedure of Benjamini and Hochberg within the sample

    @property
    def label(self) -> str:
        """Lower-case name for tables and files."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking:
    """Top filters of N samples, best first; ``[N, K]`` unless said otherwise.

    A row with fewer than K ranked filters ends in places with filter -1 and NaN.
    """

    method: str
    filters: Tensor  # int64 filter numbers
    score: Tensor  # float64, higher is ranked earlier
    saliency: Tensor  # float64
    log_p: Tensor  # float64 natural log of the POT tail probability; NaN below the threshold
    z: Tensor  # float64 z-score
    ranked: Tensor  # [N] int64, how many filters of the sample could be ranked at all
    p_low: Tensor | None = None  # 90 % interval of p; NaN under maximum likelihood
    p_high: Tensor | None = None
    significant: Tensor | None = None  # [N] int64, filters with significant p, of all; POT only
    tested: int = 0  # F, filters with a fitted tail
    samples: int = 0  # n, of the fit

    @property
    def p(self) -> Tensor:
        """Tail probability, in (0, rate]; NaN below the threshold."""
        return self.log_p.exp()

    @property
    def e(self) -> Tensor:
        """How many filters of an ordinary sample are as rare by chance, ``F p``."""
        return self.tested * self.p

    @property
    def strength(self) -> Tensor:
        """int8 :class:`Strength` of every place of a POT ranking."""
        grade = torch.where(self.e <= 1, Strength.WEAK, Strength.ORDINARY).to(torch.int8)
        if self.significant is not None:
            first = torch.arange(self.filters.shape[1]) < self.significant.unsqueeze(1)
            grade[first & (self.filters >= 0)] = Strength.SIGNIFICANT
        return grade

    @property
    def extrapolated(self) -> Tensor:
        """Whether p is below ``0.1/n``, where no calibration on as many samples reaches."""
        return self.p * self.samples < 0.1

    def take(self, rows: Tensor) -> "Ranking":
        """Select some samples.

        Args:
            rows: ``[M]`` row numbers.

        Returns:
            The ranking of these samples, in the order of ``rows``.
        """
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        taken = {name: v[rows] for name, v in columns.items() if isinstance(v, Tensor)}
        return Ranking(**columns | taken)
