"""Image folders: ImageNet's validation set, ImageNet-C and PACS, in their published layouts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchvision.datasets import ImageFolder

from salmon import InputError

CORRUPTIONS = ("gaussian_noise", "snow", "pixelate", "contrast")
SEVERITIES = (1, 2, 3, 4, 5)
DOMAINS = ("photo", "art_painting", "cartoon", "sketch")

IMAGENET = (
    "a folder with one folder of images per class, val/<wnid>/*.JPEG, is needed; get "
    "ILSVRC2012_img_val.tar from https://image-net.org and unpack it with "
    "torchvision.datasets.ImageNet(root, split='val')"
)
IMAGENET_C = (
    "<root>/<corruption>/<severity>/<wnid>/*.JPEG is needed; get noise.tar, weather.tar and "
    "digital.tar of ImageNet-C from https://zenodo.org/records/2235448"
)
PACS = (
    f"<root>/<domain>/<class>/* is needed for the domains {', '.join(DOMAINS)}; get PACS from the "
    "page of Li et al. 2017, Deeper, Broader and Artier Domain Generalization"
)

Transform = Callable[[Any], Any]


def imagenet(root: Path, transform: Transform) -> Any:
    """ImageNet's validation set.

    Args:
        root: The folder that holds ``val``, or ``val`` itself.
        transform: From an image to a tensor.
    """
    return _folder(root / "val" if (root / "val").is_dir() else root, transform, IMAGENET)


def imagenet_c(root: Path, corruption: str, severity: int, transform: Transform) -> Any:
    """One corruption of ImageNet-C.

    Args:
        root: Of the archive.
        corruption: Its name.
        severity: 1 to 5.
        transform: From an image to a tensor.
    """
    nested = sorted(root.glob(f"*/{corruption}"))  # noise/gaussian_noise, as some unpack it
    base = nested[0] if nested and not (root / corruption).is_dir() else root / corruption
    return _folder(base / str(severity), transform, IMAGENET_C)


def pacs(root: Path, domain: str, transform: Transform) -> Any:
    """One domain of PACS.

    Args:
        root: Of the data.
        domain: One of :data:`DOMAINS`.
        transform: From an image to a tensor.
    """
    return _folder(root / domain, transform, PACS)


def same_classes(folders: dict[str, Any]) -> list[str]:
    """The classes of several folders, which must be the same.

    Args:
        folders: By name.

    Raises:
        InputError: If they differ.
    """
    names = list(folders)
    first: list[str] = folders[names[0]].classes
    for name in names[1:]:
        odd = sorted(set(first) ^ set(folders[name].classes))
        if odd:
            raise InputError(
                f"{names[0]} and {name} differ in the classes {', '.join(odd[:5])}; the same class "
                "folders are needed in both."
            )
    return first


def _folder(folder: Path, transform: Transform, needed: str) -> Any:
    """The images of a folder."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; {needed}.")
    try:
        return ImageFolder(str(folder), transform)
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no images by class ({error}); {needed}.") from error
