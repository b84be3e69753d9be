"""Bad data, broken disks and odd networks: a clear message, and the training goes on."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from salmon import FitStatus, InputError, SaliencyMonitor, UnsupportedError
from tests.trainers import Module, digits, loader, trainer


def validate(
    folder: Path, monitor: SaliencyMonitor, data: Any, module: Module | None = None
) -> Any:
    """Validate and hand out the metrics."""
    work = trainer(folder, monitor)
    work.validate(module or Module(), data, verbose=False)
    return work.callback_metrics


def spoilt(**rows: int) -> TensorDataset:
    """Images with some labels replaced."""
    images, labels = digits().tensors
    for name, label in rows.items():
        labels[int(name[1:])] = label
    return TensorDataset(images, labels)


def test_a_label_out_of_range_costs_its_own_sample_only(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    monitor = SaliencyMonitor(level=0.7)
    metrics = validate(tmp_path, monitor, loader(spoilt(n3=7, n11=-1)))
    found = monitor.results["validation"]
    assert (found.samples, found.dropped, found.unlabelled, found.fit.samples) == (38, 0, 2, 38)
    assert not {3, 11} & set(found.mistakes.sample.tolist())
    assert metrics["salmon_details/dropped"].item() == 0
    assert (
        "2 samples without a label that counts and is a class of the network (0 to 3)" in log.text
    )


def test_samples_with_nan_or_infinite_pixels_are_dropped_and_counted(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    images, labels = digits().tensors
    images[5, 0, 0, 0] = math.nan
    images[6, 1] = math.inf
    monitor = SaliencyMonitor(level=0.7)
    validate(tmp_path, monitor, loader(TensorDataset(images, labels)))
    found = monitor.results["validation"]
    assert (found.dropped, found.unlabelled, found.fit.dropped, found.fit.samples) == (2, 0, 2, 38)
    rows = [i for i, sample in enumerate(found.mistakes.sample.tolist()) if sample in (5, 6)]
    assert bool((found.rankings["pot"].filters[rows] == -1).all())
    assert "left out 2 samples without a finite saliency" in log.text


class Unlabelled(Module):
    """Validates batches without labels."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])


def test_batches_without_labels_are_left_out_with_a_message(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    images = TensorDataset(digits().tensors[0])
    monitor = SaliencyMonitor(level=0.7)
    validate(tmp_path, monitor, loader(images), Unlabelled())
    assert monitor.results == {}
    assert "left out batch 0: the batch is a list of Tensor" in log.text
    assert "Pass unpack=" in log.text
    assert "measured no sample in validation pass 0 (5 batches left out)" in log.text
    with pytest.raises(InputError, match="the batch is a list of Tensor"):
        validate(tmp_path, SaliencyMonitor(strict=True), loader(images), Unlabelled())


@pytest.mark.parametrize(
    ("unpack", "message"),
    [
        (lambda b: (b[0], b[1][:3]), "targets hold 3 samples but inputs hold"),
        (lambda b: (b[0], "labels"), "targets are str"),
        (lambda b: (b[0], torch.tensor(1)), "without a sample dimension"),
    ],
)
def test_batches_that_do_not_pair_are_left_out(
    tmp_path: Path, log: pytest.LogCaptureFixture, unpack: Any, message: str
) -> None:
    validate(tmp_path, SaliencyMonitor(unpack=unpack), loader())
    assert message in log.text


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"picture": torch.zeros(2), "z": torch.zeros(2)}, r"with the keys \['picture', 'z'\]"),
        (torch.zeros(3), "the batch is a Tensor"),
        ((torch.zeros(3), ["a"]), "a tuple of Tensor, list"),
    ],
)
def test_batches_of_another_form_are_refused_with_advice(batch: Any, message: str) -> None:
    from salmon.monitor.batches import unpack_batch

    with pytest.raises(InputError, match=message):
        unpack_batch(batch)


class Maps(Module):
    """Gives a map of logits per sample, as a segmentation network does."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.net.features(x))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])


def test_logits_of_another_shape_end_the_pass_with_a_message(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    metrics = validate(tmp_path, SaliencyMonitor(), loader(), Maps())
    assert "the network gives (8, 10, 2, 2) for targets (8,) of torch.int64" in log.text
    assert "goes on without it until the next pass" in log.text
    assert not any("salmon" in name for name in metrics)


class Linear(Module):
    """Has no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))  # type: ignore[assignment]


def test_networks_without_convolutions_are_trained_all_the_same(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    trainer(tmp_path, SaliencyMonitor()).fit(Linear(), loader(), loader())
    assert "stopped measuring (InputError: Linear has no layers" in log.text
    with pytest.raises(InputError, match="no layers"):
        trainer(tmp_path, SaliencyMonitor(strict=True)).fit(Linear(), loader(), loader())


class BatchStatistics(Module):
    """Normalises with the statistics of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net.features[1] = nn.BatchNorm2d(6, track_running_stats=False)


def test_networks_that_mix_their_samples_are_refused(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    validate(tmp_path, SaliencyMonitor(), loader(), BatchStatistics())
    assert "net.features.1 is a BatchNorm without running statistics" in log.text


def test_fewer_samples_than_a_fit_needs_have_a_status_and_no_ranking(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(strict=True)  # level 0.90 of 40 samples leaves 4 excesses
    metrics = validate(tmp_path, monitor, loader())
    found = monitor.results["validation"]
    assert found.fit.counts()[FitStatus.TOO_FEW] == 24
    assert metrics["salmon_details/fits/too_few"].item() == 24
    assert bool((found.rankings["pot"].filters == -1).all())
    assert "salmon_details/share/pot/conv1_x" not in metrics
    assert "salmon_details/share/zscore/conv1_x" in metrics


@pytest.mark.filterwarnings("ignore:Total length of .DataLoader. across ranks is zero:UserWarning")
def test_an_empty_validation_set_is_no_trouble(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    monitor = SaliencyMonitor(level=0.7)
    empty = DataLoader(TensorDataset(torch.empty(0, 3, 16, 16), torch.empty(0)), 8)
    work = trainer(tmp_path, monitor)
    work.fit(Module(), loader(), empty)
    assert monitor.results == {}
    monitor.on_validation_start(work, Module())
    monitor.on_validation_epoch_end(work, Module())
    assert "measured no sample" in log.text


def test_a_disk_that_cannot_be_written_costs_the_files_only(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "salmon_logs").write_text("a file where the folder should be")
    metrics = validate(tmp_path, SaliencyMonitor(level=0.7), loader())
    assert "validation pass 0, could not write flagged-validation-000000.jsonl, " in log.text
    assert metrics["salmon_details/samples"].item() == 40


def exploding(batch: Any) -> Any:
    raise KeyError("no such thing")


def test_trouble_in_a_users_function_is_a_warning_or_raised_when_strict(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    module = Module()
    trainer(tmp_path, SaliencyMonitor(unpack=exploding)).fit(module, loader(), loader())
    assert "stopped measuring (KeyError: 'no such thing')" in log.text
    assert "Traceback" in log.text
    with pytest.raises(KeyError):
        validate(tmp_path, SaliencyMonitor(unpack=exploding, strict=True), loader())


def test_several_processes_by_something_else_than_ddp_are_refused(tmp_path: Path) -> None:
    work = trainer(tmp_path)
    work.strategy.__class__ = type(
        "Two",
        (type(work.strategy),),
        {"world_size": property(lambda self: 2)},
    )
    with pytest.raises(UnsupportedError, match=r"runs 2 processes by Two, .*strategy='ddp'"):
        SaliencyMonitor().setup(work, Module(), "fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": 1.0}, "level is 1.0"),
        ({"level": 0}, "level is 0"),
        ({"level": "0.9"}, "level is '0.9'"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"right_samples": 0.5}, "right_samples is 0.5; a whole number"),
        ({"include": "*.conv1"}, r"include is the string '\*.conv1'; a list .* \['\*.conv1'\]"),
        ({"units": "conv"}, "units is the string"),
        ({"top_k": 0}, "top_k is 0; a whole number >= 1"),
        ({"max_exceedances": 1}, "max_exceedances is 1; a whole number >= 2"),
        ({"max_mistakes": 0}, "max_mistakes is 0"),
        ({"memory_mb": 0}, "memory_mb is 0"),
        ({"every_n_validations": 0}, "every_n_validations is 0"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SaliencyMonitor(**arguments)
