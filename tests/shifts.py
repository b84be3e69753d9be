"""A small network that a change of contrast confuses, and the data around it."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from salmon import Samples

CLASSES = 4


def squares(samples: int, seed: int, *, shifted: bool) -> tuple[Tensor, Tensor]:
    """Noise with one bright quarter, its number the class; darker and flatter where shifted."""
    random = torch.Generator().manual_seed(seed)
    targets = torch.randint(CLASSES, (samples,), generator=random)
    images = 0.7 * torch.randn(samples, 1, 12, 12, generator=random)
    for image, target in zip(images, targets.tolist(), strict=True):
        top, left = 6 * (target // 2), 6 * (target % 2)
        image[0, top : top + 6, left : left + 6] += 1
    return (0.5 * images - 0.5 if shifted else images), targets


def dataset(samples: int, seed: int, *, shifted: bool) -> TensorDataset:
    return TensorDataset(*squares(samples, seed, shifted=shifted))


def some(samples: int, seed: int, *, shifted: bool) -> Samples:
    images, targets = squares(samples, seed, shifted=shifted)
    return Samples(images, targets, tuple(range(samples)))


def layers(width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * width, CLASSES),
    )  # fmt: skip


@cache
def _weights() -> dict[str, Tensor]:
    """Of a network that was trained on unshifted squares."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = layers()
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        images, targets = squares(600, 0, shifted=False)
        for _ in range(3):
            for x, y in zip(images.split(64), targets.split(64), strict=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x), y).backward()
                optimizer.step()
    return network.state_dict()


def trained() -> nn.Sequential:
    """A fresh copy of it: right on unshifted squares, wrong on many shifted ones."""
    network = layers()
    network.load_state_dict(_weights())
    return network.eval()
