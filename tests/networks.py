"""Small networks for the tests, and the slow reference for saliency."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from salmon import FilterIndex
from salmon.filters import parameters_by_name


class PlainNet(nn.Module):
    """Three convolutions between poolings, BatchNorm, dropout; 3x16x16 images, 4 classes."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 10, 3),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(10 * 2 * 2, classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).flatten(1))
        return logits


def batch(samples: int = 6, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, 3, 16, 16, generator=generator)
    return images, torch.randint(classes, (samples,), generator=generator)


def one_by_one(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    index: FilterIndex,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    *,
    common_forward: bool = False,
) -> Tensor:
    """The profile by its definition: one ``autograd.grad`` per sample.

    With ``common_forward`` all samples share the rounding of one forward. In float32 that matters:
    rounding flips ReLUs whose input is nearly zero, which changes gradients by 1e-3 in any two runs
    with other batch sizes.
    """
    parameters = parameters_by_name(model)
    weights = [parameters[layer.weight] for layer in index.layers]
    rows = []
    outputs = model(inputs) if common_forward else None
    for i in range(len(inputs)):
        part = slice(i, i + 1)
        output = model(inputs[part]) if outputs is None else outputs[part]
        value = loss(output, targets[part])
        grads = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
        row = []
        for layer, weight, grad in zip(index.layers, weights, grads, strict=True):
            full = torch.zeros_like(weight) if grad is None else grad
            if layer.transposed_groups:  # [groups * C_in, O per group, ...] to [O, ...]
                full = full.unflatten(0, (layer.transposed_groups, -1))
                full = full.transpose(1, 2).flatten(0, 1)
            row.append(full.reshape(layer.filters, -1).abs().mean(1))
        rows.append(torch.cat(row).detach())
    return torch.stack(rows)


def layer_relative_error(actual: Tensor, expected: Tensor, index: FilterIndex) -> float:
    """Largest difference, in units of the layer's largest saliency over the batch."""
    worst = 0.0
    for start, end in zip(index.starts[:-1], index.starts[1:], strict=True):
        scale = expected[:, start:end].abs().max()
        if scale > 0:
            gap = (actual[:, start:end] - expected[:, start:end]).abs().max() / scale
            worst = max(worst, float(gap))
        else:
            assert not actual[:, start:end].any()
    return worst
