"""Validations of more samples than are measured whole: mistakes, and some right samples."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from salmon import Diagnosis, SaliencyMonitor, ViewSettings
from salmon.monitor.trainers import is_last_batch
from tests.trainers import Module, digits, loader, trainer

SAMPLES = 240
FORWARDS: list[int] = []
"""Sizes of the batches that went through the network; what is on a module would be put back."""


class Sure(Module):
    """A network with large logits, as after a long training."""

    def forward(self, images: Tensor) -> Tensor:
        FORWARDS.append(len(images))
        logits: Tensor = 300 * super().forward(images)
        return logits


def data() -> Any:
    """Images of which a tenth has a wrong label."""
    torch.manual_seed(0)
    images = digits(SAMPLES).tensors[0]
    with torch.no_grad():
        labels = Sure().eval()(images).argmax(1)
    labels[::10] = (labels[::10] + 1) % 4
    return torch.utils.data.TensorDataset(images, labels)


def sure() -> Sure:
    torch.manual_seed(0)
    return Sure()


def monitor(**options: Any) -> SaliencyMonitor:
    chosen: dict[str, Any] = {"right_samples": 20, "max_mistakes": 100, "level": 0.8}
    return SaliencyMonitor(strict=True, **(chosen | options))


def validated(folder: Path, own: SaliencyMonitor, *callbacks: Any, **options: Any) -> Diagnosis:
    work = trainer(folder, *callbacks, own, **options)
    work.validate(sure(), loader(data()), verbose=False)
    return own.results["validation"]


def test_a_part_is_measured_and_all_are_counted(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    part, whole = monitor(), monitor(right_samples=None, max_mistakes=None)
    found, every = validated(tmp_path / "a", part), validated(tmp_path / "b", whole)
    assert found.samples == every.samples == every.measured == SAMPLES
    assert 20 < found.measured < 150
    assert torch.equal(found.class_mistakes, every.class_mistakes)
    assert found.mistakes.ids == every.mistakes.ids
    torch.testing.assert_close(found.profile, every.profile, rtol=1e-3, atol=1e-9)
    assert f"Measured were {found.measured}, which stand for all: every one would" in log.text
    assert f"Measured were {SAMPLES}" not in log.text


def test_the_step_s_own_outputs_tell_which_are_wrong(tmp_path: Path) -> None:
    samples = loader(data())
    FORWARDS.clear()
    own = monitor(views=ViewSettings(pictures=0))  # which run the network, too
    trainer(tmp_path, own).validate(sure(), samples, verbose=False)
    found = own.results["validation"]
    assert SAMPLES + found.measured <= sum(FORWARDS) <= SAMPLES + found.measured + 5


class Unseen(Sure):
    """Its step does not run the network."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass


def test_a_step_that_is_not_seen_to_run_the_network_costs_a_forward(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = monitor()
    trainer(tmp_path, own).validate(Unseen(), loader(data()), verbose=False)
    expected = validated(tmp_path / "seen", monitor())
    found = own.results["validation"]
    assert found.measured == expected.measured
    assert found.mistakes.ids == expected.mistakes.ids


class Averaged(Callback):
    """Gives the network its own weights back before the epoch is over, as an average of them."""

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.zero_()


def test_what_waits_is_measured_before_somebody_changes_the_weights(tmp_path: Path) -> None:
    plain = validated(tmp_path / "a", monitor())
    found = validated(tmp_path / "b", monitor(), Averaged())
    assert torch.equal(found.profile, plain.profile)
    assert torch.equal(found.fit.threshold, plain.fit.threshold)


class Stream(torch.utils.data.IterableDataset[Any]):
    """Samples without a length."""

    def __iter__(self) -> Any:
        return iter(data())


@pytest.mark.parametrize(("make", "first"), [(data, True), (Stream, False)])
def test_the_last_batch_is_known_in_a_training_too(
    tmp_path: Path, make: Any, *, first: bool
) -> None:
    last = []

    class Asks(Callback):
        def on_validation_batch_end(self, trainer: Any, *others: Any) -> None:
            _, _, _, number, loader = others
            last.append(is_last_batch(trainer, number, loader))

    work = trainer(tmp_path, Asks(), max_epochs=1, num_sanity_val_steps=0)
    work.fit(sure(), loader(digits(16)), [loader(make(), 60), loader(make(), 100)])
    assert last == [False] * 3 + [first] + [False] * 2 + [True]


def test_a_pass_knows_how_many_mistakes_the_one_before_had(tmp_path: Path) -> None:
    own = monitor(max_mistakes=6, every_n_validations=1)
    work, module = trainer(tmp_path, own), sure()
    work.validate(module, loader(data()), verbose=False)
    first = own.results["validation"]
    assert len(first.mistakes.ids) == first.misclassified == 24  # nobody knew how many to expect
    work.validate(module, loader(data()), verbose=False)
    second = own.results["validation"]
    assert second.misclassified == 24
    assert 1 <= len(second.mistakes.ids) < 18
    resumed = monitor(max_mistakes=6)
    resumed.load_state_dict(own.state_dict())
    again = validated(tmp_path / "c", resumed)
    assert again.mistakes.ids == second.mistakes.ids


class Tasks(Sure):
    """One network for each loader, chosen by the step."""

    task = 0

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) if self.task == 0 else -super().forward(images)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.task = dataloader_idx
        super().validation_step(batch, batch_idx, dataloader_idx)


def test_what_waits_of_a_loader_is_measured_before_the_next_one_begins(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = monitor()
    trainer(tmp_path, own).validate(Tasks(), [loader(data()), loader(data())], verbose=False)
    found = own.results["validation/loader0"]
    assert found.trusted
    assert found.mistakes.ids == validated(tmp_path / "alone", monitor()).mistakes.ids


class Longer(torch.utils.data.IterableDataset[Any]):
    """A stream that says it has more samples than come."""

    def __iter__(self) -> Any:
        return iter(data())

    def __len__(self) -> int:
        return SAMPLES + 20


class Logs(Sure):
    """Logs inside forward."""

    def forward(self, images: Tensor) -> Tensor:
        self.log("in_forward", float(len(images)))
        return super().forward(images)


@pytest.mark.filterwarnings("ignore:.*IterableDataset.*__len__")
def test_a_loader_that_ends_early_changes_no_metric_of_the_user(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = monitor()
    work = trainer(tmp_path, own)
    (metrics,) = work.validate(Logs(), loader(Longer(), 80), verbose=False)
    assert metrics["in_forward"] == 80
    assert own.results["validation"].measured < SAMPLES
