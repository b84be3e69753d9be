"""One network on two sets of images: tails of the first, edits of the mistakes on the second.

What is found is kept on disk, so that a second start goes on from there.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset, default_collate
from tqdm import tqdm

import salmon
from examples.paper.curves import many_edit_curves, sample_effects
from examples.paper.data import Images
from examples.paper.options import Options
from salmon import filter_shares, load_fit, save_fit

LEVEL = 0.90
BATCH = 64
TOP = 25  # filters of a ranking
SHARED = {"pot", "pot_ml", "zscore", "magnitude"}  # whose shares of the groups are reported
METRICS = {
    "predicted": "wrong class, points",
    "target": "true class, points",
    "corrected": "corrected, %",
}

Values = NDArray[np.float64]

_FIELDS = ("filters", "score", "saliency", "log_p", "z", "ranked")
# Options that finished parts do not depend on.
_FREE = {"out", "device", "workers", "write", "seeds", "splits", "corruptions", "severities"}


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


@dataclass(frozen=True, eq=False)
class Study:
    """What was found."""

    facts: dict[str, int]
    shares: dict[str, dict[str, float]]  # of the groups, by ranking
    curves: Values  # [M, R, E, 3, S] of M images: rankings, edits, METRICS, counts from 0


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    part.replace(path)


def claim(options: Options) -> None:
    """Mark the folder of the results with the settings; refuse one with others."""
    settings = {name: value for name, value in asdict(options).items() if name not in _FREE}
    text = json.dumps(settings, indent=1, default=str)
    path = options.folder / "settings.json"
    if not path.exists() or set(options.folder.iterdir()) == {path}:  # nothing was found yet
        write_file(path, text.encode())
    found = json.loads(path.read_text())
    differ = [name for name, value in json.loads(text).items() if found.get(name) != value]
    if differ:
        raise salmon.InputError(
            f"{path} holds other settings ({', '.join(differ)}). Use the same, or another folder "
            "with --out."
        )


def cached(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of a file, which is made if it is missing."""
    if not path.exists():
        write_file(path, save({name: value.contiguous() for name, value in make().items()}))
    return dict(load_file(path))


def draw(rows: Tensor, most: int | None, seed: int) -> Tensor:
    """Some of the rows, drawn at random, in rising order; all if ``most`` is None."""
    if most is None or most >= len(rows):
        return rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:most]].sort().values


def batches(images: Images, rows: Tensor, options: Options, what: str, size: int = BATCH) -> Any:
    """Some images and their classes, batch by batch."""
    some = Subset(images, rows.tolist())
    loader = DataLoader(some, batch_size=size, num_workers=options.workers)
    return tqdm(loader, desc=what, disable=None, leave=False)


def train(
    model: nn.Module, sets: tuple[Images, Images], optimizer: torch.optim.Optimizer, batch: int,
    epochs: int, options: Options,
) -> dict[str, Tensor]:  # fmt: skip
    """Train on the first set; the state of the epoch with the lowest loss on the second."""

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model(x.to(options.device)), y.to(options.device))

    shuffle = torch.Generator().manual_seed(options.seed)
    best: dict[str, Tensor] = {}
    lowest = float("inf")
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(sets[0]), generator=shuffle)
        for x, y in batches(sets[0], order, options, f"training, epoch {epoch}", batch):
            optimizer.zero_grad()
            loss_of(x, y).backward()
            optimizer.step()
        model.eval()
        held_out = batches(sets[1], torch.arange(len(sets[1])), options, "validation", batch)
        with torch.no_grad():
            loss = sum(float(loss_of(x, y)) * len(x) for x, y in held_out)
        if not best or loss < lowest:
            best = {name: value.cpu().clone() for name, value in model.state_dict().items()}
            lowest = loss
    return best


def run_study(subject: Subject, statistics: Images, images: Images, part: str = "") -> Study:
    """Fit tails to the statistics set, find the mistakes on other images, rank and edit them.

    Several sets of images with the same statistics set are kept as parts of the folder.
    """
    options, index, folder = subject.options, subject.index, subject.folder / part
    fit_path = subject.folder / "fit.safetensors"
    if not fit_path.exists():
        save_fit(fit_path, _fit(subject, statistics), index)
    fit = load_fit(fit_path, index)
    wrong = cached(folder / "wrong.safetensors", partial(_wrong, subject, images))["rows"]
    if len(wrong) == 0:
        raise salmon.InputError(
            f"none of {len(images)} images is misclassified; nothing can be ranked."
        )
    rows = draw(wrong, options.limit, options.seed)
    # An image is left out of its own tails, where it is among those of all.
    own = statistics is images and (options.statistics or len(images)) >= len(images)
    parts = []
    for start in tqdm(range(0, len(rows), BATCH), desc="editing", disable=None, leave=False):
        chosen = rows[start : start + BATCH].tolist()
        make = partial(_edit, subject, fit, images, chosen, start, own=own)
        parts.append(cached(folder / "images" / f"{start:06}.safetensors", make))
    found = {name: torch.cat([each[name] for each in parts]) for name in parts[0]}
    facts = {"images": len(images), "misclassified": len(wrong), "of these edited": len(rows)}
    shares = {"all filters": filter_shares(index)}
    for name in [name for name in options.rankings if name in SHARED]:
        fields: dict[str, Any] = {field: found[f"{name}.{field}"] for field in _FIELDS}
        ranking = salmon.Ranking(method=name, **fields)
        shares[name] = salmon.group_shares(ranking, index)
        if name == "pot":
            facts[f"fewer than {TOP} ranked by POT"] = int((ranking.ranked < TOP).sum())
    facts["images for the tails"] = fit.samples
    return Study(facts, shares, found["curves"].numpy())


def _fit(subject: Subject, images: Images) -> salmon.TailFit:
    """Tails of a set, or of the images drawn from it."""
    options = subject.options
    rows = draw(torch.arange(len(images)), options.statistics, options.seed)
    # Enough of the largest values for the level, however many images there are.
    tails = salmon.Tails(len(subject.index), capacity=max(1024, len(rows) // 9))
    for x, y in batches(images, rows, options, "statistics"):
        tails.update(subject.saliency(x, y))
    return salmon.fit_tails(tails, LEVEL, index=subject.index)


@torch.no_grad()
def _wrong(subject: Subject, images: Images) -> dict[str, Tensor]:
    """Numbers of the misclassified images."""
    options, every = subject.options, torch.arange(len(images))
    loader = batches(images, every, options, "predicting")
    found = [subject.model(x.to(options.device)).argmax(1).cpu() != y for x, y in loader]
    return {"rows": torch.cat(found).nonzero().squeeze(1)}


def _edit(
    subject: Subject, fit: salmon.TailFit, images: Images, rows: list[int], start: int, *,
    own: bool,
) -> dict[str, Tensor]:  # fmt: skip
    """Rankings and curves of some mistakes, before which ``start`` others came."""
    index, options = subject.index, subject.options
    inputs, targets = default_collate([images[row] for row in rows])
    profile = subject.saliency(inputs, targets)
    seed = options.seed * 1_000_003 + start  # other shuffles: image i of a call has the seed's i-th
    ml = fit.as_ml()
    kinds = {"pot_ml": (ml, "pot"), "last_group": (fit, f"group:{index.groups[-1]}")}
    rankings: dict[str, salmon.Ranking] = {}
    for name in [name for name in options.rankings if name != "effect"]:
        of, method = kinds.get(name, (fit, name))
        rankings[name] = salmon.rank_filters(
            profile, of, method, top_k=TOP, index=index, seed=seed, own=own
        )
    found = {f"{n}.{field}": getattr(r, field) for n, r in rankings.items() for field in _FIELDS}
    shape = (len(rows), len(options.rankings), 0, len(METRICS), 1 + len(options.counts))
    parts = [torch.zeros(shape)]
    samples = salmon.Samples(inputs, targets, tuple(rows))
    effects: dict[str, Tensor] = {}
    if "effect" in options.rankings and options.edits:
        effects = sample_effects(subject.model, samples, index, options.edits)
    for step in options.steps:
        if effects:
            largest = salmon.rank_filters(effects[step.kind], ml, "magnitude", top_k=TOP)
            rankings["effect"] = largest
        curves = many_edit_curves(
            subject.model, samples, {name: rankings[name] for name in options.rankings}, index,
            (step,), counts=options.counts, batch_size=BATCH,
        )  # fmt: skip
        each = [
            torch.stack([curve.each_predicted, curve.each_target, curve.each_corrected.double()], 1)
            for curve in curves.values()
        ]
        parts.append(torch.stack(each, 1).unsqueeze(2))
    return {**found, "curves": torch.cat(parts, 2)}
