"""Sets of labelled images, whatever they come from: what is needed of one, choices and batches."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from salmon import Samples


class Images(Protocol):
    """Anything with a length that gives an image ``[3, H, W]`` and its class by number."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, row: int, /) -> Any:
        """Image and class."""


def draw(rows: Tensor, most: int | None, seed: int) -> Tensor:
    """Some of the rows, drawn at random, in rising order.

    Args:
        rows: ``[N]`` numbers.
        most: How many; None takes all.
        seed: Of the draw.
    """
    if most is None or most >= len(rows):
        return rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:most]].sort().values


def take(images: Images, rows: Tensor) -> Samples:
    """Some images in memory.

    Args:
        images: The set.
        rows: ``[M]`` numbers.
    """
    pairs = [images[row] for row in rows.tolist()]
    return Samples(
        torch.stack([image for image, _ in pairs]),
        torch.tensor([int(label) for _, label in pairs]),
        tuple(rows.tolist()),
    )


def batches(images: Images, rows: Tensor, size: int, workers: int = 1) -> Iterator[Samples]:
    """Some images, batch by batch, read ahead by threads.

    Args:
        images: The set.
        rows: ``[M]`` numbers.
        size: Images per batch.
        workers: Threads that read; with 1 nothing is read ahead.
    """
    parts = list(rows.split(size))
    if workers == 1:
        yield from (take(images, part) for part in parts)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(take, images, part) for part in parts[: workers + 1]]
        for part in [*parts[workers + 1 :], *[None] * len(waiting)]:
            done = waiting.pop(0)
            if part is not None:
                waiting.append(pool.submit(take, images, part))
            yield done.result()
