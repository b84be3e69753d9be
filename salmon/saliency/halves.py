"""Rows of a batch, and batches that are too large for the memory: measured part by part."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from salmon.saliency.losses import logits_of

_MESSAGES = ("out of memory", "can't allocate memory", "could not create a memory object")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory is short, on a GPU or the CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(message in str(error) for message in _MESSAGES)


def take_rows(values: Any, rows: Tensor | slice, samples: int) -> Any:
    """Select samples of everything that has them.

    Args:
        rows: ``[M]`` row numbers, or a slice.
        samples: N; tensors whose first dimension is another pass unchanged.

    Returns:
        The same nesting with M samples.
    """

    def take(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or tensor.shape[0] != samples:
            return tensor
        return tensor[rows if isinstance(rows, slice) else rows.to(tensor.device)]

    return pytree.tree_map_only(Tensor, take, values)


def join_outputs(outputs: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Put the outputs of a network for parts of a batch together.

    Returns:
        Tensors with a row per sample joined, other values as in the first part; of an object that
        is no nesting of tensors, an object with its joined ``logits``.
    """

    def join(*leaves: Any) -> Any:
        rows = all(
            isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size
            for leaf, size in zip(leaves, sizes, strict=True)
        )
        return torch.cat(leaves) if rows else leaves[0]

    if isinstance(outputs[0], Tensor | Mapping | tuple | list):
        return pytree.tree_map(join, *outputs)
    return SimpleNamespace(logits=torch.cat([logits_of(output) for output in outputs]))
