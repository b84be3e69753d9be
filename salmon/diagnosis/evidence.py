"""Whether what was measured is what the user validates: counts of a pass, and what they mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from salmon.saliency import prediction_of

_CLOSE = 1e-3
_CLOSE_IN_HALF = 5e-2
"""Largest difference of logits, as a share of their range, that rounding may make."""

_TABLE = 2  # dimensions

_FEW = 0.01
"""Share of samples whose outputs may differ, by rounding at its worst."""

_Count = Tensor | int  # on a GPU a tensor, so that nobody waits for it


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What the user's own step did with a batch of N samples."""

    outputs: Sequence[Any] = ()  # what it made the network give for the inputs measured, if seen
    ambiguous: bool = False  # whether it fed the network several things, none of them the batch's
    whole: bool = True  # whether they are the network's own, or some of parts of it

    def predictions(self, samples: int) -> list[Tensor]:
        """``[N, ...]`` each, of those outputs that are some of N samples.

        Those of parts of the network are no more than logits ``[N, K]``, since they may be large.
        """
        found = (prediction_of(output) for output in self.outputs)
        return [
            each for each in found
            if each is not None and len(each) == samples and (self.whole or each.ndim <= _TABLE)
        ]  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Evidence:
    """Counts of samples, unless said otherwise."""

    compared: int = 0  # whose outputs in the user's step were seen
    differing: _Count = 0  # of these, with another output when measured
    probabilities: _Count = 0  # whose outputs can be probabilities where logits are needed
    extreme: _Count = 0  # with one that would be sure
    beyond: _Count = 0  # with a label above the classes of the network
    samples: _Count = 0
    ambiguous: int = 0  # batches for which it fed several such things
    misfits: int = 0  # batches that do not fit the task that another one told

    def counts(self) -> dict[str, int]:
        """Wait for the numbers."""
        return {name: int(getattr(self, name)) for name in self.__slots__}

    def weigh(self, measured: Tensor | None, seen: Sequence[Tensor]) -> None:
        """Count what the network gave otherwise in the step than when it was measured.

        Args:
            measured: ``[M, ...]``; None where nothing can be compared.
            seen: ``[M, ...]`` of the step, any number of them.
        """
        off = None if measured is None else _differing(measured, seen)
        if off is not None:
            self.compared += len(off)
            self.differing = self.differing + off.sum()

    def add(self, other: "Evidence") -> None:
        """Add what another pass counted."""
        for name, count in other.counts().items():
            setattr(self, name, getattr(self, name) + count)

    def doubts(self, class_samples: Tensor | None = None) -> tuple[str, ...]:
        """Say why the numbers may be about something else than the user validates.

        Args:
            class_samples: ``[K]`` samples by true class, where they have some.

        Returns:
            Sentences with what to do; none where nothing speaks against them.
        """
        n: Any = self.counts()
        found = []
        if n["differing"] > _FEW * n["compared"]:
            found.append(
                "The network gave other outputs in the user's step than when it was measured (for "
                f"{100 * n['differing'] / n['compared']:.1f} % of the samples): the step runs "
                "another network, such as an average of the weights, leaves dropout on, or "
                "prepares the inputs out of sight. Let forward be what the step evaluates, or give "
                "unpack=, a function from the batch to what the network gets and the labels."
            )
        if n["extreme"] and n["probabilities"] == n["samples"]:
            found.append(
                "The network gives probabilities where logits are needed, so that the loss is not "
                "the one it was trained with. Let forward return logits, or give loss=, such as "
                "lambda p, y: torch.nn.functional.nll_loss(p.log(), y, reduction='none'), or "
                "torch.nn.BCELoss() for yes or no."
            )
        if 2 * n["beyond"] > n["samples"]:
            found.append(
                f"Most labels ({n['beyond']} of {n['samples']}) are higher than the classes of the "
                "network, so they may be something else, such as the second entry of batches "
                "(image, index, label). Give unpack=, such as lambda batch: (batch[0], batch[2]). "
                "(Masks of one class hold 0 and 1, not 255.)"
            )
        elif n["beyond"] and class_samples is not None and not int(class_samples[0]):
            found.append(
                f"No label is 0, and {n['beyond']} of {n['samples']} are higher than the "
                f"{len(class_samples)} classes of the network, 0 to {len(class_samples) - 1}, so "
                "they may begin at 1. Give unpack=, such as lambda batch: (batch[0], batch[1] - 1)."
            )
        if n["misfits"]:
            found.append(
                f"What a mistake is was told by the first batch, and {n['misfits']} others do not "
                "fit it, so that it may have been no typical one. Give task=."
            )
        if n["ambiguous"]:
            found.append(
                f"The user's step ran the network on several inputs (in {n['ambiguous']} batches), "
                "none of which the batch holds; the first ones were measured. Give unpack=, a "
                "function from the batch to the inputs that count and the labels."
            )
        return tuple(found)


def _differing(ours: Tensor, seen: Sequence[Tensor]) -> Tensor | None:
    """``[M]`` bool, for which samples the network gave something else when it was measured.

    Args:
        seen: ``[M, ...]`` outputs of the step; a sample is all right if one of them agrees.

    Returns:
        None where nothing can be compared.
    """
    off: Tensor | None = None
    for theirs in seen:
        if theirs.shape != ours.shape:
            continue
        half = {ours.dtype, theirs.dtype} & {torch.float16, torch.bfloat16}
        wide = torch.promote_types(torch.promote_types(ours.dtype, theirs.dtype), torch.float32)
        a, b = (x.to(wide).reshape(len(x), -1) for x in (ours, theirs))
        odd = ~torch.isfinite(b)
        high, low = b.masked_fill(odd, -torch.inf).amax(1), b.masked_fill(odd, torch.inf).amin(1)
        span = high - low if b.shape[1] > 1 else high.abs()
        same = (a == b) | (torch.isnan(a) & torch.isnan(b))
        gap = torch.where(same, 0.0, (a - b).abs()).amax(1)
        far = (gap != 0) & ~(gap <= (_CLOSE_IN_HALF if half else _CLOSE) * span)
        off = far if off is None else off & far
    return off
