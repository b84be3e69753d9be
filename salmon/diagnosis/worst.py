"""The worst mistakes of a pass, to be looked at: inputs, and small images; and a few other samples.

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

from salmon.diagnosis.reservoir import priorities
from salmon.saliency import take_rows

THUMBNAIL = 48  # pixels of the longer edge
MOST_WRONG, MOST_RIGHT = 32, 8  # samples that are kept by chance
_AT_ONCE = 16  # images copied to be scaled down

Range = tuple[list[float], list[float]]
"""Lowest and highest value, each per colour."""

Entry = tuple[float, int, Any]
"""Loss, minus the position in the pass, and the sample or image."""


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """Samples of a batch, highest score first, on its device."""

    rows: Tensor  # [T] in the batch
    scores: Tensor  # [T] -inf for samples that are not wanted
    inputs: Any  # of the first P
    targets: Tensor  # of the first P


@dataclass(frozen=True, slots=True, eq=False)
class Glimpse:
    """What one batch has to show."""

    worst: Taken  # by their loss
    wrong: Taken  # by chance, like the right ones
    right: Taken
    thumbnails: Tensor  # [T, C, h, w] of the worst ones
    extremes: Tensor | None  # [2, C] lowest and highest value of each colour in the whole batch

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        leaves = pytree.tree_leaves(
            (self.thumbnails, self.worst.inputs, self.wrong.inputs, self.right.inputs)
        )
        return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))


@dataclass(frozen=True, slots=True, eq=False)
class ShownSample:
    """A sample with what the network got; a batch of one, on the CPU."""

    sample: int  # position in the pass
    inputs: Any
    targets: Tensor


class WorstSamples:
    """Keeps the mistakes of the highest losses, and some mistakes and right samples by chance."""

    def __init__(self, pictures: int, thumbnails: int, seed: int = 0) -> None:
        """Start empty."""
        self._pictures = _Best(pictures)
        self._wrong = _Best(MOST_WRONG if pictures else 0)
        self._right = _Best(MOST_RIGHT if pictures else 0)
        self._thumbnails = _Best(max(thumbnails, pictures))
        self._seed = seed
        self.extremes: Range | None = None
        """Of all images, where they are no uint8 images."""

    def look(
        self, inputs: Any, targets: Tensor, losses: Tensor, wrong: Tensor, right: Tensor,
        numbers: Tensor,
    ) -> Glimpse | None:  # fmt: skip
        """Take samples of a batch aside: the worst ones, and others by the luck of their numbers.

        Args:
            inputs: Of N samples.
            targets: ``[N, ...]``.
            losses: ``[N]``.
            wrong: ``[N]`` bool, whether misclassified.
            right: ``[N]`` bool, whether not.
            numbers: ``[N]`` positions of the samples in the pass, on the CPU.

        Returns:
            Them; None where none is wanted, or there are no images.
        """
        wanted = self._thumbnails.capacity
        images = find_images(inputs)
        if wanted == 0 or len(losses) == 0 or images is None:
            return None
        scores = torch.where(wrong & ~torch.isnan(losses), losses.double(), -torch.inf)
        worst = _taken(inputs, targets, scores, wanted, self._pictures.capacity)
        luck = priorities(numbers, self._seed).double()
        there = luck.to(losses.device, non_blocking=True)

        def lucky(flags: Tensor, best: _Best) -> Taken:
            most = min(best.capacity, int((luck >= best.floor).sum()))  # the others cannot stay
            return _taken(inputs, targets, there.where(flags, -torch.inf), most, most)

        return Glimpse(
            worst=worst,
            wrong=lucky(wrong, self._wrong),
            right=lucky(right, self._right),
            thumbnails=_shrunk_rows(images, worst.rows),
            extremes=_extremes(images),
        )

    def keep(self, glimpse: Glimpse, numbers: Tensor) -> None:
        """Keep those that belong to the first so far.

        Args:
            numbers: ``[N]`` positions of its samples in the pass.
        """
        if glimpse.extremes is not None:
            low, high = glimpse.extremes.tolist()
            self._widen((low, high))
        _keep(glimpse.worst, numbers, self._pictures)
        _keep(glimpse.wrong, numbers, self._wrong)
        _keep(glimpse.right, numbers, self._right)
        scores, positions = _on_cpu(glimpse.worst, numbers)
        wanted = (scores > -torch.inf) & (scores >= self._thumbnails.floor)
        chosen = wanted.nonzero().squeeze(1)
        small = glimpse.thumbnails[chosen.to(glimpse.thumbnails.device)].cpu()
        for i, image in zip(chosen.tolist(), small, strict=True):
            # One that is kept holds no other's memory.
            self._thumbnails.offer(float(scores[i]), positions[i], image.clone())

    @property
    def pictures(self) -> list[ShownSample]:
        """The worst samples, worst first."""
        return self._pictures.kept()

    @property
    def wrong(self) -> list[ShownSample]:
        """Mistakes, chosen at random."""
        return self._wrong.kept()

    @property
    def right(self) -> list[ShownSample]:
        """Right samples, chosen at random."""
        return self._right.kept()

    @property
    def thumbnails(self) -> dict[int, Tensor]:
        """Small images ``[C, h, w]`` of the worst samples, by position."""
        return dict(zip(self._thumbnails.numbers(), self._thumbnails.kept(), strict=True))

    def merge(self, other: "WorstSamples") -> None:
        """Keep what another one kept, where it is worse."""
        for mine, theirs in (
            (self._pictures, other._pictures),
            (self._wrong, other._wrong),
            (self._right, other._right),
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


def _taken(inputs: Any, targets: Tensor, scores: Tensor, most: int, whole: int) -> Taken:
    """Samples of the highest scores, the first of them whole."""
    top = scores.topk(min(most, len(scores)))
    first = top.indices[:whole]
    taken, labels = take_rows((inputs, targets), first, len(scores))
    return Taken(top.indices, top.values, taken if whole else None, labels)


def _on_cpu(taken: Taken, numbers: Tensor) -> tuple[Tensor, list[int]]:
    """Scores, and positions in the pass."""
    return taken.scores.cpu(), numbers[taken.rows.cpu()].tolist()


def _keep(taken: Taken, numbers: Tensor, best: "_Best") -> None:
    """Offer the whole ones."""
    scores, positions = _on_cpu(taken, numbers)
    for i in range(len(taken.targets)):
        score = float(scores[i])
        if score > -torch.inf and score >= best.floor:
            pair = (taken.inputs, taken.targets)
            inputs, targets = take_rows(pair, slice(i, i + 1), len(taken.targets))
            inputs = pytree.tree_map_only(Tensor, _own_copy, inputs)
            best.offer(score, positions[i], ShownSample(positions[i], inputs, _own_copy(targets)))


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
