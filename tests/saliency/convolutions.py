"""Random convolutions, with sums by autograd of each sample alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from salmon.saliency import Geometry

CONVOLUTIONS = [torch.conv1d, torch.conv2d, torch.conv3d]
TRANSPOSED = [torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d]


def example(
    dims: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    size: int,
    channels: int = 4,
    transposed: bool = False,
    outputs: int = 6,
) -> tuple[Tensor, Tensor, Geometry, Tensor]:
    """Input, output gradient and geometry of a random convolution, with the exact sums."""
    kernels = (kernel,) * dims
    inputs = torch.randn(5, channels, *(size + i for i in range(dims)), dtype=torch.float64)
    if transposed:
        weight = torch.randn(channels, outputs // groups, *kernels, dtype=torch.float64)
        convolve: Callable[..., Tensor] = TRANSPOSED[dims - 1]
    else:
        weight = torch.randn(outputs, channels // groups, *kernels, dtype=torch.float64)
        convolve = CONVOLUTIONS[dims - 1]
    weight.requires_grad_()
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    grad = torch.randn_like(convolve(inputs, weight, **options))
    rows = []
    for x, g in zip(inputs, grad, strict=True):
        (per_sample,) = torch.autograd.grad(convolve(x[None], weight, **options), weight, g[None])
        if transposed:
            per_sample = per_sample.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        rows.append(per_sample.abs().flatten(1).sum(1))
    geometry = Geometry(
        kernel=kernels,
        stride=(stride,) * dims,
        padding=(padding,) * dims,
        dilation=(dilation,) * dims,
        output_padding=(0,) * dims,
        groups=groups,
        transposed=transposed,
        weight_shape=tuple(weight.shape),
    )
    return inputs, grad, geometry, torch.stack(rows)
