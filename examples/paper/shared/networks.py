"""torchvision's networks, with their published weights, weights of a file, or random ones."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.transforms._presets import ImageClassification

from salmon import SHORTCUTS, FilterIndex, InputError, StateError
from salmon.cli.checkpoints import read_checkpoint

RANDOM = "random"
UNITS = {"vit_b_16": ("heads",)}


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A network, and how images get into it."""

    model: nn.Module
    transform: Callable[[Any], Any]
    standin: bool  # random weights, whose numbers mean nothing


def load_network(name: str, weights: str, *, classes: int, size: int, seed: int) -> Loaded:
    """Build a network.

    Args:
        name: Of a torchvision model.
        weights: Name of its weights, a file with a state dict, or ``random``.
        classes: Number of classes of the data.
        size: Pixels of an image's side.
        seed: Of random weights.

    Raises:
        InputError: If the weights are unknown, cannot be had, or do not fit the data.
    """
    options = {"image_size": size} if name.startswith("vit") else {}
    known = get_model_weights(name)
    transform = partial(ImageClassification, crop_size=size, resize_size=round(size * 256 / 224))
    path = Path(weights)
    if weights == RANDOM or path.is_file():
        torch.manual_seed(seed)
        model = get_model(name, weights=None, num_classes=classes, **options)
        if weights == RANDOM:
            _stir(model)
        else:
            _fill(model, path)
        return Loaded(model.eval(), transform(), weights == RANDOM)
    if weights not in (*known.__members__, "DEFAULT"):
        raise InputError(
            f"weights is {weights!r}, which is neither a file nor weights of {name}; "
            f"{', '.join(known.__members__)}, DEFAULT, a file, or {RANDOM} is needed."
        )
    found = known[weights]
    if classes != len(found.meta["categories"]):
        raise InputError(
            f"the data have {classes} class folders but the weights {weights} of {name} know "
            f"{len(found.meta['categories'])}; all of them are needed, since classes are numbered "
            "by the order of the folders."
        )
    try:
        model = get_model(name, weights=found, **options)
    except (URLError, OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the weights {weights} of {name} cannot be had ({error}); a download from {found.url} "
            "is needed. Get that file elsewhere and give it as --weights FILE."
        ) from error
    if size == 224:
        return Loaded(model.eval(), found.transforms(), standin=False)
    return Loaded(model.eval(), transform(), standin=False)


def index_of(model: nn.Module, name: str, *, shortcuts: bool) -> FilterIndex:
    """The filters of a network: attention heads of ViT, convolutions of others.

    Args:
        model: The network.
        name: Of the torchvision model.
        shortcuts: Whether the convolutions of residual shortcuts count.
    """
    return FilterIndex.from_model(
        model, exclude=() if shortcuts else SHORTCUTS, units=UNITS.get(name, ("conv",))
    )


def _stir(model: nn.Module) -> None:
    """Fill weights that are zero at the start, such as ViT's head: no gradient passes them."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)


def _fill(model: nn.Module, path: Path) -> None:
    """Load a state dict; nothing in the file is executed."""
    try:
        state = read_checkpoint(path).state_dict
    except StateError as error:
        reason = str(error).partition(";")[0]
        raise InputError(
            f"weights {path} cannot be read ({reason}); a state dict of torch or a file of "
            "safetensors is needed."
        ) from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise InputError(
            f"weights {path} do not fit the network ({detail}); the state dict of the same network "
            "with as many classes as the data is needed."
        ) from error
