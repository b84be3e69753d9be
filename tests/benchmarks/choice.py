"""What measuring mistakes first changes, against measuring all: on the network of the demo.

Of its held-out images each comes three times, shifted by up to a pixel; if ``MNIST_TEST`` names
an ``.npz`` of MNIST's own test images, these are taken.
"""

import time
from typing import Any

import torch
from torch import Tensor

from salmon import Diagnosis, Pass, PassSettings, Samples
from salmon.cli.demo import BATCH, DigitNet
from salmon.diagnosis import Step
from salmon.ranking import Ranking
from tests.benchmarks.repairs import larger_set, subject

EPOCHS = (3, 10)
COPIES = 3


def rows() -> list[dict[str, Any]]:
    """After some epochs of its training each."""
    return [_row(epochs) for epochs in EPOCHS]


def _row(epochs: int) -> dict[str, Any]:
    model, _, held_out = subject(0, epochs)
    samples = larger_set() or _shifted(held_out)
    every, seconds = _measured(model, samples, right_samples=None, max_mistakes=None)
    accuracy = 1 - every.misclassified / len(samples)  # as of the pass before
    part, less = _measured(model, samples, accuracy)
    half = samples.take(torch.arange(0, len(samples), 2))
    reference, _ = _measured(model, half, right_samples=None, max_mistakes=None)
    of_half, _ = _measured(model, samples, reference=reference)
    assert every.mistakes.ids == part.mistakes.ids == of_half.mistakes.ids
    found = {"samples": len(samples), "mistakes": f"{every.misclassified / len(samples):.1%}"}
    return {"epochs": epochs} | found | {
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
