"""Checkpoints: state loads safely, and a resumed run goes on as if it had not stopped."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning import seed_everything
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from salmon import InputError, SaliencyMonitor, StateError
from tests.trainers import Module, digits, loader, trainer


def fit(folder: Path, monitor: SaliencyMonitor, epochs: int, resume: Path | None = None) -> Module:
    """Train without shuffling, with a checkpoint at the end."""
    seed_everything(2, verbose=False)
    module = Module()
    module.net.head[0] = torch.nn.Dropout(0.0)  # random numbers do not resume
    work = trainer(
        folder, monitor, ModelCheckpoint(folder, save_last=True, filename="best"),
        max_epochs=epochs, enable_checkpointing=True,
    )  # fmt: skip
    work.fit(module, loader(digits(64)), loader(), ckpt_path=resume)
    return module


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")  # of ModelCheckpoint
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = SaliencyMonitor(level=0.7, every_n_validations=2, strict=True)
    fit(tmp_path / "whole", whole, 5)
    first = SaliencyMonitor(level=0.7, every_n_validations=2, strict=True)
    fit(tmp_path / "first", first, 2)
    second = SaliencyMonitor(level=0.7, every_n_validations=2, strict=True)
    fit(tmp_path / "second", second, 5, tmp_path / "first" / "last.ckpt")

    def files(folder: str) -> dict[str, str]:
        return {p.name: p.read_text() for p in (tmp_path / folder / "salmon").glob("*.jsonl")}

    # Passes 0, 2 and 4 are measured: the first one before the stop, the others after it.
    assert sorted(files("first") | files("second")) == sorted(files("whole"))
    assert files("first") | files("second") == files("whole")
    assert second.state_dict()["finished"] == whole.state_dict()["finished"] == {"validation": 5}
    for scope, state in whole.state_dict()["fits"].items():
        other = second.state_dict()["fits"][scope]["fit"]
        torch.testing.assert_close(other["xi"], state["fit"]["xi"], rtol=0, atol=0, equal_nan=True)


def test_checkpoints_load_without_unpickling_and_give_the_fits_back(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.7)
    module = fit(tmp_path, monitor, 1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    state = checkpoint["callbacks"][monitor.state_key]
    fresh = SaliencyMonitor(level=0.7)
    fresh.load_state_dict(state)
    torch.testing.assert_close(
        fresh.last_fit(module).xi, monitor.last_fit(module).xi, rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path.:UserWarning")
def test_validating_a_checkpoint_measures_its_weights(tmp_path: Path) -> None:
    fit(tmp_path, SaliencyMonitor(level=0.7), 1)
    monitor = SaliencyMonitor(level=0.7, strict=True)
    work = trainer(tmp_path, monitor)
    other = Module()
    other.net.head[0] = torch.nn.Dropout(0.0)
    work.validate(other, loader(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    trained = torch.load(tmp_path / "salmon" / "fit-validation.pt", weights_only=True)["fit"]
    torch.testing.assert_close(
        monitor.results["validation"].fit.threshold, trained["threshold"], rtol=1e-5, atol=0
    )


def test_state_of_another_version_or_network_is_refused() -> None:
    monitor = SaliencyMonitor()
    with pytest.raises(StateError, match="version 7 but 2 is needed"):
        monitor.load_state_dict({"version": 7})
    with pytest.raises(InputError, match="no pass 'validation' was measured"):
        monitor.last_fit(Module())


def test_fits_of_another_network_are_not_handed_out(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.7)
    trainer(tmp_path, monitor).validate(Module(), loader(), verbose=False)
    with pytest.raises(StateError, match="the fit of 'validation' was made for 24 filters"):
        monitor.last_fit(torch.nn.Conv2d(3, 3, 3))


def test_several_monitors_live_side_by_side(tmp_path: Path) -> None:
    monitors = [SaliencyMonitor(level=0.7), SaliencyMonitor(level=0.5)]
    seed_everything(2, verbose=False)
    work = trainer(tmp_path, *monitors, ModelCheckpoint(tmp_path), enable_checkpointing=True)
    work.fit(Module(), loader(), loader())
    assert [m.results["validation"].fit.level for m in monitors] == [0.7, 0.5]


def test_its_metrics_reach_early_stopping_and_checkpoints(tmp_path: Path) -> None:
    stop = EarlyStopping("salmon/misclassified", patience=1, min_delta=1000)
    keep = ModelCheckpoint(tmp_path, monitor="salmon/misclassified")
    work = trainer(
        tmp_path, SaliencyMonitor(level=0.7), stop, keep,
        max_epochs=5, enable_checkpointing=True,
    )  # fmt: skip
    work.fit(Module(), loader(), loader())
    assert work.current_epoch == 2
    assert keep.best_model_score is not None
    assert 0 < keep.best_model_score.item() <= 40
