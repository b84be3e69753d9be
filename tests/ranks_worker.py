"""One process of several, started by torchrun: runs cases and saves what this rank holds.

``torchrun --nproc-per-node N -m tests.ranks_worker FOLDER``; alone, without torchrun, it gives what
one process finds.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from salmon import RepairInTraining, RepairSettings, SaliencyMonitor, ViewSettings
from salmon.diagnosis import Diagnosis, passes
from salmon.monitor.distributed import Processes
from salmon.tails import Tails, fit_tails
from tests.shifts import dataset
from tests.shifts import trained as trained_on_squares
from tests.trainers import Module, digits, loader

RANK, SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Strict(Module):
    """Without dropout, and with a metric that is the mean over ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.net.head[0] = nn.Dropout(0.0)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = self.unpack(batch)
        self.log("val_loss", nn.functional.cross_entropy(self(x), y), sync_dist=SIZE > 1)


def trainer(folder: Path, monitor: Any, **options: Any) -> Trainer:
    """Float64, so that the split of batches changes nothing that matters."""
    logger = TensorBoardLogger(folder, name="", version="")
    chosen: dict[str, Any] = {
        "accelerator": "cpu", "devices": SIZE, "strategy": "ddp" if SIZE > 1 else "auto",
        "precision": "64-true", "logger": logger, "max_epochs": 1,
        "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "default_root_dir": folder,
    }  # fmt: skip
    return Trainer(callbacks=[] if monitor is None else [monitor], **(chosen | options))


def network() -> Strict:
    torch.manual_seed(3)
    return Strict()


def plain(diagnosis: Diagnosis) -> dict[str, Any]:
    """What a diagnosis holds, as tensors and plain values."""
    found: dict[str, Any] = {
        name: getattr(diagnosis, name)
        for name in ("samples", "dropped", "unlabelled", "misclassified", "id_source")
    }
    found["profile"] = diagnosis.profile
    found["fit"] = diagnosis.fit.state_dict()
    found["mistakes"] = {n: getattr(diagnosis.mistakes, n) for n in diagnosis.mistakes.__slots__}
    for method, ranking in diagnosis.rankings.items():
        found[method] = {
            f.name: getattr(ranking, f.name) for f in fields(ranking) if f.name != "method"
        }
    found["excesses"] = dict(diagnosis.excesses)
    findings = diagnosis.findings
    found["findings"] = {
        "expected": findings.expected, "p": findings.p,
        "found": [asdict(each) for each in findings.found],
    }  # fmt: skip
    return found


def validated(folder: Path, data: Any, monitor: SaliencyMonitor, **options: Any) -> dict[str, Any]:
    """Validate and hand out what this rank knows."""
    work = trainer(folder, monitor, **options)
    work.validate(network(), data, verbose=False)
    return {
        "results": {scope: plain(each) for scope, each in monitor.results.items()},
        "metrics": {k: float(v) for k, v in work.callback_metrics.items() if "cost" not in k},
        "state": {k: v for k, v in monitor.state_dict().items() if k not in ("fits", "finished")},
    }


PLAIN = ViewSettings(pictures=0, thumbnails=0, figures=False)


def monitor(**options: Any) -> SaliencyMonitor:
    usual: dict[str, Any] = {"level": 0.7, "top_k": 5, "strict": True, "views": PLAIN}
    return SaliencyMonitor(**(usual | options))


def uneven(folder: Path) -> Any:
    """43 samples in batches of 8: padding, and a last batch of another size."""
    return validated(folder, loader(digits(43)), monitor(views=ViewSettings(pictures=3)))


def few(folder: Path) -> Any:
    """Fewer samples than ranks: some have repeats only."""
    return validated(folder, loader(digits(3)), monitor())


def loaders(folder: Path) -> Any:
    """Two loaders, each limited to two batches per rank, the second of other data."""
    data = [loader(digits(100), 4), loader(digits(61, seed=1), 16 // SIZE)]
    return validated(folder, data, monitor())


def chosen(folder: Path) -> Any:
    """A random choice of samples, and room for five profiles."""
    before, passes.BYTES_PER_MB = passes.BYTES_PER_MB, 8 * 24 * 5
    try:
        return validated(
            folder, loader(digits(43)), monitor(right_samples=4, max_mistakes=20, memory_mb=1)
        )
    finally:
        passes.BYTES_PER_MB = before


def worst(folder: Path) -> Any:
    """Errors, of which those of the whole pass tell at its end which are mistakes."""
    images, numbers = digits(43).tensors[0], torch.Generator().manual_seed(1)
    data = torch.utils.data.TensorDataset(images, torch.randn(43, 4, generator=numbers))
    return validated(folder, loader(data), monitor(task="regression"))


def spoilt(folder: Path) -> Any:
    """Samples without finite saliency, on one rank or another."""
    images, labels = digits(43).tensors
    images[[5, 6, 40]] = torch.nan
    data = torch.utils.data.TensorDataset(images, labels)
    return validated(folder, loader(data), monitor())


def given(folder: Path) -> Any:
    """Fits of other data."""
    first = monitor()
    work = trainer(folder / "first", first)
    work.validate(network(), loader(digits(60, seed=2)), verbose=False)
    fit = first.last_fit(network())
    return validated(folder, loader(digits(43)), monitor(reference=fit))


class Broken:
    """Fails on one rank, in its second batch."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.calls = 0

    def __call__(self, batch: Any) -> Any:
        self.calls += 1
        if self.rank == RANK and self.calls == 2:
            raise KeyError("a column is missing")
        return batch[0], batch[1]


def broken(folder: Path) -> Any:
    """One rank fails: no rank has results, and none waits for ever."""
    return validated(folder, loader(digits(43)), monitor(unpack=Broken(SIZE - 1), strict=False))


class Opaque:
    """A part of a batch that one rank cannot hand to the others."""

    def __reduce__(self) -> Any:
        if RANK == SIZE - 1:
            raise TypeError("cannot pickle an open file")
        return Opaque, ()


class Beside(Strict):
    """Takes images with something beside them."""

    def forward(self, x: Any, beside: Any = None) -> Tensor:
        return super().forward(x[0] if isinstance(x, tuple | list) else x)


def with_opaque(rows: Any) -> Any:
    """A batch with such a part."""
    images, labels = torch.utils.data.default_collate(rows)
    return (images, Opaque()), labels


def unpicklable(folder: Path) -> Any:
    """What the worst mistakes of one rank hold cannot be sent: the pass ends on all."""
    watched = monitor(strict=False, views=ViewSettings(pictures=30, maps=False))
    data = DataLoader(digits(43), 8, collate_fn=with_opaque)
    torch.manual_seed(3)
    work = trainer(folder, watched)
    work.validate(Beside(), data, verbose=False)
    return {"results": list(watched.results), "val_loss": float(work.callback_metrics["val_loss"])}


def broken_strict(folder: Path) -> Any:
    """One rank fails and is strict: all raise, the others with its message."""
    try:
        validated(folder, loader(digits(43)), monitor(unpack=Broken(SIZE - 1)))
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return "nothing"


def full_disk(folder: Path) -> Any:
    """The first rank cannot write."""
    if RANK == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "salmon_logs").write_text("a file where the folder should be")
    return validated(folder, loader(digits(43)), monitor(strict=False))


def trained(folder: Path, watched: SaliencyMonitor | None, **options: Any) -> Any:
    """Train; hand out the weights of this rank."""
    torch.manual_seed(3)
    module = Strict()
    work = trainer(folder, watched, max_epochs=2, **options)
    work.fit(module, loader(digits(64)), loader(digits(43)))
    return {name: value.clone() for name, value in module.state_dict().items()}


def no_trace(folder: Path) -> Any:
    """The same training with and without the monitor."""
    return [trained(folder / "without", None), trained(folder / "with", monitor())]


def shuffled(folder: Path) -> Any:
    """A sampler of the user's, shared out: positions, not indices, name the samples."""
    data = digits(43)
    drawn = DataLoader(
        data, 8, sampler=RandomSampler(data, generator=torch.Generator().manual_seed(1))
    )
    return validated(folder, drawn, monitor(strict=False))


class Squares(Strict):
    """The network of the repair tests, trained on unshifted squares."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained_on_squares()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.net(x))


def repaired(folder: Path) -> Any:
    """An accepted repair changes all replicas alike."""
    module = Squares()
    settings = RepairSettings(shares=(0.1,), remedies=("tune",), epochs=1)
    wanted = RepairInTraining(settings=settings, apply=True, after="validation")
    watched = monitor(level=0.9, repair=wanted)
    data = [
        DataLoader(dataset(400, 1, shifted=False), 64),
        DataLoader(dataset(400, 2, shifted=True), 64),
    ]
    trainer(folder, watched, precision="32-true").validate(module, data, verbose=False)
    outcome = watched.outcome
    assert outcome is not None
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    return {"status": outcome.status, "sizes": outcome.sizes, "weights": weights}


def exact(folder: Path) -> Any:
    """The same rows, however they are shared out: kept values of all filters, fits, moments."""
    rows = torch.randn(500, 37, generator=torch.Generator().manual_seed(5)).exp()
    rows[::50, 3] = torch.nan
    rows[:, 7] = 1.0  # ties everywhere
    return shared_out(rows)


def shared_out(rows: Tensor) -> Any:
    """Every size-th row for each process."""
    processes, tails = Processes(RANK, SIZE), Tails(rows.shape[1], 64)
    for part in rows[RANK::SIZE].split(19):
        tails.update(part)
    processes.reduce(tails, tails.merge)
    return processes.on_first(
        lambda: {"largest": tails.largest(), "fit": fit_tails(tails, 0.9).state_dict()}
    )


CASES: list[Callable[[Path], Any]] = [
    uneven, few, loaders, chosen, worst, spoilt, given, shuffled, broken, broken_strict, full_disk,
    no_trace, repaired, exact, unpicklable,
]  # fmt: skip


def main(folder: Path, names: list[str]) -> None:
    """Run the cases and save what came of them."""
    torch.set_num_threads(1)
    for case in CASES:
        if not names or case.__name__ in names:
            found = case(folder / case.__name__)
            torch.save(found, folder / f"{case.__name__}-{RANK}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
