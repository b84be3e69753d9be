"""Records from files and checkpoints: plain values of checked types, and tensors beside them."""

import math
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import torch
from torch import Tensor

from salmon.errors import StateError

if TYPE_CHECKING:
    Number = float
else:

    class Number(float):
        """A float of a record that JSON may have had to write as null."""


_Record = TypeVar("_Record")


def record_of(kind: type[_Record], value: Any, where: str) -> _Record:
    """Rebuild a record, or any other type, of plain values.

    Args:
        kind: A dataclass, or a type such as ``dict[str, int]``.
        value: What JSON or a checkpoint held; fields beyond those of ``kind`` are passed over.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=_number)
    except (msgspec.ValidationError, AttributeError, TypeError) as error:  # of a tensor, say
        raise StateError(f"{where}: {error}; make it anew.") from error


def parsed(text: str | bytes, schema: str, where: str) -> dict[str, Any]:
    """Parse one JSON object, whose entry ``"schema"`` must be the given one."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StateError(f"{where} is no JSON ({error}).") from error
    found = value.get("schema") if isinstance(value, dict) else type(value).__name__
    if found != schema:
        raise StateError(
            f"{where} holds {found!r} where {schema!r} is needed; it was written by another "
            "version or is something else."
        )
    kept: dict[str, Any] = value
    return kept


def tensor_of(
    value: Any, where: str, shape: tuple[int | None, ...], *dtypes: torch.dtype
) -> Tensor:
    """Check a tensor of a state; None in the shape stands for any length."""
    if not isinstance(value, Tensor):
        found = type(value).__name__
    elif value.dtype in dtypes and len(shape) == value.ndim and all(
        wanted in (None, size) for wanted, size in zip(shape, value.shape, strict=True)
    ):  # fmt: skip
        return value.detach()
    else:
        found = f"{value.dtype} of shape {tuple(value.shape)}"
    wanted_shape = ", ".join("any" if size is None else str(size) for size in shape)
    types = " or ".join(str(dtype) for dtype in dtypes)
    raise StateError(f"{where} is {found} but {types} [{wanted_shape}] is needed; make it anew.")


def _number(kind: type, value: Any) -> Any:
    """NaN where JSON has null."""
    if kind is Number and value is None:
        return Number(math.nan)
    if kind is Number and type(value) in (int, float):
        return Number(value)
    raise msgspec.ValidationError(f"Expected `float`, got `{type(value).__name__}`")
