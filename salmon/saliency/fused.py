"""Per-sample weight gradients on a GPU, reduced to sums of absolute values as they arise.

A Triton kernel computes, for one sample and a block of output channels, the gradient of a block of
weights in registers, over all positions, and stores nothing but the sum of its absolute values per
output channel: no per-sample gradient is ever in memory. All is float32, whatever torch's settings
of TF32 are, and the order of the sums is fixed, so that results repeat bit for bit.
"""

from contextlib import nullcontext
from functools import lru_cache
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from salmon.saliency.reduce import Geometry

MIN_OUTPUTS = 16  # output channels of a group for a matrix product
COPIED = 64  # channels and positions that are copied by one program

# A new value of these need not be compiled anew: none makes memory accesses wider.
_PLAIN = (
    "samples", "groups", "face", "row", "tap_depth", "tap_height", "tap_width",
    "plane", "line", "depth", "height", "width", "before_depth", "before_height", "before_width",
    "depth_step", "height_step",
)  # fmt: skip


@triton.jit
def _tap_offset(tap, face, row, depth, height, width):
    """Offset in memory of a numbered tap; a depth has ``face`` of them, and a height ``row``."""
    return (tap // face) * depth + ((tap % face) // row) * height + (tap % row) * width


@triton.jit
def _place(p, places, positions):
    """Where the first tap reads at a position, in steps."""
    if places is not None:
        p = tl.load(places + p, mask=p < positions, other=0)
    return p


@triton.jit(do_not_specialize=_PLAIN)
def _block_kernel(
    inputs,  # [N, *S, groups * channels]
    grad,  # [N, positions, groups * outputs]
    sums,  # [blocks of weights, N, groups * outputs]
    places,  # [positions] where the first tap reads, in steps; None where that is the position
    step,
    face,  # taps of the last two dimensions
    row,  # of the last one
    tap_depth,  # how far apart they are in memory
    tap_height,
    tap_width,
    samples,
    groups,
    outputs,  # of a group
    channels,  # of a group
    weights,  # of an output channel
    positions,
    input_sample,  # how far apart samples are in memory
    point: tl.constexpr,  # the kernel is a single tap
    wide: tl.constexpr,  # 16 divides the channels
    o_block: tl.constexpr,
    k_block: tl.constexpr,
    p_block: tl.constexpr,
):
    """Gradients of a block of outputs and weights: a matrix product over the positions."""
    # Neighbouring programs share sample and outputs, so that they find them in the cache.
    number = tl.program_id(0)
    weight_block = number % tl.cdiv(weights, k_block)
    number = number // tl.cdiv(weights, k_block)
    output_block = number % tl.cdiv(outputs, o_block)
    number = number // tl.cdiv(outputs, o_block)
    group = number % groups
    sample = (number // groups).to(tl.int64)

    filters = groups * outputs
    o = output_block * o_block + tl.arange(0, o_block)
    k = weight_block * k_block + tl.arange(0, k_block)
    at_weight = k
    if not point:
        at_weight = (k % channels) + _tap_offset(
            k // channels, face, row, tap_depth, tap_height, tap_width
        )
        if wide:  # what the compiler cannot see, for loads of four values at once
            at_weight = tl.max_contiguous(tl.multiple_of(at_weight, 16), 16)
    inputs += sample * input_sample + group * channels
    grad += sample * positions * filters + group * outputs
    total = tl.zeros((o_block, k_block), dtype=tl.float32)
    for start in range(0, positions, p_block):
        p = start + tl.arange(0, p_block)
        g = tl.load(
            grad + p[None, :] * filters + o[:, None],
            mask=(p < positions)[None, :] & (o < outputs)[:, None],
            other=0.0,
        )
        x = tl.load(
            inputs + _place(p, places, positions)[:, None] * step + at_weight[None, :],
            mask=(p < positions)[:, None] & (k < weights)[None, :],
            other=0.0,
        )
        total = tl.dot(g, x, total, input_precision="ieee")
    tl.store(
        sums + (weight_block * samples + sample) * filters + group * outputs + o,
        tl.sum(tl.abs(total), axis=1),
        mask=o < outputs,
    )


@triton.jit(do_not_specialize=_PLAIN)
def _weight_kernel(
    inputs,  # [N, groups * channels, *S]
    grad,  # [N, groups * outputs, positions]
    sums,  # [N, groups * outputs]
    places,
    step,
    face,
    row,
    tap_depth,
    tap_height,
    tap_width,
    groups,
    outputs,
    channels,
    weights,
    positions,
    input_sample,
    input_channel,
    p_block: tl.constexpr,
):
    """Gradients of one output's weights, one after the other; arguments as above."""
    filters = groups * outputs
    filter = tl.program_id(0) % filters
    sample = (tl.program_id(0) // filters).to(tl.int64)
    inputs += sample * input_sample + (filter // outputs) * channels * input_channel
    grad += (sample * filters + filter) * positions
    size = 0.0
    for k in range(weights):
        at_weight = (k % channels) * input_channel + _tap_offset(
            k // channels, face, row, tap_depth, tap_height, tap_width
        )
        total = tl.zeros((p_block,), dtype=tl.float32)
        for start in range(0, positions, p_block):
            p = start + tl.arange(0, p_block)
            at = at_weight + _place(p, places, positions) * step
            g = tl.load(grad + p, mask=p < positions, other=0.0)
            total += g * tl.load(inputs + at, mask=p < positions, other=0.0)
        size += tl.abs(tl.sum(total, axis=0))
    tl.store(sums + sample * filters + filter, size)


@triton.jit(do_not_specialize=_PLAIN)
def _rows_kernel(
    values,  # [N, channels, *S]
    rows,  # [N, *padded S, channels]
    channels,
    positions,  # in the padded S
    plane,  # of its last two dimensions
    line,  # of its last one
    depth,  # sizes of S
    height,
    width,
    before_depth,  # zeros in front
    before_height,
    before_width,
    sample_step,
    channel_step,
    depth_step,
    height_step,
    width_step,
    c_block: tl.constexpr,
    p_block: tl.constexpr,
):
    """Copy a block of positions and channels."""
    number = tl.program_id(0)
    c = (number % tl.cdiv(channels, c_block)) * c_block + tl.arange(0, c_block)
    number = number // tl.cdiv(channels, c_block)
    p = (number % tl.cdiv(positions, p_block)) * p_block + tl.arange(0, p_block)
    sample = (number // tl.cdiv(positions, p_block)).to(tl.int64)
    z = p // plane - before_depth
    y = (p % plane) // line - before_height
    x = p % line - before_width
    inside = (z >= 0) & (z < depth) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    at = z * depth_step + y * height_step + x * width_step
    block = tl.load(
        values + sample * sample_step + c[:, None] * channel_step + at[None, :],
        mask=(c < channels)[:, None] & (inside & (p < positions))[None, :],
        other=0.0,
    )
    tl.store(
        rows + (sample * positions + p[:, None]) * channels + c[None, :],
        tl.trans(block),
        mask=(p < positions)[:, None] & (c < channels)[None, :],
    )


def fused_sums(inputs: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    """Sum ``|per-sample weight gradient|`` over every filter of a convolution, not transposed.

    Args:
        inputs: ``[N, C, *S]`` in float32, in any order in memory.
        grad: ``[N, O, *P]``, likewise.

    Returns:
        ``[N, O]`` sums.
    """
    few = geometry.weight_shape[0] < MIN_OUTPUTS * geometry.groups
    with torch.cuda.device(inputs.device) if inputs.is_cuda else nullcontext():
        return (_by_weight if few else _by_block)(inputs, grad, geometry)


def _by_block(inputs: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    samples, filters, *shape = grad.shape
    outputs, channels = filters // geometry.groups, geometry.weight_shape[1]
    weights = channels * prod(geometry.kernel)
    inputs, grad = _rows(inputs, geometry.padding), _rows(grad, (0,) * len(shape))
    # What was fastest on an H100.
    if outputs >= 128 and weights >= 128:
        o_block, k_block, p_block, warps = 128, 128, 16, 8
    else:
        o_block = min(64, triton.next_power_of_2(outputs))
        k_block = min(64, max(16, triton.next_power_of_2(weights)))
        p_block, warps = 32, 4
    parts = -(-weights // k_block)
    sums = grad.new_empty((parts, samples, filters))
    _block_kernel[(samples * geometry.groups * -(-outputs // o_block) * parts,)](
        inputs, grad, sums, *_walk(geometry, shape, inputs.stride()[1:-1], inputs.device),
        samples, geometry.groups, outputs, channels, weights, prod(shape), inputs.stride(0),
        point=prod(geometry.kernel) == 1, wide=channels % 16 == 0,
        o_block=o_block, k_block=k_block, p_block=p_block, num_warps=warps, num_stages=4,
    )  # fmt: skip
    return sums[0] if parts == 1 else sums.sum(0)


def _by_weight(inputs: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    samples, filters, *shape = grad.shape
    channels, positions = geometry.weight_shape[1], prod(shape)
    if any(geometry.padding):
        inputs = nn.functional.pad(inputs, [p for p in geometry.padding[::-1] for _ in range(2)])
    inputs, grad = inputs.contiguous(), grad.contiguous()
    p_block = min(1024, max(32, triton.next_power_of_2(positions)))
    sums = grad.new_empty((samples, filters))
    _weight_kernel[(samples * filters,)](
        inputs, grad, sums, *_walk(geometry, shape, inputs.stride()[2:], inputs.device),
        geometry.groups, filters // geometry.groups, channels, channels * prod(geometry.kernel),
        positions, *inputs.stride()[:2], p_block=p_block, num_warps=max(1, p_block // 256),
    )  # fmt: skip
    return sums


def _walk(
    geometry: Geometry, shape: list[int], strides: tuple[int, ...], device: torch.device
) -> tuple[Tensor | int | None, ...]:
    """The kernels' arguments from ``places`` to ``tap_width``.

    Args:
        shape: Of the positions.
        strides: Of the input's spatial dimensions.
    """
    steps = [s * stride for s, stride in zip(geometry.stride, strides, strict=True)]
    taps = [d * stride for d, stride in zip(geometry.dilation, strides, strict=True)]
    places, step = None, steps[-1]
    if any(steps[i] != steps[i + 1] * shape[i + 1] for i in range(len(shape) - 1)):
        step = strides[-1]
        places = _places(tuple(shape), tuple(each // step for each in steps), device)
    kernel = geometry.kernel
    return places, step, prod(kernel[-2:]), kernel[-1], *[0] * (3 - len(taps)), *taps


@lru_cache(maxsize=1024)
def _places(shape: tuple[int, ...], steps: tuple[int, ...], device: torch.device) -> Tensor:
    """``[prod(shape)]`` offsets of the positions, whose steps are given by dimension."""
    places = torch.zeros((), dtype=torch.int32)
    for size, step in zip(shape, steps, strict=True):
        places = places.unsqueeze(-1) + torch.arange(size, dtype=torch.int32) * step
    return places.flatten().to(device)


def _rows(values: Tensor, padding: tuple[int, ...]) -> Tensor:
    """``[N, C, *S]`` to contiguous ``[N, *S, C]``, with zeros around."""
    if not any(padding) and values.movedim(1, -1).is_contiguous():
        return values.movedim(1, -1)
    samples, channels, *shape = values.shape
    padded = [size + 2 * p for size, p in zip(shape, padding, strict=True)]
    rows = values.new_empty((samples, *padded, channels))
    missing = 3 - len(shape)
    blocks = -(-channels // COPIED) * -(-prod(padded) // COPIED)
    _rows_kernel[(samples * blocks,)](
        values, rows, channels, prod(padded), prod(padded[-2:]), padded[-1],
        *[1] * missing, *shape, *[0] * missing, *padding,
        *values.stride()[:2], *[0] * missing, *values.stride()[2:],
        c_block=COPIED, p_block=COPIED, num_warps=4,
    )  # fmt: skip
    return rows
