"""Chosen samples of several batches, which wait until they fill a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

SMALL_IMAGES = 128
THEIR_VALUES = 1 << 21  # 14 images of 3 x 224 x 224


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """M samples of one batch, or of several."""

    rows: list[Tensor]  # tensors of inputs, targets and the step's outputs, [M, ...] each
    rest: list[Any]  # what else is in their nesting
    nesting: Any
    numbers: Tensor  # [M] positions in the pass, on the CPU
    batches: Tensor  # [M] number of the batch
    ids: list[int | str]  # [M]
    copies: Tensor | None  # [M] for how many samples each stands; None for itself

    @classmethod
    def of(
        cls, values: Any, samples: int, rows: Tensor, *, numbers: Tensor, batch: int,
        ids: Sequence[int | str] | None, copies: Tensor | None,
    ) -> "Chosen":  # fmt: skip
        """Choose rows ``[M]`` of a batch of N samples.

        Args:
            values: Nesting; its tensors with N rows are those of the samples.
            numbers: ``[N]``, like ids and copies.
        """
        leaves, nesting = pytree.tree_flatten(values)
        theirs = [isinstance(x, Tensor) and x.ndim > 0 and len(x) == samples for x in leaves]
        pairs = list(zip(leaves, theirs, strict=True))
        own, at_once = numbers[rows], copies is None and len(rows) == samples
        return cls(
            # Somebody may write into a batch while its samples wait.
            rows=[x if at_once else x[rows.to(x.device)] for x, moves in pairs if moves],
            rest=[_ROWS if moves else _kept(x) for x, moves in pairs],
            nesting=nesting,
            numbers=own,
            batches=torch.full_like(own, batch),
            ids=own.tolist() if ids is None else [ids[row] for row in rows.tolist()],
            copies=None if copies is None else copies[rows],
        )

    def split(self, count: int) -> tuple["Chosen", "Chosen"]:
        """The first ones, and the others."""
        parts = (slice(0, count), slice(count, None))
        first, second = (
            replace(
                self,
                rows=[x[part] for x in self.rows],
                numbers=self.numbers[part],
                batches=self.batches[part],
                ids=self.ids[part],
                copies=None if self.copies is None else self.copies[part],
            )
            for part in parts
        )
        return first, second

    def two_at_least(self) -> "Chosen":
        """Add to a single sample a copy that counts for none, since some networks flatten one."""
        if len(self.numbers) > 1 or self.copies is None:
            return self
        return Chosen.joined([self, replace(self, copies=torch.zeros_like(self.copies))])

    @property
    def values(self) -> Any:
        """The nesting they were chosen from, with their rows."""
        rows = iter(self.rows)
        return pytree.tree_unflatten(
            [next(rows) if x is _ROWS else x for x in self.rest], self.nesting
        )

    def without_rows(self) -> "Chosen":
        """Which ones they are; what they were measured on is let go."""
        return replace(self, rows=[], rest=[])

    def alike(self, other: "Chosen") -> bool:
        """Whether the network can take both at once."""
        return (
            self.nesting == other.nesting
            and [_form(x) for x in self.rows] == [_form(x) for x in other.rows]
            and all(_same(a, b) for a, b in zip(self.rest, other.rest, strict=True))
        )

    @classmethod
    def joined(cls, parts: Sequence["Chosen"]) -> "Chosen":
        """Put some together that are alike."""
        if len(parts) == 1:
            return parts[0]
        copies = [part.copies for part in parts if part.copies is not None]
        return replace(
            parts[0],
            rows=[torch.cat(each) for each in zip(*(part.rows for part in parts), strict=True)],
            numbers=torch.cat([part.numbers for part in parts]),
            batches=torch.cat([part.batches for part in parts]),
            ids=[name for part in parts for name in part.ids],
            copies=torch.cat(copies) if copies else None,
        )


def at_once(chosen: Chosen, batch: int) -> int:
    """How many samples are measured at once: as many as in a batch, or more of small images.

    Those need no more memory than a few large ones, and take less time a sample.
    """
    sizes = [x[0].numel() for x in chosen.rows if x.ndim == 4 and x.is_floating_point()]
    return max(batch, min(SMALL_IMAGES, THEIR_VALUES // max(1, *sizes))) if sizes else batch


_ROWS = object()
"""Stands for a tensor of the samples."""


def divisible(inputs: Any, samples: int) -> bool:
    """Whether samples can be chosen from inputs: whatever is no number holds a row of each."""
    leaves = pytree.tree_leaves(inputs)
    others = [x for x in leaves if not isinstance(x, Tensor)]
    rows = all(x.ndim == 0 or len(x) == samples for x in leaves if isinstance(x, Tensor))
    return rows and len(others) < max(samples, 2)  # else a list may have an entry of each


def _kept(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


_PLAIN = (bool, int, float, str)


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape[1:], tensor.dtype, tensor.device


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return _form(one) == _form(other) and torch.equal(one, other)
    return one is other or (type(one) is type(other) and type(one) in _PLAIN and one == other)
