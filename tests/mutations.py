"""Ways to spoil what a reader gets: bytes, plain values, tensors, JSON.

All choices come from the ``random.Random`` that is handed in, so that a case is known by its seed.
"""

import json
import struct
import warnings
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

HUGE, DEEP, NO_UTF8 = "\x00huge", "\x00deep", "\x00bytes"
"""What stands in JSON for a number of 5,000 digits, for 20,000 brackets, and for no text at all."""

_NUMBERS = (0xFFFFFFFFFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFF, 0x80000000, 1 << 60, 0, 1)


def spoilt_bytes(random: Random, data: bytes) -> bytes:
    """Flip, overwrite, cut, insert, double, leave out or swap a few times."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = _spoilt_once(random, data)
    return data


def _spoilt_once(random: Random, data: bytes) -> bytes:
    """One of them."""
    at, end = sorted(random.randrange(len(data) + 1) for _ in range(2))
    end = min(end, at + random.choice((1, 4, 64, 1 << 20)))
    few = random.randbytes(random.choice((1, 8, 100)))
    return random.choice((
        data[:at] + few[:1] + data[at + 1 :],
        data[:at] + random.randbytes(end - at) + data[end:],
        data[:at] + wrong_number(random) + data[at + 8 :],
        data[: _length(random, len(data))],
        data[:at] + few + data[at:],
        data[:end] + data[at:],
        data[:at] + data[end:],
        data[at:end] + data[:at] + data[end:],
        data[:at] + bytes(end - at) + data[end:],
    ))  # fmt: skip


def wrong_number(random: Random) -> bytes:
    """Eight bytes that are a length nobody has."""
    return struct.pack(random.choice(("<Q", ">Q")), random.choice(_NUMBERS))


def _length(random: Random, whole: int) -> int:
    """Nothing, a few bytes, a part, or all but a few bytes."""
    few = random.randrange(1, 40)
    return random.choice((0, few, random.randrange(whole + 1), whole // 2, max(0, whole - few)))


def entangled(levels: int = 60) -> list[Any]:
    """A list of a few objects that would have more elements than atoms if it were written out."""
    nested: list[Any] = ["ha"]
    for _ in range(levels):
        nested = [nested] * 10
    return nested


def nested(levels: int) -> list[Any]:
    """Lists in lists."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def odd_plain(random: Random, value: Any) -> Any:
    """Something else in place of a value that JSON takes, often of the same type."""
    alike: list[Any] = []
    if isinstance(value, int | float) and not isinstance(value, bool):
        alike = [-value, value + 1, value - 1, value * 10**9, 2 * value, -value * 10, 0]
    elif isinstance(value, str):
        alike = [value * 2, value[:-1], "", f"{value}\ud800", f"<b>{value}</b>", "\x00", "é" * 5000]
    elif isinstance(value, list):
        alike = [value * 2, value[:-1], [value], [], dict.fromkeys(map(str, value[:3])), [None]]
    elif isinstance(value, dict):
        alike = [{**value, "more": 1}, {}, list(value), list(value.items())]
    other: list[Any] = [
        None, True, False, 0, -1, 1.5, 2**31, 2**63, -(2**70), 10**400, float("nan"), float("inf"),
        1e308, 5e-324, "", "pot", HUGE, DEEP, NO_UTF8, [], {}, [[]], [{}], {"": None}, nested(30),
    ]  # fmt: skip
    return random.choice(alike if alike and random.random() < 0.5 else other)


def odd_object(random: Random, value: Any) -> Any:
    """The same in place of a value that a checkpoint takes: tensors, tuples and more."""
    if isinstance(value, Tensor) and random.random() < 0.7:
        return _odd_tensor(random, value)
    other = [
        (), (1, 2), b"bytes", {1: 2}, {(1, 2): 3}, 10**5000, entangled(), torch.zeros(3),
        torch.tensor(2), torch.tensor([True, False]), torch.Size([2]), complex(1, 2), set(),
    ]  # fmt: skip
    return random.choice(other) if random.random() < 0.4 else odd_plain(random, value)


def _odd_tensor(random: Random, value: Tensor) -> Tensor:
    """A tensor of another type, shape, layout or content."""
    dtypes = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool,
              torch.complex64, torch.float8_e4m3fn, torch.uint16)  # fmt: skip
    fills = (float("nan"), float("inf"), -float("inf"), -1, 0, 1, 99, 1e30)
    real = value.double() if not value.is_complex() else value.real.double()
    makers: list[Callable[[], Tensor]] = [
        lambda: value.to(random.choice(dtypes)),
        lambda: value[:-1] if value.ndim else value,
        lambda: torch.cat([value, value]) if value.ndim else value.view(1),
        lambda: value.unsqueeze(random.choice((0, -1))),
        lambda: value.flatten()[:1].squeeze().expand(1 << 34),  # 8 bytes that look like 128 GiB
        lambda: value.reshape(-1)[:1].expand(value.shape) if value.numel() else value,
        real.to_sparse,
        lambda: torch.empty_like(value, device="meta"),
        lambda: torch.quantize_per_tensor(real.float(), 0.1, 0, torch.qint8),
        lambda: torch.nn.Parameter(real),
        lambda: value.flip(0) if value.ndim else value,
        lambda: torch.empty(0),
        lambda: torch.where(
            torch.rand(value.shape, generator=torch.Generator().manual_seed(random.randrange(99)))
            < random.choice((0.1, 1.1)),
            random.choice(fills), real,
        ).to(value.dtype if not value.is_complex() else torch.float64),
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return random.choice(makers)()
        except RuntimeError:  # not every tensor can be made into every other
            return torch.zeros(2, 2)


Odd = Callable[[Random, Any], Any]


def changed(random: Random, value: Any, odd: Odd = odd_plain) -> Any:
    """A copy of a nesting with one place replaced, left out, doubled or added."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        return _changed_dict(random, value, odd)
    if type(value) in (list, tuple) and value and random.random() < 0.9:
        items, at = list(value), random.randrange(len(value))
        what = random.random()
        if what < 0.7:
            items[at] = changed(random, items[at], odd)
        elif what < 0.8:
            del items[at]
        elif what < 0.9:
            items.insert(at, items[at])
        else:
            items.append(odd(random, items[at]))
        return type(value)(items)
    return odd(random, value)


def _changed_dict(random: Random, value: dict[Any, Any], odd: Odd) -> dict[Any, Any]:
    """The same of a dictionary."""
    found, key = dict(value), random.choice(list(value))
    what = random.random()
    if what < 0.75:
        found[key] = changed(random, found[key], odd)
    elif what < 0.85:
        del found[key]
    elif what < 0.9:
        found[random.choice(("", "schema", f"{key}x", "\ud800"))] = odd(random, None)
    elif what < 0.95:
        found[key] = found[random.choice(list(value))]
    else:
        found[random.choice((0, None, (1, 2), "pot"))] = found.pop(key)
    return found


def spoilt_json(random: Random, value: Any) -> bytes:
    """A changed value as text, or the text of the value with changed bytes."""
    if random.random() < 0.2:
        return spoilt_bytes(random, json.dumps(value).encode())
    for _ in range(random.choice((1, 1, 2, 3))):
        value = changed(random, value)
    ascii_only = random.random() < 0.7
    text = json.dumps(with_text_keys(value), ensure_ascii=ascii_only)
    data = text.encode(errors="surrogatepass")
    for mark, content in (
        (HUGE, b"9" * 5000), (DEEP, b"[" * 10000 + b"]" * 10000), (NO_UTF8, b'"\xff\xfe"')
    ):  # fmt: skip
        data = data.replace(json.dumps(mark).encode(), content)
    return data


def with_text_keys(value: Any) -> Any:
    """The nesting with keys that JSON takes."""
    if isinstance(value, dict):
        return {k if isinstance(k, str) else str(k): with_text_keys(v) for k, v in value.items()}
    return [with_text_keys(v) for v in value] if isinstance(value, list | tuple) else value
