"""Which samples of a pass are measured, and for how many each of them stands.

The tails consist of mistakes and of right samples that the network is unsure of. So every mistake
is measured, a right sample with a probability of 1, 1/2, 1/4, ... that falls with the probability
the network gives to other classes, and one measured with 1/w counts w times (Poisson sampling with
unequal probabilities; Horvitz and Thompson 1952, JASA 47(260), 663-685). Where only 1/v of the
mistakes are measured, all these chances are 1/v of that, and the tails are those of 1/v of the
samples. The choice depends on the seed, the number of the sample and the network's answer, and on
nothing else.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from salmon.diagnosis.reservoir import priorities

UNSURE = 4.0
"""A right sample is measured with so many times the probability of other classes, at most 1; with
fewer times where mistakes alone fill the tails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The chances to be measured, as powers of two."""

    seed: int
    wrong: int  # a mistake is measured with 2^-wrong
    right: int  # and no right sample with less than 2^-right
    unsure: float

    @classmethod
    def of(
        cls,
        *,
        seed: int,
        right_samples: int | None,
        max_mistakes: int | None,
        expected: int | None,
        accuracy: float | None,
        tail: float,
    ) -> "Choice | None":
        """Plan a pass.

        Args:
            right_samples: About how many right samples are measured that the network is sure of;
                None measures all right ones.
            max_mistakes: At most about so many mistakes are measured; None measures all.
            expected: Samples that will come; None if unknown.
            accuracy: About what share of them is right; None if unknown.
            tail: Share of the samples above the thresholds; 0 where no tails are fitted.

        Returns:
            None where all samples are measured: these are few, or it is not known how many.
        """
        enough = (right_samples or 0) + (max_mistakes or 0)
        if expected is None or expected <= enough:
            return None
        right = wrong = 0
        if right_samples is not None:
            most = expected * (1.0 if accuracy is None else accuracy)
            right = max(0, math.floor(math.log2(max(most, 1) / right_samples)))
        if max_mistakes is not None and accuracy is not None:
            most = expected * (1 - accuracy)
            wrong = max(0, math.ceil(math.log2(max(most, 1) / max_mistakes)))
        if right == wrong == 0:
            return None
        right = max(right, wrong)  # no right sample is likelier than a mistake
        fill = 1.0 if accuracy is None else tail / max(1 - accuracy, tail, 1e-9)
        return cls(seed=seed, wrong=wrong, right=right, unsure=UNSURE * fill**2 if tail else 0.0)

    def copies(self, numbers: Tensor, wrong: Tensor, others: Tensor) -> Tensor:
        """Tell for how many samples each one stands.

        Args:
            numbers: ``[N]`` int64 positions in the pass, on the CPU.
            wrong: ``[N]`` bool, whether misclassified.
            others: ``[N]`` probability that the network gives to other classes than the true one.

        Returns:
            ``[N]`` int64 on the CPU, of ``2^-wrong`` of all samples; 0 where one is not measured.
        """
        chance = (self.unsure * others.double()).nan_to_num(nan=1.0).clamp(2.0**-62, 1.0)
        halvings = (self.wrong + (-chance.log2()).floor().long()).clamp_max(self.right)
        halvings = halvings.masked_fill(wrong, self.wrong).cpu()
        return torch.where(self._among(numbers, halvings), 1 << (halvings - self.wrong), 0)

    def stood_for(self, samples: int) -> int:
        """As how many samples the measured ones of so many count."""
        return round(samples / (1 << self.wrong))

    def by_chance(self, numbers: Tensor) -> Tensor:
        """``[N]`` bool, which right samples are measured whatever the network says of them."""
        return self._among(numbers, torch.full_like(numbers, self.right))

    def _among(self, numbers: Tensor, halvings: Tensor) -> Tensor:
        """``[N]`` bool, true with a chance of ``2^-halvings``; those of a reservoir come first."""
        uniform = (priorities(numbers, self.seed) >> 1) + (1 << 62)  # 63 bits
        return uniform >> (63 - halvings) == 0
