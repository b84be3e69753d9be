"""The paper's experiments: ``python -m examples.paper EXPERIMENT``; see docs/experiments.md."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, Optimizer
from torch.utils.data import Subset
from torchvision.models import VisionTransformer, resnet18

from examples.paper import data
from examples.paper.data import Images
from examples.paper.normality import write_normality
from examples.paper.results import write_results
from examples.paper.study import Options, Subject, batches, cached, claim, run_study
from salmon import SHORTCUTS, FilterIndex, SalmonError


def subject_of(model: nn.Module, options: Options, folder: Path) -> Subject:
    """A network with its filters: the attention heads of ViT, the convolutions of others."""
    units = ("heads",) if isinstance(model, VisionTransformer) else ("conv",)
    exclude = () if options.shortcuts else SHORTCUTS
    model = model.to(options.device).eval()
    index = FilterIndex.from_model(model, exclude=exclude, units=units)
    return Subject(model, index, options, folder)


def trained(
    options: Options, folder: Path, classes: int, sets: Sequence[Images],
    optimizer: Callable[..., Optimizer], batch: int, epochs: int,
) -> Subject:  # fmt: skip
    """A ResNet-18 from scratch on the first set, best on the second; its weights are kept."""
    torch.manual_seed(options.seed)
    model = resnet18(num_classes=classes).to(options.device)

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model(x.to(options.device)), y.to(options.device))

    def train() -> dict[str, Tensor]:
        steps = optimizer(model.parameters(), lr=0.001)
        shuffle = torch.Generator().manual_seed(options.seed)
        best: dict[float, dict[str, Tensor]] = {}
        for _ in range(options.epochs or epochs):
            model.train()
            order = torch.randperm(len(sets[0]), generator=shuffle)
            for x, y in batches(sets[0], options, "training", order, batch):
                steps.zero_grad()
                loss_of(x, y).backward()
                steps.step()
            model.eval()
            held_out = batches(sets[1], options, "validation", size=batch)
            with torch.no_grad():
                loss = sum(float(loss_of(x, y)) * len(x) for x, y in held_out)
            if not best or loss < min(best):
                best = {loss: {n: v.cpu().clone() for n, v in model.state_dict().items()}}
        return best[min(best)]

    model.load_state_dict(cached(folder / "weights.safetensors", train))
    return subject_of(model, options, folder)


def on_digits(options: Options, folder: Path) -> tuple[Subject, Images]:
    """A network trained on the source, and source images that it was not trained on."""
    *sets, statistics = data.source_digits(options.source, options.data, options.seed)
    return trained(options, folder, 10, sets, partial(SGD, momentum=0.9), 256, 10), statistics


def on_imagenet(options: Options) -> tuple[Subject, Images]:
    """A network trained on ImageNet, and its validation set."""
    images = data.image_folder(options.data / "val")
    classes = len(images.classes)
    model, images.transform = data.load_network(options.network, options.weights, classes)
    return subject_of(model, options, options.folder), images


def domain_shift(options: Options) -> None:
    """Figure 5 and table 1: tails of source images, mistakes on the target."""
    target = data.target_digits(options.target, options.data)
    studies = []
    for seed in range(options.seed, options.seed + options.seeds):
        folder = options.folder / f"seed-{seed}"
        subject, statistics = on_digits(replace(options, seed=seed), folder)
        studies.append({f"seed {seed}": run_study(subject, statistics, target)})
    write_results(options, {f"{options.source}-to-{options.target}": studies})


def imagenet(options: Options) -> None:
    """Figures 3, 4, 8, 9 and table 2: tails of and mistakes on the validation set."""
    subject, images = on_imagenet(options)
    study, name = run_study(subject, images, images), options.network
    write_results(options, {name: [{name: study}]})


def corruptions(options: Options) -> None:
    """Figure 10: tails of clean images, mistakes on corrupted ones; a picture per corruption."""
    subject, images = on_imagenet(options)
    pictures = {}
    for name in data.CORRUPTIONS:
        studies = {}
        for severity in options.severities:
            target = data.Corrupted(images, name, severity, options.seed)
            if options.corrupted is not None:
                folder = options.corrupted / name / str(severity)
                target = data.image_folder(folder, data.without_cut(images.transform), images)
            case = f"{name} {severity}"
            studies[case] = run_study(subject, images, target, case)
        pictures[name] = [studies]
    write_results(options, pictures)


def pacs(options: Options) -> None:
    """Figure 11: trained on 80 % of three domains, tails of the others, mistakes on the fourth."""
    pictures = {}
    for split in data.LEFT_OUT:
        known, target = data.pacs(options.data, split)
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(options.seed))
        cut = round(0.8 * len(known))
        sets = [Subset(known, part.tolist()) for part in order.tensor_split([cut])]
        classes, folder = len(target.classes), options.folder / split
        subject = trained(options, folder, classes, sets, Adam, 64, 30)
        pictures[split] = [{split: run_study(subject, sets[1], target)}]
    write_results(options, pictures)


def normality(options: Options) -> None:
    """Section 4.1: is the saliency of a filter normal, as the z-score takes it to be?"""
    if options.experiment == "normality-imagenet":
        subject, images = on_imagenet(options)
        write_normality(subject, {"ImageNet": images})
    else:
        subject, statistics = on_digits(options, options.folder)
        target = data.target_digits(options.target, options.data)
        write_normality(subject, {f"{options.source}-held-out": statistics, options.target: target})


EXPERIMENTS = {
    "domain-shift": domain_shift, "imagenet": imagenet, "corruptions": corruptions, "pacs": pacs,
    "normality-digits": normality, "normality-imagenet": normality,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Run an experiment."""
    parser = ArgumentParser(prog="python -m examples.paper")
    parser.add_class_arguments(Options, as_positional=True)
    options = Options(**vars(parser.parse_args(arguments)))
    claim(options)
    EXPERIMENTS[options.experiment](options)
    print(f"Written: {options.folder / 'results.md'}, with what belongs to it beside it.")


if __name__ == "__main__":
    try:
        main()
    except SalmonError as error:
        sys.exit(f"error: {error}")
