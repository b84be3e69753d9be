"""What measuring mistakes first changes, against measuring all, on the data of the demo.

Of the held-out images each comes three times, shifted by up to a pixel; if ``MNIST_TEST`` names
an ``.npz`` of MNIST's own test images, these are taken.
"""

import time
from typing import Any

import torch
import torchvision.models as zoo
from pytorch_lightning import seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader

from salmon import Diagnosis, Pass, PassSettings, Samples
from salmon.cli.demo import BATCH, TRAINING_IMAGES, DigitNet
from salmon.cli.digits import CLASSES, mnist_split
from salmon.diagnosis import Step
from salmon.ranking import Ranking
from tests.benchmarks.repairs import larger_set, subject

NETWORKS = ("densenet121", "regnet_x_400mf")
COPIES = 3


def rows() -> list[dict[str, Any]]:
    """The demo's network after its training, and two others."""
    model, _, held_out = subject(0)
    return [_row("resnet18", model, held_out), *(_row(name, *_trained(name)) for name in NETWORKS)]


def _trained(name: str) -> tuple[DigitNet, Samples]:
    """Another network, and the images held out from it."""
    seed_everything(0, verbose=False)
    train, held_out = mnist_split(TRAINING_IMAGES, 0)
    model = DigitNet()
    model.net = zoo.get_model(name, weights=None, num_classes=CLASSES)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(8):
        for images, labels in DataLoader(train, 64, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval(), Samples.collect(DataLoader(held_out, BATCH))


def _row(name: str, model: DigitNet, held_out: Samples) -> dict[str, Any]:
    samples = larger_set() or _shifted(held_out)
    every, seconds = _measured(model, samples, right_samples=None, max_mistakes=None)
    accuracy = 1 - every.misclassified / len(samples)  # as of the pass before
    part, less = _measured(model, samples, accuracy)
    half = samples.take(torch.arange(0, len(samples), 2))
    reference, _ = _measured(model, half, right_samples=None, max_mistakes=None)
    of_half, _ = _measured(model, samples, reference=reference)
    assert every.mistakes.ids == part.mistakes.ids == of_half.mistakes.ids
    found = {"samples": len(samples), "mistakes": f"{every.misclassified / len(samples):.1%}"}
    return {"network": name} | found | {
        "measured": f"{part.measured / len(samples):.1%}",
        "top-25 overlap with measuring all": _overlap(every, part),
        "of tails of half the samples": _overlap(every, of_half),
        "median change of log p": _change(every, part),
        "and of half": _change(every, of_half),
        "seconds": less,
        "of all": seconds,
    }  # fmt: skip


def _measured(
    model: DigitNet,
    samples: Samples,
    accuracy: float | None = None,
    reference: Diagnosis | None = None,
    **settings: Any,
) -> tuple[Diagnosis, float]:
    """A pass whose step was seen, and its seconds without the step's own forwards."""
    own = Pass(
        model, PassSettings(**settings), expected=len(samples), accuracy=accuracy,
        reference=None if reference is None else reference.fit,
    )  # fmt: skip
    seconds = 0.0
    for inputs, targets in samples.batches(BATCH):
        with torch.no_grad():
            step = Step([model(inputs)])
        start = time.perf_counter()
        own.update(inputs, targets, step=step)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    found = own.compute()
    return found, seconds + time.perf_counter() - start


def _overlap(one: Diagnosis, other: Diagnosis) -> float:
    """Share of the places of one that the other has, too."""
    a, b = (_named(each.rankings["pot"], len(each.index)) for each in (one, other))
    return float((a & b).sum() / a.sum())


def _named(ranking: Ranking, filters: int) -> Tensor:
    found = torch.zeros((len(ranking.filters), filters + 1), dtype=torch.bool)
    return found.scatter(1, ranking.filters % (filters + 1), True)[:, :filters]


def _change(one: Diagnosis, other: Diagnosis) -> float:
    """Median over places, whatever filter stands there."""
    gaps = one.rankings["pot"].log_p - other.rankings["pot"].log_p
    return float(gaps.abs().nanmedian())


def _shifted(samples: Samples) -> Samples:
    """Each image in some places."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.cat([samples.inputs] * COPIES)
    shifts = torch.randint(-1, 2, (len(inputs), 2), generator=random).tolist()
    moved = [image.roll(shift, (1, 2)) for image, shift in zip(inputs, shifts, strict=True)]
    return Samples(torch.stack(moved), samples.targets.repeat(COPIES), tuple(range(len(inputs))))
