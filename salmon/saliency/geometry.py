"""How a convolution moves over its input: stride, padding, dilation, groups, kernel.

Spatial tuples have one entry per spatial dimension (1, 2 or 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Geometry:
    """One convolution as ``aten.convolution`` sees it."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    transposed: bool
    weight_shape: tuple[int, ...]


def conv_geometry(
    call: Mapping[str, Any], dims: int, *, transposed: bool
) -> tuple[Tensor, Geometry]:
    """Read the geometry off the named arguments of a convolution call.

    Args:
        call: Arguments of ``torch.conv1d`` and its kin.
        transposed: Whether it is one of ``torch.conv_transpose1d`` and its kin.

    Returns:
        The input, padded by hand where "same" padding is not symmetric, and the geometry.
    """
    weight = call["weight"]
    kernel = tuple(weight.shape[2:])
    dilation = spread(call.get("dilation", 1), dims)
    inputs, padding = resolve_padding(call["input"], kernel, dilation, call.get("padding", 0))
    return inputs, Geometry(
        kernel=kernel,
        stride=spread(call.get("stride", 1), dims),
        padding=padding,
        dilation=dilation,
        output_padding=spread(call.get("output_padding", 0), dims),
        groups=call.get("groups", 1),
        transposed=transposed,
        weight_shape=tuple(weight.shape),
    )


def spread(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """Repeat a single number for every spatial dimension.

    Returns:
        ``dims`` numbers.
    """
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * dims if len(numbers) == 1 else numbers


def resolve_padding(
    inputs: Tensor,
    kernel: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: str | int | Sequence[int],
) -> tuple[Tensor, tuple[int, ...]]:
    """Turn ``padding="same"`` and ``"valid"`` into numbers.

    Args:
        inputs: ``[N, C, *spatial]``.
        padding: As the functions of ``torch.nn.functional`` take it.

    Returns:
        The input, padded by hand at its ends where "same" is not symmetric, and the padding left
        to do.
    """
    dims = len(kernel)
    if not isinstance(padding, str):
        return inputs, spread(padding, dims)
    if padding == "valid":
        return inputs, (0,) * dims
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if any(t % 2 for t in total):
        extra = [size for t in reversed(total) for size in (0, t % 2)]
        inputs = torch.nn.functional.pad(inputs, extra)
    return inputs, tuple(t // 2 for t in total)
