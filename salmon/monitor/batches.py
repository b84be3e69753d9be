"""From whatever a loader yields to inputs and targets, and back to fewer rows of them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from salmon.errors import InputError

Unpack = Callable[[Any], tuple[Any, Tensor]]
"""``batch -> (inputs, targets)``."""

INPUT_KEYS = ("image", "images", "input", "inputs", "x", "img", "pixel_values", "data")
TARGET_KEYS = ("label", "labels", "target", "targets", "y", "class")


def unpack_batch(batch: Any) -> tuple[Any, Tensor]:
    """Find inputs and targets in a batch of the usual forms.

    Args:
        batch: ``(inputs, targets, ...)``, or a mapping with one of ``INPUT_KEYS`` and one of
            ``TARGET_KEYS``.

    Returns:
        Inputs and targets.

    Raises:
        InputError: If the batch has another form.
    """
    if isinstance(batch, Mapping):
        x = next((batch[key] for key in INPUT_KEYS if key in batch), None)
        y = next((batch[key] for key in TARGET_KEYS if key in batch), None)
        if x is not None and isinstance(y, Tensor):
            return x, y
        found = f"a mapping with the keys {sorted(map(str, batch))}"
    elif isinstance(batch, tuple | list) and len(batch) > 1 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    elif isinstance(batch, tuple | list):
        found = f"a {type(batch).__name__} of {', '.join(type(item).__name__ for item in batch)}"
    else:
        found = f"a {type(batch).__name__}"
    raise InputError(
        f"the batch is {found}; (inputs, targets), or a mapping with inputs under one of "
        f"{', '.join(INPUT_KEYS)} and targets under one of {', '.join(TARGET_KEYS)}, is needed. "
        "Pass unpack=, a function that takes the batch and returns (inputs, targets)."
    )


def check_samples(inputs: Any, targets: Any) -> int:
    """Count the samples of a batch.

    Args:
        inputs: Tensor, or tuple or mapping of tensors.
        targets: Labels.

    Returns:
        N.

    Raises:
        InputError: If targets are no tensor with samples, or their number is not that of inputs.
    """
    if not isinstance(targets, Tensor) or targets.ndim == 0:
        raise InputError(
            f"targets are {type(targets).__name__} without a sample dimension; a tensor [N] or "
            "[N, K] is needed. Pass unpack= if the batch hides its labels elsewhere."
        )
    sizes = {tensor.shape[0] for tensor in _tensors(inputs) if tensor.ndim > 0}
    if len(targets) not in sizes:
        raise InputError(
            f"targets hold {len(targets)} samples but inputs hold {sorted(sizes)}; one label per "
            "input is needed. Pass unpack= if the batch pairs them otherwise."
        )
    return len(targets)


def take_rows(values: Any, rows: Tensor, samples: int) -> Any:
    """Select samples of everything that has them.

    Args:
        values: Tensors in any nesting.
        rows: ``[M]`` row numbers.
        samples: N; tensors whose first dimension is another pass unchanged.

    Returns:
        The same nesting with M samples.
    """

    def take(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or tensor.shape[0] != samples:
            return tensor
        return tensor[rows.to(tensor.device)]

    return pytree.tree_map_only(Tensor, take, values)


def _tensors(values: Any) -> list[Tensor]:
    """All tensors in a nesting."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]
