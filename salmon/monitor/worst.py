"""The worst misclassified samples of a pass: their inputs, to be looked at, and small images.

Which ones they are does not depend on how the samples came in batches. Nothing here waits for a
GPU before :meth:`WorstSamples.keep`.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from salmon.saliency import take_rows

THUMBNAIL = 48  # pixels of the longer edge

Entry = tuple[float, int, Any]
"""Loss, minus the position in the pass, and the sample or image."""

Entries = tuple[list[Entry], list[Entry]]
Scores = tuple[list[tuple[float, int]], list[tuple[float, int]]]


@dataclass(frozen=True, slots=True, eq=False)
class Glimpse:
    """The worst samples of one batch, worst first, on its device."""

    rows: Tensor  # [T] in the batch
    losses: Tensor  # [T] -inf for samples that are right
    thumbnails: Tensor | None  # [T, C, h, w]
    inputs: Any  # of the first P
    targets: Tensor  # of the first P

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        leaves = pytree.tree_leaves((self.thumbnails, self.inputs))
        return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))


@dataclass(frozen=True, slots=True, eq=False)
class WorstSample:
    """A misclassified sample with what the network got; a batch of one, on the CPU."""

    sample: int  # position in the pass
    inputs: Any
    targets: Tensor


class WorstSamples:
    """Keeps the samples of the highest losses; equal losses by position."""

    def __init__(self, pictures: int, thumbnails: int) -> None:
        """Start empty.

        Args:
            pictures: Samples whose inputs are kept.
            thumbnails: Samples of which a small image is kept.
        """
        self._pictures = _Best(pictures)
        self._thumbnails = _Best(max(thumbnails, pictures))

    def look(self, inputs: Any, targets: Tensor, losses: Tensor, wrong: Tensor) -> Glimpse | None:
        """Take the worst samples of a batch aside.

        Args:
            inputs: Of N samples.
            targets: ``[N, ...]``.
            losses: ``[N]``.
            wrong: ``[N]`` bool, whether misclassified.

        Returns:
            Them; None where none is wanted.
        """
        samples, wanted = len(losses), self._thumbnails.capacity
        if wanted == 0 or samples == 0:
            return None
        scores = torch.where(wrong & ~torch.isnan(losses), losses.double(), -torch.inf)
        top = scores.topk(min(wanted, samples))
        first = top.indices[: self._pictures.capacity]
        images = find_images(inputs)
        taken, targets = take_rows((inputs, targets), first, samples)
        return Glimpse(
            rows=top.indices,
            losses=top.values,
            thumbnails=None if images is None else shrunk(images[top.indices]),
            inputs=taken if self._pictures.capacity else None,
            targets=targets,
        )

    def keep(self, glimpse: Glimpse, numbers: Tensor) -> None:
        """Keep those that belong to the worst so far.

        Args:
            glimpse: Of a batch.
            numbers: ``[N]`` positions of its samples in the pass.
        """
        losses, rows = glimpse.losses.cpu(), glimpse.rows.cpu()
        positions = numbers[rows].tolist()
        wanted = (losses > -torch.inf) & (losses >= self._thumbnails.floor)
        for i in wanted.nonzero().squeeze(1).tolist():
            loss = float(losses[i])
            if glimpse.thumbnails is not None:
                self._thumbnails.offer(loss, positions[i], glimpse.thumbnails[i].cpu())
            if i < len(glimpse.targets) and loss >= self._pictures.floor:
                inputs, targets = take_rows(
                    (glimpse.inputs, glimpse.targets), slice(i, i + 1), len(glimpse.targets)
                )
                inputs = pytree.tree_map_only(Tensor, _own_copy, inputs)
                sample = WorstSample(positions[i], inputs, _own_copy(targets))
                self._pictures.offer(loss, positions[i], sample)

    @property
    def pictures(self) -> list[WorstSample]:
        """The worst samples, worst first."""
        return self._pictures.kept()

    @property
    def thumbnails(self) -> dict[int, Tensor]:
        """Small images ``[C, h, w]`` of the worst samples, by position."""
        return dict(zip(self._thumbnails.numbers(), self._thumbnails.kept(), strict=True))

    def scores(self) -> Scores:
        """Losses and positions of what is kept.

        Returns:
            Of the pictures and of the thumbnails.
        """
        return self._pictures.scores(), self._thumbnails.scores()

    def restrict(self, scores: Sequence[Scores]) -> None:
        """Drop what does not belong to the worst of all.

        Args:
            scores: As of :meth:`scores`, of everybody.
        """
        for place, best in enumerate((self._pictures, self._thumbnails)):
            every = sorted((entry for each in scores for entry in each[place]), reverse=True)
            best.keep_only(set(every[: best.capacity]))

    def entries(self) -> Entries:
        """Everything that is kept.

        Returns:
            Pictures and thumbnails, with losses and positions.
        """
        return self._pictures.entries, self._thumbnails.entries

    def take(self, entries: Entries) -> None:
        """Keep what another one kept, if it is worse.

        Args:
            entries: As of :meth:`entries`.
        """
        for best, part in zip((self._pictures, self._thumbnails), entries, strict=True):
            for score, number, thing in part:
                best.offer(score, -number, thing)


class _Best:
    """Things of the highest scores."""

    def __init__(self, capacity: int) -> None:
        """Start empty."""
        self.capacity = capacity
        self.entries: list[Entry] = []

    @property
    def floor(self) -> float:
        """Scores below it do not come in."""
        return self.entries[0][0] if len(self.entries) >= self.capacity > 0 else -torch.inf

    def offer(self, score: float, number: int, thing: Any) -> None:
        """Take a thing in, in place of the least one where there is no room."""
        entry = (score, -number, thing)
        if len(self.entries) < self.capacity:
            heapq.heappush(self.entries, entry)
        elif self.capacity and entry[:2] > self.entries[0][:2]:
            heapq.heapreplace(self.entries, entry)

    def scores(self) -> list[tuple[float, int]]:
        """Scores and numbers, without the things."""
        return [entry[:2] for entry in self.entries]

    def keep_only(self, scores: set[tuple[float, int]]) -> None:
        """Drop all others."""
        self.entries = [entry for entry in self.entries if entry[:2] in scores]
        heapq.heapify(self.entries)

    def kept(self) -> list[Any]:
        """The things, highest score first."""
        return [thing for _, _, thing in self._sorted()]

    def numbers(self) -> list[int]:
        """Their numbers."""
        return [-number for _, number, _ in self._sorted()]

    def _sorted(self) -> list[Entry]:
        """Entries, highest first."""
        return sorted(self.entries, key=lambda entry: entry[:2], reverse=True)


def find_images(inputs: Any) -> Tensor | None:
    """Find the images in what a network gets.

    Args:
        inputs: Tensors in any nesting.

    Returns:
        The first ``[N, C, H, W]`` tensor of one or three colours, or None.
    """
    position = image_position(inputs)
    return None if position is None else pytree.tree_leaves(inputs)[position]


def image_position(inputs: Any) -> int | None:
    """Find which leaf of the inputs holds the images.

    Args:
        inputs: Tensors in any nesting.

    Returns:
        Its number among the leaves, or None.
    """
    for position, leaf in enumerate(pytree.tree_leaves(inputs)):
        real = isinstance(leaf, Tensor) and not leaf.is_complex() and leaf.dtype != torch.bool
        if real and leaf.ndim == 4 and leaf.shape[1] in (1, 3) and leaf.numel():
            return position
    return None


def shrunk(images: Tensor) -> Tensor:
    """Scale images down.

    Args:
        images: ``[N, C, H, W]``.

    Returns:
        Float32 images of at most :data:`THUMBNAIL` pixels a side, uint8 ones as uint8.
    """
    height, width = images.shape[2:]
    factor = min(1.0, THUMBNAIL / max(height, width))
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    small = images.float()
    if factor < 1:
        small = torch.nn.functional.interpolate(small, size=size, mode="area")
    elif small.data_ptr() == images.data_ptr():
        small = small.clone()
    return small.round().to(torch.uint8) if images.dtype == torch.uint8 else small


def _own_copy(tensor: Tensor) -> Tensor:
    """A copy on the CPU that holds nothing but itself."""
    return tensor.detach().to("cpu", copy=True).contiguous()
