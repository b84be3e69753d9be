"""Per-sample weight gradients of one convolution, summed in absolute value per filter.

Every strategy is a pure function ``(inputs [N, C, *S], grad [N, O, *P], geometry) -> [N, O]`` of
sums of ``|dL_n/dW[o]|`` over the weights of filter o, for sample n alone. None holds more than
``BUFFER_ELEMENTS`` per-sample gradients at a time. :func:`strategy_for` picks one by shape, or, on
a GPU, the kernel that holds none.
Linear operations have inputs ``[N, P, C]`` and gradients ``[N, P, O]`` at P positions.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import prod

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

BUFFER_ELEMENTS = 1 << 19
GROUPED_ELEMENTS = 1 << 21
SINGLY_MIN_POSITIONS = 1000
TAPS_MAX_POSITIONS = 200
TAPS_MIN_CHANNELS = 16
DEPTHWISE_MAX_POSITIONS = 400
DEPTHWISE_FEW_POSITIONS = 8


@dataclass(frozen=True, slots=True)
class Geometry:
    """A convolution as ``aten.convolution`` sees it; tuples have an entry per spatial dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    transposed: bool
    weight_shape: tuple[int, ...]


Strategy = Callable[[Tensor, Tensor, Geometry], Tensor]


def filter_sums(inputs: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    """Sum ``|per-sample weight gradient|`` over every filter of a convolution."""
    return strategy_for(inputs, grad, geometry)(inputs, grad, geometry)


def strategy_for(inputs: Tensor, grad: Tensor, geometry: Geometry) -> Strategy:
    """Choose how to reduce a convolution.

    =================================================  ==================
    convolution                                        strategy
    =================================================  ==================
    on a GPU, float32, not transposed, 2 positions     :func:`fused_sums`
    or more
    kernel 1, no padding, ungrouped                    :func:`pointwise`
    ungrouped, at most 200 positions, >= 16 channels   :func:`taps`
    a channel a group, at most 8 positions, or more    :func:`depthwise`
    than 9 taps and at most 400 positions
    ungrouped, at least 1000 positions                 :func:`singly`
    everything else                                    :func:`grouped`
    =================================================  ==================
    """
    if not geometry.transposed and (fused := _fused(inputs)) and prod(grad.shape[2:]) > 1:
        return fused
    if geometry.groups > 1 or geometry.transposed:
        return depthwise if _suits_depthwise(grad, geometry) else grouped
    if prod(geometry.kernel) == 1 and not any(geometry.padding):
        return pointwise
    positions = prod(grad.shape[2:])
    if positions <= TAPS_MAX_POSITIONS and inputs.shape[1] >= TAPS_MIN_CHANNELS:
        return taps
    return singly if positions >= SINGLY_MIN_POSITIONS else grouped


def pointwise(inputs: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    """Kernel 1 without padding or groups: one matrix product per sample over the positions."""
    window = inputs
    for dim, (s, p) in enumerate(zip(geometry.stride, grad.shape[2:], strict=True), start=2):
        window = window[(slice(None),) * dim + (slice(0, s * (p - 1) + 1, s),)]
    return linear_sums(window.flatten(2).transpose(1, 2), grad.flatten(2).transpose(1, 2))


def taps(inputs: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    """Kernel tap by kernel tap, each a pointwise product over the positions inside the image."""
    return _by_tap(inputs, grad, geometry, linear_sums)


def depthwise(inputs: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    """One input and output channel a group: tap by tap, each a sum over the positions."""
    return _by_tap(inputs, grad, geometry, lambda a, g: (a * g).sum(1).abs_())


def _suits_depthwise(grad: Tensor, geometry: Geometry) -> bool:
    if geometry.transposed or geometry.weight_shape[:2] != (geometry.groups, 1):
        return False
    positions = prod(grad.shape[2:])
    large = prod(geometry.kernel) > 9  # the library is fast at smaller ones
    return positions <= (DEPTHWISE_MAX_POSITIONS if large else DEPTHWISE_FEW_POSITIONS)


def _by_tap(
    inputs: Tensor, grad: Tensor, geometry: Geometry, reduce: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Sum ``reduce([N, P, C], [N, P, O]) -> [N, O]`` over the taps.

    P are the positions at which a tap lies inside the image.
    """
    # Channels last once, so that every tap's window is a cheap copy of whole channel rows.
    a = inputs.movedim(1, -1).contiguous()
    g = grad.movedim(1, -1).contiguous()
    total = grad.new_zeros(grad.shape[:2])
    for tap in product(*(range(k) for k in geometry.kernel)):
        windows = _windows(tap, a.shape[1:-1], g.shape[1:-1], geometry)
        if windows is not None:
            at, out = windows
            total += reduce(
                a[(slice(None), *at)].flatten(1, -2), g[(slice(None), *out)].flatten(1, -2)
            )
    return total


def grouped(inputs: Tensor, grad: Tensor, geometry: Geometry, step: int = 0) -> Tensor:
    """Any convolution: the library's own weight gradient, with samples as groups."""
    step = step or max(1, GROUPED_ELEMENTS // prod(geometry.weight_shape))
    sums = []
    for start in range(0, inputs.shape[0], step):
        part = slice(start, start + step)
        gradients = weight_gradients(inputs[part], grad[part], geometry)
        groups = geometry.groups if geometry.transposed else 0
        sums.append(channel_sums(gradients.abs_(), groups))
    return torch.cat(sums)


def singly(inputs: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    """Any ungrouped convolution: the library's weight gradient, one sample at a time."""
    return grouped(inputs, grad, geometry, step=1)


def channel_sums(gradients: Tensor, transposed_groups: int) -> Tensor:
    """Sum ``[n, *weight_shape]`` over everything but the output channels, to ``[n, O]``.

    Args:
        transposed_groups: Groups of a transposed convolution, whose weight is
            ``[groups * C_in, O per group, *kernel]``; 0 where the first dimension counts channels.
    """
    if transposed_groups:
        by_group: Tensor = gradients.unflatten(1, (transposed_groups, -1)).transpose(2, 3)
        return by_group.flatten(3).sum(3).flatten(1)
    return gradients.flatten(2).sum(2)


def weight_gradients(inputs: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    """``[n, *weight_shape]`` gradients of a few samples, which are groups of one convolution."""
    n = inputs.shape[0]
    shape = (n * geometry.weight_shape[0], *geometry.weight_shape[1:])
    _, weight, _ = torch.ops.aten.convolution_backward(
        grad.reshape(1, -1, *grad.shape[2:]),
        inputs.reshape(1, -1, *inputs.shape[2:]),
        inputs.new_empty(1).expand(shape),
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        geometry.transposed,
        geometry.output_padding,
        n * geometry.groups,
        (False, True, False),
    )
    gradients: Tensor = weight.reshape(n, *geometry.weight_shape)
    return gradients


def _windows(
    tap: tuple[int, ...], size: torch.Size, positions: torch.Size, geometry: Geometry
) -> tuple[list[slice], list[slice]] | None:
    """Input and output slices of one tap, cut to where it lies inside the image."""
    at, out = [], []
    for t, s, p, stride, padding, dilation in zip(
        tap, size, positions, geometry.stride, geometry.padding, geometry.dilation, strict=True
    ):
        offset = t * dilation - padding  # input position of output position 0
        first = max(0, -(offset // stride))
        last = min(p - 1, (s - 1 - offset) // stride)
        if last < first:
            return None
        begin = offset + first * stride
        at.append(slice(begin, begin + (last - first) * stride + 1, stride))
        out.append(slice(first, last + 1))
    return at, out


def linear_sums(a: Tensor, g: Tensor) -> Tensor:
    """``[N, P, C]`` and ``[N, P, O]`` to ``[N, O]``: ``sum_c |sum_p g[p, o] a[p, c]|``."""
    samples, positions, outputs = g.shape
    if positions == 1:
        return g[:, 0].abs() * a[:, 0].abs().sum(1, keepdim=True)
    if fused := _fused(a):
        return fused(a.transpose(1, 2), g.transpose(1, 2), _linear(outputs, a.shape[2]))
    step = max(1, BUFFER_ELEMENTS // (outputs * a.shape[2]))
    buffer = g.new_empty((min(step, samples), outputs, a.shape[2]))
    total = g.new_empty((samples, outputs))
    for start in range(0, samples, step):
        part = slice(start, start + step)
        gradient = buffer[: min(step, samples - start)]
        torch.bmm(g[part].transpose(1, 2), a[part], out=gradient)
        torch.sum(gradient.abs_(), dim=2, out=total[part])
    return total


def _linear(outputs: int, inputs: int) -> Geometry:
    """A linear operation as a convolution over its positions."""
    return Geometry((1,), (1,), (0,), (1,), (0,), 1, False, (outputs, inputs, 1))  # noqa: FBT003


def _fused(inputs: Tensor) -> Strategy | None:
    """The kernel for a GPU, where it runs on the device of some inputs."""
    if not inputs.is_cuda or inputs.dtype != torch.float32:
        return None
    return fused_on(inputs.device)


@cache
def fused_on(device: torch.device) -> Strategy | None:
    """The kernel, if it runs on a device and is right there; told once if not."""
    try:
        from salmon.saliency.fused import fused_sums  # Triton takes a while, and may not be there

        generator = torch.Generator().manual_seed(0)
        for channels, groups in ((130, 1), (16, 16)):
            inputs, grad = (
                torch.randn(2, channels, 9, generator=generator).to(device) for _ in range(2)
            )
            shape = (channels, channels // groups, 1)
            geometry = replace(_linear(channels, channels), groups=groups, weight_shape=shape)
            exact = grouped(inputs.double(), grad.double(), geometry)
            gap = (fused_sums(inputs, grad, geometry) - exact).abs().max()
            if not bool(gap <= 1e-5 * exact.max()):
                raise ArithmeticError("its numbers are wrong")
    except torch.OutOfMemoryError:
        raise  # there may be more memory later
    except Exception as error:  # noqa: BLE001
        logger.warning(
            "The kernel for %s is not used, and the saliency is slower (%s: %s).",
            device, type(error).__name__, error,
        )  # fmt: skip
        return None
    return fused_sums
