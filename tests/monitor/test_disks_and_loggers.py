"""Full and read-only disks, loggers that raise: the training goes on, and the log says what lacks.

What can be written is written all the same, and nothing of an earlier run is taken for it.
"""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import TensorDataset
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.writer import FileWriter

from salmon import (
    FilterIndex,
    RepairInTraining,
    RepairSettings,
    SaliencyMonitor,
    ViewSettings,
)
from salmon.tails import load_fit
from salmon.views import gather
from tests.trainers import Module, digits, loader, trainer
from tests.views.test_board import events


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a small disk in memory, given its mount options; only root may."""
    with ExitStack() as stack:

        def make(options: str) -> Path:
            folder = tmp_path / "disk"
            folder.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
            try:
                subprocess.run(command, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                pytest.skip("mounting a tmpfs is not allowed here")
            stack.callback(subprocess.run, ["umount", str(folder)], check=True)
            return folder

        yield make


def fit(folder: Path, monitor: SaliencyMonitor, **options: Any) -> dict[str, float]:
    """Train for two epochs; the metrics at the end."""
    work = trainer(folder, monitor, max_epochs=2, **options)
    work.fit(Module(), loader(), loader())
    assert work.global_step == 10  # it went on to its end
    return {name: float(value) for name, value in work.callback_metrics.items()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def test_a_full_disk_costs_only_the_files_that_do_not_fit(
    disk: Callable[[str], Path], log: pytest.LogCaptureFixture
) -> None:
    folder = disk("size=40k")
    views = ViewSettings(pictures=0, thumbnails=0)
    # By likelihood fits are small, and flags of all filters are large.
    monitor = SaliencyMonitor(level=0.7, estimator="ml", top_k=24, views=views)
    metrics = fit(folder, monitor)
    assert metrics["salmon_details/samples"] == 40
    assert "pass 1, could not write flagged-validation-000001.jsonl in" in log.text
    assert "No space left on device" in log.text
    assert names(folder / "salmon_logs") == {
        "fit-validation.safetensors", "pass-validation-000000.json", "pass-validation-000001.json",
    }  # fmt: skip
    (section,) = gather(folder)
    assert (section.record.number, section.flags) == (1, [])
    stored = load_fit(
        folder / "salmon_logs" / "fit-validation.safetensors", FilterIndex.from_model(Module())
    )
    assert torch.equal(stored.threshold, monitor.results["validation"].fit.threshold)


def test_a_disk_that_fills_up_leaves_no_old_flags_to_a_new_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path, SaliencyMonitor(level=0.7))
    before = (tmp_path / "salmon_logs" / "fit-validation.safetensors").read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    assert fit(tmp_path, SaliencyMonitor(level=0.7))["salmon_details/samples"] == 40
    every = (
        "flagged-validation-000001.jsonl, pictures-validation.jsonl, fit-validation.safetensors, "
        "pass-validation-000001.json"
    )
    assert f"could not write {every} in {tmp_path / 'salmon_logs'} ([Errno 28]" in log.text
    # Those of the last pass of which they could be written stay.
    assert names(tmp_path / "salmon_logs") == {
        "pictures-validation.jsonl",
        "fit-validation.safetensors",
    }
    assert (tmp_path / "salmon_logs" / "fit-validation.safetensors").read_bytes() == before


def test_a_read_only_disk_costs_the_files_only(
    disk: Callable[[str], Path], log: pytest.LogCaptureFixture
) -> None:
    folder = disk("ro,size=64k")
    metrics = fit(folder, SaliencyMonitor(level=0.7))
    assert metrics["salmon_details/samples"] == 40
    assert "pass 1, could not write flagged-validation-000001.jsonl, pictures-" in log.text
    assert "Read-only file system" in log.text
    assert names(folder) == set()


def test_a_pass_without_mistakes_leaves_no_flags_of_an_earlier_run(tmp_path: Path) -> None:
    module = Module()
    trainer(tmp_path, SaliencyMonitor(level=0.7)).validate(module, loader(), verbose=False)
    assert "flagged-validation-000000.jsonl" in names(tmp_path / "salmon_logs")
    images = digits().tensors[0]
    with torch.no_grad():
        right = TensorDataset(images, module.eval()(images).argmax(1))
    trainer(tmp_path, SaliencyMonitor(level=0.7)).validate(module, loader(right), verbose=False)
    assert names(tmp_path / "salmon_logs") == {
        "fit-validation.safetensors",
        "pass-validation-000000.json",
    }


def refuse(*given: Any, **named: Any) -> Any:
    raise ConnectionError("the server is away")


add_summary = FileWriter.add_summary


def refuse_images(self: FileWriter, summary: Any, *given: Any, **named: Any) -> None:
    """As of a writer that takes no images."""
    if any(value.HasField("image") for value in summary.value):
        refuse()
    add_summary(self, summary, *given, **named)


@pytest.mark.parametrize(
    ("owner", "method", "broken", "lost", "kept"),
    [
        (SummaryWriter, "add_text", refuse, "texts, tables and histograms", "images"),
        (SummaryWriter, "add_histogram_raw", refuse, "texts, tables and histograms", "images"),
        (FileWriter, "add_summary", refuse_images, "images", "histograms"),
    ],
)
def test_a_logger_that_raises_costs_only_what_it_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture,
    owner: Any, method: str, broken: Any, lost: str, kept: str,
) -> None:  # fmt: skip
    monitor = SaliencyMonitor(level=0.7)
    monkeypatch.setattr(owner, method, broken)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    metrics = fit(tmp_path, monitor, logger=logger)
    assert metrics["salmon_details/samples"] == 40
    assert f"could not show its {lost} in TensorBoardLogger (ConnectionError" in log.text
    assert events(tmp_path).Tags()[kept]
    found = names(tmp_path / "salmon_logs")
    assert {f"flagged-validation-{n:06d}.jsonl" for n in (0, 1)} <= found
    assert {f"pass-validation-{n:06d}.json" for n in (0, 1)} <= found
    assert set(monitor.results) == {"validation"}


def test_a_repair_is_there_although_a_logger_does_not_show_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    add_text = SummaryWriter.add_text

    def refuse_repairs(self: SummaryWriter, tag: str, *given: Any, **named: Any) -> None:
        if tag == "repair":
            refuse()
        add_text(self, tag, *given, **named)

    monkeypatch.setattr(SummaryWriter, "add_text", refuse_repairs)
    wanted = RepairInTraining(after="validation", settings=RepairSettings(min_split=10))
    monitor = SaliencyMonitor(level=0.7, repair=wanted)
    work = trainer(tmp_path, monitor, logger=TensorBoardLogger(tmp_path))
    work.validate(Module(), loader(digits(300)), verbose=False)
    assert monitor.outcome is not None
    assert "could not show the repair in TensorBoardLogger (ConnectionError" in log.text


class Away(TensorBoardLogger):
    """Goes away when the training begins, as a tracking server may."""

    away = False

    @property
    def experiment(self) -> Any:
        return refuse() if self.away else None

    def save(self) -> None:
        self.away = True

    def log_graph(self, *given: Any, **named: Any) -> None:
        pass

    log_metrics = log_hyperparams = finalize = log_graph


def test_one_logger_that_is_away_costs_the_other_nothing(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    loggers = [Away(tmp_path / "away"), TensorBoardLogger(tmp_path / "here", name="", version="")]
    fit(tmp_path, SaliencyMonitor(level=0.7), logger=loggers)
    assert "could not say in Away what it measures (ConnectionError" in log.text
    assert "could not show its images in Away" in log.text
    tags = events(tmp_path / "here").Tags()
    assert {"salmon/shares", "salmon/flagged"} <= set(tags["images"])
    assert {"salmon/coverage/text_summary", "salmon/filters/text_summary"} <= set(tags["tensors"])


class NoNumbers(CSVLogger):
    """Takes no metrics."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        refuse()


@pytest.mark.parametrize("monitored", [False, True])
def test_a_logger_that_takes_no_metrics_ends_a_training_with_the_monitor_as_without(
    tmp_path: Path, monitored: bool
) -> None:
    callbacks = [SaliencyMonitor(level=0.7)] if monitored else []
    logger = NoNumbers(tmp_path, name="", version="")
    work = trainer(tmp_path, *callbacks, logger=logger, max_epochs=2, num_sanity_val_steps=0)
    with pytest.raises(ConnectionError, match="the server is away"):
        work.fit(Module(), loader(), loader())
    # It is Lightning that hands it the metrics of all; the pass was written before that.
    assert ("pass-validation-000000.json" in names(tmp_path / "salmon_logs")) == monitored
