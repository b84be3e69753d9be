"""Records from plain values that were read from a file: every type checked, nothing executed."""

import math
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from salmon.errors import StateError

_Record = TypeVar("_Record")


def from_plain(kind: type[_Record], value: Any, where: str) -> _Record:
    """Rebuild a dataclass of plain values.

    Args:
        kind: The dataclass; its fields are numbers, strings, other such dataclasses, lists,
            dictionaries with strings as keys, and any of these or None.
        value: What JSON gave; fields it has beyond those of ``kind`` are passed over.
        where: Name of the source, for messages.

    Returns:
        The record. A number that JSON had to leave out is NaN.

    Raises:
        StateError: If a field is missing or of another type.
    """
    built = _build(kind, value, where)
    assert isinstance(built, kind)
    return built


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Types of the fields of a dataclass."""
    return get_type_hints(kind)


def _build(kind: Any, value: Any, where: str) -> Any:
    """One value of a wanted type."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType or NoneType in inner:
        if value is None:
            return None
        (kind,) = [each for each in inner if each is not NoneType]
        return _build(kind, value, where)
    if origin is list and isinstance(value, list):
        return [_build(inner[0], each, f"{where}[{i}]") for i, each in enumerate(value)]
    if origin is dict and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _build(inner[1], each, f"{where}.{key}") for key, each in value.items()}
    if is_dataclass(kind) and isinstance(value, dict):
        hints = _hints(cast(Any, kind))
        missing = [name for name in hints if name not in value]
        if missing:
            raise StateError(f"{where} has no {missing[0]!r}; make the file anew.")
        return cast(type[Any], kind)(
            **{n: _build(hints[n], value[n], f"{where}.{n}") for n in hints}
        )
    if kind is float and value is None:
        return math.nan
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    wanted = getattr(kind, "__name__", str(kind))
    raise StateError(
        f"{where} is {type(value).__name__} where {wanted} is needed; make the file anew."
    )
