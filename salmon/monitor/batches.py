"""From whatever a loader yields to inputs and targets, and back to fewer rows of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from salmon.errors import InputError

Unpack = Callable[[Any], tuple[Any, Tensor]]
"""``batch -> (inputs, targets)``."""

SampleIds = Callable[[Any], Sequence[int | str] | Tensor]
"""``batch -> [N]`` numbers or names of its samples."""

ID_KEYS = ("id", "ids", "sample_id", "idx", "index", "indices")
INPUT_KEYS = ("image", "images", "input", "inputs", "x", "img", "pixel_values", "data")
TARGET_KEYS = ("label", "labels", "target", "targets", "y", "class")


def unpack_batch(batch: Any) -> tuple[Any, Tensor]:
    """Find inputs and targets in a batch of the usual forms.

    Args:
        batch: ``(inputs, targets, ...)``, or a mapping with one of ``TARGET_KEYS`` and, if it has
            one, of ``INPUT_KEYS``; else all its other entries but ids are named arguments.
    """
    if isinstance(batch, Mapping):
        x = next((batch[key] for key in INPUT_KEYS if key in batch), None)
        y = next((batch[key] for key in TARGET_KEYS if key in batch), None)
        if isinstance(y, Tensor):
            others = {k: v for k, v in batch.items() if k not in (*TARGET_KEYS, *ID_KEYS)}
            return (others if x is None else x), y
        found = f"a mapping with the keys {sorted(map(str, batch))}"
    elif isinstance(batch, tuple | list) and len(batch) > 1 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    elif isinstance(batch, tuple | list):
        found = f"a {type(batch).__name__} of {', '.join(type(item).__name__ for item in batch)}"
    else:
        found = f"a {type(batch).__name__}"
    raise InputError(
        f"the batch is {found}; (inputs, targets), or a mapping with targets under one of "
        f"{', '.join(TARGET_KEYS)} and inputs under one of {', '.join(INPUT_KEYS)} or as named "
        "arguments of forward, is needed. Pass unpack=, a function that takes the batch and "
        "returns (inputs, targets)."
    )


def ids_of_batch(
    batch: Any, samples: int, function: SampleIds | None
) -> tuple[list[int | str] | None, str]:
    """Find the numbers or names of the samples of a batch.

    Args:
        samples: N.

    Returns:
        ``[N]`` ids, or None where the batch has none; and their source, ``"function"`` or
        ``"batch"``.
    """
    if function is not None:
        found: Any = function(batch)
    elif isinstance(batch, Mapping):
        found = next((batch[key] for key in ID_KEYS if key in batch), None)
    else:
        found = None
    ids = found.tolist() if hasattr(found, "tolist") else found  # tensors and arrays
    if isinstance(ids, list | tuple) and len(ids) == samples:
        return [_plain(one) for one in ids], "batch" if function is None else "function"
    if function is not None:
        raise InputError(
            f"sample_ids gave {type(found).__name__} for a batch of {samples} samples; a sequence "
            "of as many numbers or names is needed."
        )
    return None, ""


def _plain(value: Any) -> int | str:
    """A number or name that JSON takes."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, int) else str(value)
