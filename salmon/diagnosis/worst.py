"""The worst misclassified samples of a pass: their inputs, to be looked at, and small images.

Which ones they are does not depend on how the samples came in batches. Nothing here waits for a
GPU before :meth:`WorstSamples.keep`.
"""

import heapq
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from salmon.saliency import take_rows

THUMBNAIL = 48  # pixels of the longer edge
_AT_ONCE = 16  # images copied to be scaled down

Range = tuple[list[float], list[float]]
"""Lowest and highest value, each per colour."""

Entry = tuple[float, int, Any]
"""Loss, minus the position in the pass, and the sample or image."""


@dataclass(frozen=True, slots=True, eq=False)
class Glimpse:
    """The worst samples of one batch, worst first, on its device."""

    rows: Tensor  # [T] in the batch
    losses: Tensor  # [T] -inf for samples that are right
    thumbnails: Tensor | None  # [T, C, h, w]
    inputs: Any  # of the first P
    targets: Tensor  # of the first P
    extremes: Tensor | None  # [2, C] lowest and highest value of each colour in the whole batch

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
        """Start empty."""
        self._pictures = _Best(pictures)
        self._thumbnails = _Best(max(thumbnails, pictures))
        self.extremes: Range | None = None
        """Of all images, where they are no uint8 images."""

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
            thumbnails=None if images is None else _shrunk_rows(images, top.indices),
            inputs=taken if self._pictures.capacity else None,
            targets=targets,
            extremes=None if images is None else _extremes(images),
        )

    def keep(self, glimpse: Glimpse, numbers: Tensor) -> None:
        """Keep those that belong to the worst so far.

        Args:
            numbers: ``[N]`` positions of its samples in the pass.
        """
        if glimpse.extremes is not None:
            low, high = glimpse.extremes.tolist()
            self._widen((low, high))
        losses, rows = glimpse.losses.cpu(), glimpse.rows.cpu()
        positions = numbers[rows].tolist()
        wanted = (losses > -torch.inf) & (losses >= self._thumbnails.floor)
        chosen = wanted.nonzero().squeeze(1)
        images: list[Tensor | None] = [None] * len(chosen)
        if glimpse.thumbnails is not None:
            small = glimpse.thumbnails[chosen.to(glimpse.thumbnails.device)].cpu()
            images = [one.clone() for one in small]  # one that is kept holds no other's memory
        for i, image in zip(chosen.tolist(), images, strict=True):
            loss = float(losses[i])
            if image is not None:
                self._thumbnails.offer(loss, positions[i], image)
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

    def merge(self, other: "WorstSamples") -> None:
        """Keep what another one kept, where it is worse."""
        for mine, theirs in (
            (self._pictures, other._pictures),
            (self._thumbnails, other._thumbnails),
        ):
            for score, number, thing in theirs.entries:
                mine.offer(score, -number, thing)
        if other.extremes is not None:
            self._widen(other.extremes)

    def _widen(self, extremes: Range) -> None:
        """Take the range of more images in."""
        if not all(map(math.isfinite, (*extremes[0], *extremes[1]))):
            return  # a broken image says nothing of the others
        if self.extremes is None:
            self.extremes = extremes
        elif len(extremes[0]) == len(self.extremes[0]):
            low, high = self.extremes
            self.extremes = (
                list(map(min, low, extremes[0])),
                list(map(max, high, extremes[1])),
            )


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

    Returns:
        The first ``[N, C, H, W]`` tensor of three colours, else the first of one, or None.
    """
    position = image_position(inputs)
    return None if position is None else pytree.tree_leaves(inputs)[position]


def image_position(inputs: Any) -> int | None:
    """Find which leaf of the inputs holds the images.

    Returns:
        Its number among the leaves, or None.
    """
    leaves = pytree.tree_leaves(inputs)
    for colours in (3, 1):  # a mask may come before its image
        for position, leaf in enumerate(leaves):
            real = isinstance(leaf, Tensor) and not leaf.is_complex() and leaf.dtype != torch.bool
            if real and leaf.ndim == 4 and leaf.shape[1] == colours and leaf.numel():
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


def _shrunk_rows(images: Tensor, rows: Tensor) -> Tensor:
    """Small images of some rows, which may be all of a large batch, a few at a time."""
    return torch.cat([shrunk(images[part]) for part in rows.split(_AT_ONCE)])


def _extremes(images: Tensor) -> Tensor | None:
    """``[2, C]`` lowest and highest value of each colour; None of uint8 images."""
    if images.dtype == torch.uint8:
        return None
    return torch.stack([images.amin((0, 2, 3)), images.amax((0, 2, 3))]).double()
