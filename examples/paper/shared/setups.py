"""What experiments start from: a network of ImageNet and its images, or one trained on digits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.models import resnet18

from examples.paper.shared.digits import Source, load_source, load_target
from examples.paper.shared.folders import IMAGENET, imagenet
from examples.paper.shared.images import Images
from examples.paper.shared.measuring import Say
from examples.paper.shared.networks import index_of, load_network
from examples.paper.shared.options import Options
from examples.paper.shared.parts import Parts
from examples.paper.shared.training import Recipe, sgd, trained
from salmon import FilterIndex, InputError
from salmon.cli.digits import CLASSES


@dataclass(frozen=True, slots=True, eq=False)
class OnImageNet:
    """A network and ImageNet's validation set."""

    model: nn.Module
    index: FilterIndex
    images: Any
    transform: Callable[[Any], Any]
    standin: bool


@dataclass(frozen=True, slots=True, eq=False)
class OnDigits:
    """A network trained on one set of digits, and another set."""

    model: nn.Module
    index: FilterIndex
    source: Source
    target: Images


def on_imagenet(options: Options, name: str) -> OnImageNet:
    """Load a network and the images it was trained for.

    Args:
        options: Of the experiment.
        name: Of the network.

    Raises:
        InputError: If the images or the weights are missing, or do not fit together.
    """
    if options.data is None:
        raise InputError(f"--data is missing; {IMAGENET}.")
    images = imagenet(options.data, lambda image: image)
    loaded = load_network(
        name, options.weights, classes=len(images.classes), size=options.size, seed=options.seed
    )
    images.transform = loaded.transform
    model = loaded.model.to(options.device)
    index = index_of(model, name, shortcuts=options.shortcuts)
    return OnImageNet(model, index, images, loaded.transform, loaded.standin)


def on_digits(
    parts: Parts, options: Options, source: str, target: str, epochs: int, say: Say
) -> OnDigits:
    """Train ResNet-18 on digits, or take over its weights.

    Args:
        parts: Where the weights are kept.
        options: Of the experiment.
        source: Name of the set to train on.
        target: Name of the other set.
        epochs: Passes over the training images.
        say: Gets progress.
    """
    digits, other = (
        load_source(source, options.data, options.seed),
        load_target(target, options.data),
    )
    torch.manual_seed(options.seed)
    model = resnet18(num_classes=CLASSES).to(options.device)
    recipe = Recipe(optimizer=sgd, epochs=epochs, seed=options.seed)
    trained(parts, model, digits.train, digits.validation, recipe, say)
    return OnDigits(model, index_of(model, "resnet18", shortcuts=options.shortcuts), digits, other)
