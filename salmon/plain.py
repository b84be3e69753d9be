"""Values that somebody else may have written: every type checked, nothing executed.

Plain values come from JSON, plain values and tensors from checkpoints. Only what was checked here
may be computed with; what does not fit is named in few characters, however large it is.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from reprlib import Repr
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from salmon.errors import StateError

LARGEST = 2**63 - 1
"""Whole numbers are those of int64."""

_Record = TypeVar("_Record")


def from_plain(kind: type[_Record], value: Any, where: str) -> _Record:
    """Rebuild a dataclass of plain values.

    Args:
        kind: The dataclass; its fields are numbers, strings, other such dataclasses, lists or
            tuples of one type, dictionaries with strings as keys, and any of these or None.
        value: What JSON gave; fields it has beyond those of ``kind`` are passed over.
        where: Name of the source, for messages.

    Returns:
        The record. A number that JSON had to leave out is NaN.

    Raises:
        StateError: If a field is missing or of another type, or a number is out of range.
    """
    built = _build(kind, value, where)
    assert isinstance(built, kind)
    return built


def dict_of(kind: Any, value: Any, where: str) -> dict[str, Any]:
    """Check a dictionary of plain values.

    Args:
        kind: Of its values: a type, a dataclass, ``list[int]`` and so on; ``Any`` takes all.
        value: What was read.
        where: Name of the source, for messages.

    Returns:
        A copy, with strings as keys.

    Raises:
        StateError: If it is something else.
    """
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        found = type(value).__name__
        raise StateError(f"{where} is {found} where named values are needed; make it anew.")
    return {key: _build(kind, item, f"{where}.{key[:60]}") for key, item in value.items()}


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Types of the fields of a dataclass."""
    return get_type_hints(kind)


def _build(kind: Any, value: Any, where: str) -> Any:
    """One value of a wanted type."""
    if kind is Any:
        return value
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType or NoneType in inner:
        if value is None:
            return None
        (kind,) = [each for each in inner if each is not NoneType]
        return _build(kind, value, where)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return origin(_build(inner[0], each, f"{where}[{i}]") for i, each in enumerate(value))
    if origin is dict:
        return dict_of(inner[1], value, where)
    if is_dataclass(kind) and isinstance(value, dict):
        hints = _hints(cast(Any, kind))
        missing = [each.name for each in fields(kind) if each.name not in value]
        needed = [e.name for e in fields(kind) if e.default is e.default_factory is MISSING]
        if lost := set(missing) & set(needed):
            raise StateError(f"{where} has no {min(lost, key=missing.index)!r}; make it anew.")
        return cast(type[Any], kind)(
            **{n: _build(hints[n], value[n], f"{where}.{n}") for n in hints if n not in missing}
        )
    if kind in (int, float):
        return _number(kind, value, where)
    if isinstance(kind, type) and type(value) is kind:
        return value
    wanted = getattr(kind, "__name__", str(kind))
    raise StateError(f"{where} is {type(value).__name__} where {wanted} is needed; make it anew.")


def _number(kind: type[int] | type[float], value: Any, where: str) -> int | float:
    """A number within the range of its type."""
    if kind is float and value is None:
        return math.nan
    if type(value) is not int and (kind is int or type(value) is not float):
        found = type(value).__name__
        raise StateError(f"{where} is {found} where {kind.__name__} is needed; make it anew.")
    if abs(value) > LARGEST if type(value) is int else math.isinf(value):
        raise StateError(f"{where} is {shown(value)}, which is out of range; make it anew.")
    return kind(value)


def checked_tensor(
    value: Any, where: str, shape: tuple[int | None, ...], *dtypes: torch.dtype
) -> Tensor:
    """Check a tensor before anything is computed with it.

    Args:
        value: What was read.
        where: Its name, for messages.
        shape: Wanted; None stands for any length.
        dtypes: That it may have.

    Returns:
        The tensor without a graph. It is an ordinary one, with a number in memory for each of its
        elements: a file of a few bytes cannot stand for more than that.

    Raises:
        StateError: If it is something else.
    """
    if type(value) is not Tensor:
        found = type(value).__name__
    elif value.layout is not torch.strided or value.is_meta or value.is_quantized:
        found = f"a tensor of another layout ({value.layout}, {value.dtype}, {value.device})"
    elif value.dtype not in dtypes or value.ndim != len(shape):
        found = f"{value.dtype} of shape {tuple(value.shape)}"
    elif any(b is not None and a != b for a, b in zip(value.shape, shape, strict=True)):
        found = f"of shape {tuple(value.shape)}"
    elif value.untyped_storage().nbytes() < value.nbytes:
        found = f"{value.nbytes} bytes made of {value.untyped_storage().nbytes()}"
    else:
        return value.detach()
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    types = " or ".join(str(dtype) for dtype in dtypes)
    raise StateError(f"{where} is {found} but {types} [{wanted}] is needed; make it anew.")


class _Short(Repr):
    """Few characters of any value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 60, 60

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write numbers of many digits."""
        return f"an integer of {x.bit_length()} bits" if x.bit_length() > 200 else repr(x)

    def repr_Tensor(self, x: Tensor, level: int) -> str:  # noqa: N802 - reprlib wants the name
        """Its numbers do not matter, and there may be many."""
        return f"Tensor{list(x.shape)}"


def shown(value: Any) -> str:
    """A value for a message.

    Args:
        value: Anything, of any size.

    Returns:
        At most a few hundred characters.
    """
    return _Short().repr(value)[:300]


def same_whole(value: Any, wanted: int) -> bool:
    """Whether a value is a certain whole number, and nothing that merely compares equal.

    Args:
        value: What was read.
        wanted: The number.

    Returns:
        Whether it is.
    """
    return type(value) is int and value == wanted


def names_in(value: Any) -> list[str]:
    """Names of the fields of a dictionary, for a message.

    Args:
        value: What was read.

    Returns:
        A few of them, sorted; none where it is no dictionary.
    """
    keys = value if isinstance(value, Mapping) else ()
    return sorted(shown(key) if not isinstance(key, str) else key[:40] for key in keys)[:20]
