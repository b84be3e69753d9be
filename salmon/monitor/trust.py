"""Whether what was measured is what the user validates: counts of a pass, and what they mean."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from salmon.views import percent

_FEW = 0.01
"""Share of samples whose outputs may differ, by rounding at its worst."""

_Count = Tensor | int  # on a GPU a tensor, so that nobody waits for it


@dataclass(slots=True, kw_only=True)
class Evidence:
    """Counts of samples, unless said otherwise."""

    compared: int = 0  # whose outputs in the user's step were seen
    differing: _Count = 0  # of these, with another output when measured
    probabilities: _Count = 0  # whose outputs are probabilities where logits are needed
    beyond: _Count = 0  # with a label above the classes of the network
    samples: int = 0
    prepared: int = 0  # batches for which the step fed the network something else than they hold
    ambiguous: int = 0  # batches for which it fed several such things

    def counts(self) -> dict[str, int]:
        """Wait for the numbers.

        Returns:
            By name.
        """
        return {name: int(getattr(self, name)) for name in self.__slots__}

    def add(self, counts: dict[str, int]) -> None:
        """Add what another process counted.

        Args:
            counts: As of :meth:`counts`.
        """
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)

    def doubts(self) -> tuple[str, ...]:
        """Say why the numbers may be about something else than the user validates.

        Returns:
            Sentences with what to do; none where nothing speaks against them.
        """
        n: Any = self.counts()
        found = []
        if n["differing"] > _FEW * n["compared"]:
            found.append(
                "The network gave other outputs in the user's step than when it was measured (for "
                f"{percent(n['differing'] / n['compared'])} of the samples): the step runs another "
                "network, such as an average of the weights, leaves dropout on, or prepares the "
                "inputs out of sight. Let forward be what the step evaluates, or give unpack=, a "
                "function from the batch to what the network gets and the labels."
            )
        if n["samples"] and n["probabilities"] == n["samples"]:
            found.append(
                "The network gives probabilities where logits are needed, so that the loss is not "
                "the one it was trained with. Let forward return logits, or give loss=, such as "
                "lambda p, y: torch.nn.functional.nll_loss(p.log(), y, reduction='none')."
            )
        if 2 * n["beyond"] > n["samples"]:
            found.append(
                f"Most labels ({n['beyond']} of {n['samples']}) are higher than the classes of the "
                "network, so they may be something else, such as the second entry of batches "
                "(image, index, label). Give unpack=, such as lambda batch: (batch[0], batch[2])."
            )
        if n["ambiguous"]:
            found.append(
                f"The user's step ran the network on several inputs (in {n['ambiguous']} batches), "
                "none of which the batch holds; the first ones were measured. Give unpack=, a "
                "function from the batch to the inputs that count and the labels."
            )
        return tuple(found)
