"""What repairs gain and damage, on the network and data of ``salmon demo``, and on noise.

Seeds 0 to 4 each have their own training, splits and search. Gains and losses are points of
accuracy on the accept splits, by which nothing was chosen.
"""

import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Trainer, seed_everything
from torch.utils.data import DataLoader

from salmon import FilterIndex, RepairSettings, Samples, repair
from salmon.cli.demo import BATCH, SHARES, TRAINING_IMAGES, DigitNet
from salmon.cli.digits import as_network_input, mnist_split, optical_digits
from salmon.repairs import ACCEPTED, edited
from salmon.repairs.engine import Judged, Outcome
from salmon.repairs.evidence import Evidence, split_set
from salmon.repairs.predictions import predict
from salmon.repairs.remedies import tune
from salmon.repairs.search import Search
from salmon.repairs.trial import Guard
from tests.shifts import some, trained

SEEDS = range(5)
DRAWS = 5
SHARE = 0.01  # of the filters, in the comparison of orders
NOISE_SEEDS = 40
LARGER = "MNIST_TEST"
"""Environment variable with an ``.npz`` of images ``x`` [N, 28, 28] and labels ``y`` [N]."""


def subject(seed: int) -> tuple[DigitNet, Samples, Samples]:
    """The demo's network after its training, the optical digits, and the held-out images."""
    seed_everything(seed, verbose=False)
    train, held_out = mnist_split(TRAINING_IMAGES, seed)
    model = DigitNet()
    trainer = Trainer(
        max_epochs=10, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(train, BATCH, shuffle=True))
    new, reference = (
        Samples.collect(DataLoader(each, BATCH)) for each in (optical_digits(), held_out)
    )
    return model.eval(), new, reference


def rows() -> list[dict[str, Any]]:
    """Every remedy and order in a repair of each seed."""
    outcomes = []
    for seed in SEEDS:
        model, new, reference = subject(seed)
        settings = RepairSettings(seed=seed, shares=SHARES, rivals=True)
        outcomes.append(repair(model, new, reference, settings, batch_size=BATCH))
    return summary(outcomes)


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Mean and range over the seeds of what each remedy, and each order, did."""
    winners = [each.winner for each in outcomes if each.winner is not None]
    found: dict[str, list[Judged]] = {"the repair": winners}
    for outcome in outcomes:
        for prefix, judged in (("", outcome.remedies), ("at its size: ", outcome.orders)):
            for each in judged:
                order = each.trial.order.partition(":")
                name = "random" if order[0] == "random" else each.trial.order
                found.setdefault(f"{prefix}{each.trial.remedy}, {name}", []).append(each)
    return [
        {
            "": name,
            "of": len(judged),
            "filters": _band([each.trial.filters for each in judged], "{:.0f}"),
            "new, points": _band([100 * each.verdict.new.gain for each in judged]),
            "reference, points": _band([100 * each.verdict.reference.gain for each in judged]),
            "rules kept": sum(each.verdict.accepted for each in judged),
        }
        for name, judged in found.items()
        if judged
    ]


def _band(values: Sequence[float], form: str = "{:+.1f}") -> str:
    mean, low, high = (form.format(v) for v in (np.mean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def order_rows() -> list[dict[str, Any]]:
    """Filters by POT and at random, tuned alike, with the loss on a larger reference set if given.

    Five seeds, five draws of every random order.
    """
    names = ["pot", "spread:pot", "pot-ml"]
    names += [f"{kind}:{n}" for n in range(1, DRAWS + 1) for kind in ("random", "spread:random")]
    cells = []
    for seed in SEEDS:
        cells += order_cells(*subject(seed), seed, names)
    return order_summary(cells)


def order_cells(
    model: DigitNet, new: Samples, reference: Samples, seed: int, orders: Sequence[str]
) -> list[dict[str, Any]]:
    """What a tuning of the first filters of each order does, chosen on the guard splits."""
    settings = RepairSettings(seed=seed)
    sets = [
        split_set(model, samples, settings, what, BATCH)
        for what, samples in (("new", new), ("reference", reference))
    ]
    evidence = Evidence(
        model=model, index=FilterIndex.from_model(model), given_fit=None, new=sets[0]["repair"],
        reference=sets[1]["repair"], settings=settings, batch_size=BATCH, say=lambda *_: None,
    )  # fmt: skip
    guard = Guard(model, sets[0]["guard"], sets[1]["guard"], settings, BATCH)
    larger = larger_set()
    before = None if larger is None else predict(model, larger, BATCH)
    found = []
    for order in orders:
        search = Search(guard)
        search.run(tune(evidence, order, (SHARE,)), lambda: None)
        (best,) = search.best_by_remedy()
        with edited(model, best.edit):
            gains = []
            for parts in sets:
                was, now = parts["accept"].before_and_now(model, BATCH)
                gains.append(now.accuracy - was.accuracy)
            if larger is not None and before is not None:
                gains.append(predict(model, larger, BATCH).accuracy - before.accuracy)
        found.append({"seed": seed, "order": order, "gains": gains})
    return found


def order_summary(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean over seeds (and draws), and how random orders differ from POT, with 95 % intervals.

    Draws of a seed are averaged first, so that a seed counts once; the intervals are Student's.
    """
    by_order: dict[str, dict[int, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        name = str(cell["order"]).rstrip("0123456789").rstrip(":")
        by_order[name][cell["seed"]].append(cell["gains"])
    means = {
        name: {seed: np.mean(gains, axis=0) for seed, gains in seeds.items()}
        for name, seeds in by_order.items()
    }
    titles = ("new, points", "reference, points", "larger reference, points")
    table = []
    for name, seeds in means.items():
        row: dict[str, Any] = {
            "order": name,
            "of": sum(len(each) for each in by_order[name].values()),
        }
        values = 100 * np.stack([seeds[seed] for seed in sorted(seeds)])
        other = 100 * np.stack([means["pot"][seed] for seed in sorted(seeds)])
        for place, title in enumerate(titles[: values.shape[1]]):
            row[title] = f"{values[:, place].mean():+.2f}"
            if name != "pot":
                row[f"{title}, less than pot"] = _interval(other[:, place] - values[:, place])
        table.append(row)
    return table


def _interval(values: Any) -> str:
    from scipy import stats

    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():+.2f} ± {half:.2f}"


def larger_set() -> Samples | None:
    """MNIST's own test images, if their place is told."""
    place = os.environ.get(LARGER)
    if place is None:
        return None
    held = np.load(Path(place))
    images = torch.from_numpy(held["x"]).float().reshape(-1, 1, 28, 28) / 255
    labels = torch.from_numpy(held["y"]).long()
    return Samples(as_network_input(images), labels, tuple(range(len(labels))))


def noise_rows() -> list[dict[str, Any]]:
    """How often labels that say nothing are taken for a gain, at a level of 5 %."""
    table = []
    reference = some(300, 1, shifted=False)
    for prefer in ("targeted", "any"):
        accepted, began = 0, time.perf_counter()
        for seed in range(NOISE_SEEDS):
            images = some(200, 100 + seed, shifted=True)
            labels = torch.randint(4, (200,), generator=torch.Generator().manual_seed(seed))
            noise = Samples(images.inputs, labels, images.ids)
            settings = RepairSettings(seed=seed, prefer=prefer, shares=(0.05,), epochs=2)
            accepted += repair(trained(), noise, reference, settings).status == ACCEPTED
        seconds = (time.perf_counter() - began) / NOISE_SEEDS
        table.append(
            {"what may win": prefer, "seeds": NOISE_SEEDS, "accepted": accepted, "s each": seconds}
        )
    return table
