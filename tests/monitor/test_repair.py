"""Repairs that the monitor looks for by itself, in a real trainer."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from salmon import InputError, Patch, RepairInTraining, RepairSettings, SaliencyMonitor
from tests.other_tasks import Multilabelled
from tests.other_tasks import loaders as loaders_of_labels
from tests.project_of_a_user import Net
from tests.shifts import dataset, trained

FEW = RepairSettings(prefer="step", order="magnitude", shares=(1.0,))


def module() -> Net:
    made = Net()
    made.net.load_state_dict(trained().state_dict())
    return made


def loaders(*, shuffle: bool = False) -> list[DataLoader[Any]]:
    return [
        DataLoader(dataset(300, 1, shifted=False), 64),
        DataLoader(dataset(300, 2, shifted=True), 64, shuffle=shuffle),
    ]


def fit(folder: Path, *callbacks: Any, validation: Any = None, **options: Any) -> Net:
    torch.manual_seed(0)
    net = module()
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=1, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=list(callbacks), **options,
    )  # fmt: skip
    train = DataLoader(dataset(128, 0, shifted=False), 64, shuffle=True)
    trainer.fit(net, train, loaders() if validation is None else validation)
    return net


def weights(net: Net) -> list[torch.Tensor]:
    return [value.clone() for value in net.state_dict().values()]


@pytest.mark.parametrize("after", ["fit", "validation"])
def test_a_repair_is_looked_for_and_the_training_goes_on_unchanged(
    tmp_path: Path, log: pytest.LogCaptureFixture, after: str
) -> None:
    checkpoints = ModelCheckpoint(tmp_path / "checkpoints")
    monitor = SaliencyMonitor(repair=RepairInTraining(settings=FEW, after=after))
    with log.at_level(logging.INFO):
        net = fit(tmp_path / "with", monitor, checkpoints)
    plain = fit(tmp_path / "without")
    assert all(torch.equal(a, b) for a, b in zip(weights(net), weights(plain), strict=True))
    folder = tmp_path / "checkpoints" / "salmon-repair-000002"
    report = json.loads((folder / "report.json").read_text())
    assert monitor.outcome is not None
    assert monitor.outcome.status == report["status"] == "accepted"
    assert "looks for a repair at step 2" in log.text
    assert "repair at step 2: accepted" in log.text
    assert not report["new_data_serves_as_reference"]
    # The patch fits the network as it is now, and the checkpoint beside it.
    assert Patch.load(folder / "patch.safetensors").apply(net)
    (path,) = (tmp_path / "checkpoints").glob("*.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    assert Patch.load(folder / "patch.safetensors").apply(state)


def test_weights_change_only_when_asked_to(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    monitor = SaliencyMonitor(repair=RepairInTraining(settings=FEW, apply=True))
    net = fit(tmp_path / "with", monitor)
    plain = fit(tmp_path / "without")
    assert not all(torch.equal(a, b) for a, b in zip(weights(net), weights(plain), strict=True))
    assert monitor.outcome is not None
    assert monitor.outcome.patch is not None
    assert not monitor.outcome.patch.apply(net)  # it is on already
    assert "changed 4752 weights of the network in memory" in log.text


def test_a_repair_is_looked_for_in_a_validation_without_training(tmp_path: Path) -> None:
    # Trainer.validate runs in inference mode, whose tensors no graph may keep.
    monitor = SaliencyMonitor(
        strict=True, repair=RepairInTraining(settings=FEW, after="validation", apply=True)
    )
    net = module()
    before = weights(net)
    trainer = Trainer(
        accelerator="cpu", devices=1, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=[monitor], logger=False,
    )  # fmt: skip
    trainer.validate(net, loaders(), verbose=False)
    assert monitor.outcome is not None
    assert monitor.outcome.status == "accepted"
    assert not all(torch.equal(a, b) for a, b in zip(weights(net), before, strict=True))


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning")
def test_no_patch_of_an_earlier_look_at_the_same_step_stays(tmp_path: Path) -> None:
    for settings, accepted in ((FEW, True), (replace(FEW, alpha=1e-300), False)):
        monitor = SaliencyMonitor(repair=RepairInTraining(settings=settings))
        fit(tmp_path, monitor, ModelCheckpoint(tmp_path / "checkpoints"))
        folder = tmp_path / "checkpoints" / "salmon-repair-000002"
        assert (folder / "patch.safetensors").exists() == accepted


def test_one_loader_serves_as_both(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(repair=RepairInTraining(settings=FEW))
    fit(tmp_path, monitor, validation=loaders()[1])
    assert monitor.outcome is not None
    assert monitor.outcome.shared


@pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled:UserWarning")
def test_trouble_is_said_and_the_training_goes_on(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    shuffled = loaders(shuffle=True)
    monitor = SaliencyMonitor(repair=RepairInTraining(settings=FEW))
    fit(tmp_path / "a", monitor, validation=shuffled)
    assert monitor.outcome is None
    assert "could not look for a repair" in log.text
    assert "does not keep the order of its dataset" in log.text
    strict = SaliencyMonitor(repair=RepairInTraining(settings=FEW), strict=True)
    with pytest.raises(InputError, match="does not keep the order"):
        fit(tmp_path / "b", strict, validation=shuffled)
    with pytest.raises(InputError, match="'fit' or 'validation' is needed"):
        RepairInTraining(after="lunch")


def test_nothing_is_written_in_a_rehearsal(tmp_path: Path) -> None:
    small = replace(FEW, min_split=5, level=0.5)
    monitor = SaliencyMonitor(repair=RepairInTraining(settings=small), strict=True)
    fit(tmp_path, monitor, fast_dev_run=True)
    assert monitor.outcome is not None
    assert sum(monitor.outcome.sizes["new"].values()) == 64  # a batch, as everything is then
    assert not list(tmp_path.rglob("report.json"))


def test_validations_that_are_not_measured_are_not_looked_at(tmp_path: Path) -> None:
    wanted = RepairInTraining(settings=FEW, after="validation")
    monitor = SaliencyMonitor(repair=wanted, every_n_validations=2, strict=True)
    fit(tmp_path, monitor, val_check_interval=1)  # after each of two batches
    assert [path.parent.name for path in tmp_path.rglob("report.json")] == ["salmon-repair-000001"]


def test_a_repair_sees_what_the_hooks_make_of_a_batch(tmp_path: Path) -> None:
    class Inverted(Net):
        """Its data are stored as their negatives."""

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return -batch[0], batch[1]

    def negative(samples: int, seed: int, *, shifted: bool) -> DataLoader[Any]:
        images, labels = dataset(samples, seed, shifted=shifted).tensors
        return DataLoader(torch.utils.data.TensorDataset(-images, labels), 64)

    net = Inverted()
    net.net.load_state_dict(trained().state_dict())
    monitor = SaliencyMonitor(
        strict=True, repair=RepairInTraining(settings=FEW, after="validation")
    )
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[monitor],
    )  # fmt: skip
    data = [negative(300, 1, shifted=False), negative(300, 2, shifted=True)]
    trainer.validate(net, data, verbose=False)
    assert monitor.outcome is not None
    wrong = monitor.results["validation/loader1"].misclassified
    assert 0 < monitor.outcome.mistakes <= wrong
    assert monitor.outcome.status == "accepted"


def test_a_validation_that_broke_off_is_not_repaired_on_a_part_of_it(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    calls = iter(range(100))

    def unpack(batch: Any) -> Any:
        if next(calls) == 3:
            raise KeyError("a column is missing")
        return batch[0], batch[1]

    wanted = RepairInTraining(settings=FEW)
    monitor = SaliencyMonitor(repair=wanted, unpack=unpack)
    fit(tmp_path, monitor, num_sanity_val_steps=0)
    assert monitor.outcome is None
    assert "stopped measuring (KeyError" in log.text
    assert "no validation was measured whose samples it could look at" in log.text


def test_a_repair_follows_the_task(tmp_path: Path) -> None:
    repair = RepairInTraining(settings=FEW, after="validation")
    monitor = SaliencyMonitor(task="multilabel", strict=True, repair=repair)
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        default_root_dir=tmp_path, callbacks=[monitor],
    )  # fmt: skip
    trainer.validate(Multilabelled(), list(loaders_of_labels().values()), verbose=False)
    assert monitor.outcome is not None
    assert monitor.outcome.mistake == "a label on the wrong side of 0.5"
    assert monitor.outcome.status == "accepted"
