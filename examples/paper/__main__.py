"""The paper's experiments: ``python -m examples.paper EXPERIMENT``; see docs/experiments.md."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils.data import Subset
from torchvision.models import VisionTransformer, resnet18

from examples.paper import data
from examples.paper.data import Images
from examples.paper.normality import write_normality
from examples.paper.options import Options
from examples.paper.results import write_results
from examples.paper.study import Study, Subject, cached, claim, run_study, train
from salmon import SHORTCUTS, FilterIndex, SalmonError


def subject_of(model: nn.Module, options: Options, folder: Path) -> Subject:
    """A network with its filters: the attention heads of ViT, the convolutions of others."""
    units = ("heads",) if isinstance(model, VisionTransformer) else ("conv",)
    exclude = () if options.shortcuts else SHORTCUTS
    index = FilterIndex.from_model(model, exclude=exclude, units=units)
    return Subject(model.eval(), index, options, folder)


def trained(
    folder: Path, classes: int, sets: tuple[Images, Images], optimizer: Callable[..., Optimizer],
    batch: int, epochs: int, options: Options,
) -> Subject:  # fmt: skip
    """A ResNet-18 from scratch, whose weights are kept."""
    torch.manual_seed(options.seed)
    model = resnet18(num_classes=classes).to(options.device)
    steps = optimizer(model.parameters(), lr=0.001)
    make = partial(train, model, sets, steps, batch, options.epochs or epochs, options)
    model.load_state_dict(cached(folder / "weights.safetensors", make))
    return subject_of(model, options, folder)


def on_digits(options: Options, folder: Path) -> tuple[Subject, Images]:
    """A network trained on the source, and source images that it was not trained on."""
    *sets, statistics = data.source_digits(options.source, options.data, options.seed)
    sgd = partial(SGD, momentum=0.9)
    return trained(folder, 10, (sets[0], sets[1]), sgd, 256, 10, options), statistics


def on_imagenet(options: Options) -> tuple[Subject, Images]:
    """A network trained on ImageNet, and its validation set."""
    images = data.image_folder(options.data / "val")
    classes = len(images.classes)
    model, images.transform = data.load_network(options.network, options.weights, classes)
    return subject_of(model.to(options.device), options, options.folder), images


def domain_shift(options: Options) -> None:
    """Figure 5 and table 1: tails of source images, mistakes on the target."""
    target = data.target_digits(options.target, options.data)
    studies = {}
    for seed in range(options.seed, options.seed + options.seeds):
        folder = options.folder / f"seed-{seed}"
        subject, statistics = on_digits(replace(options, seed=seed), folder)
        studies[f"seed {seed}"] = run_study(subject, statistics, target)
    name = f"{options.source}-to-{options.target}"
    pictures = {name: [[seed] for seed in studies]}
    write_results(f"ResNet-18, {name}", options, studies, pictures)


def imagenet(options: Options) -> None:
    """Figures 3, 4, 8, 9 and table 2: tails of and mistakes on the validation set."""
    subject, images = on_imagenet(options)
    study = run_study(subject, images, images)
    write_results(f"{options.network} on ImageNet", options, {options.network: study})


def corruptions(options: Options) -> None:
    """Figure 10: tails of clean images, mistakes on corrupted ones; a picture per corruption."""
    subject, images = on_imagenet(options)
    studies: dict[str, Study] = {}
    pictures = {}
    for name in options.corruptions:
        for severity in options.severities:
            case = f"{name} {severity}"
            if options.corrupted is None:
                target = data.Corrupted(images, name, severity, options.seed)
            else:
                folder = options.corrupted / name / str(severity)
                target = data.image_folder(folder, data.without_cut(images.transform), images)
            studies[case] = run_study(subject, images, target, case)
        pictures[name] = [[f"{name} {severity}" for severity in options.severities]]
    write_results(f"{options.network} on corrupted ImageNet", options, studies, pictures)


def pacs(options: Options) -> None:
    """Figure 11: trained on 80 % of three domains, tails of the others, mistakes on the fourth."""
    studies: dict[str, Study] = {}
    for split in options.splits:
        known, target, classes = data.pacs(options.data, split)
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(options.seed))
        cut = round(0.8 * len(known))
        sets = Subset(known, order[:cut].tolist()), Subset(known, order[cut:].tolist())
        subject = trained(options.folder / split, classes, sets, Adam, 64, 30, options)
        studies[split] = run_study(subject, sets[1], target)
    write_results("ResNet-18 on PACS", options, studies)


def normality(options: Options) -> None:
    """Section 4.1: is the saliency of a filter normal, as the z-score takes it to be?"""
    if options.experiment == "normality-imagenet":
        subject, images = on_imagenet(options)
        write_normality(subject, {"ImageNet": images})
    else:
        subject, statistics = on_digits(options, options.folder)
        target = data.target_digits(options.target, options.data)
        held_out = f"{options.source}-held-out"
        write_normality(subject, {held_out: statistics, options.target: target})


EXPERIMENTS = {
    "domain-shift": domain_shift, "imagenet": imagenet, "corruptions": corruptions, "pacs": pacs,
    "normality-digits": normality, "normality-imagenet": normality,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Run an experiment."""
    parser = ArgumentParser(prog="python -m examples.paper", description="One of the experiments.")
    parser.add_class_arguments(Options, as_positional=True)
    options = Options(**vars(parser.parse_args(arguments)))
    claim(options)
    EXPERIMENTS[options.experiment](options)


if __name__ == "__main__":
    try:
        main()
    except SalmonError as error:
        sys.exit(f"error: {error}")
