"""Training with and without the monitor is the same, bit for bit."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn

from salmon import SaliencyMonitor
from tests.traces import assert_identical, network_state, random_states
from tests.trainers import Module, digits, loader, trainer


class Restless(Module):
    """Draws random numbers in training and validation, and logs inside forward."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            noise = torch.rand(1) + random.random() + np.random.rand()  # noqa: NPY002
            x = x + 0 * noise
            self.log("inside_forward", x.mean())
        return super().forward(x)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx, dataloader_idx)
        self.log("dice", random.random() + np.random.rand() + float(torch.rand(1)))  # noqa: NPY002


class Witness(Callback):
    """Notes gradients and modes around each validation, where training gradients are live."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append(network_state(pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append(network_state(pl_module))


def run(folder: Path, monitors: list[SaliencyMonitor], **options: Any) -> list[Any]:
    """Train, validate and test; hand out all that could differ."""
    seed_everything(1, verbose=False)
    module, witness = Restless(), Witness()
    fit = trainer(
        folder, *monitors, witness,
        max_epochs=2, accumulate_grad_batches=3, val_check_interval=2, **options,
    )  # fmt: skip
    fit.fit(module, loader(digits(72), shuffle=True), loader())
    metrics = dict(fit.callback_metrics)
    again = trainer(folder, *monitors)
    again.validate(module, loader(), verbose=False)
    again.test(module, loader(), verbose=False)
    metrics |= {f"later {name}": value for name, value in again.callback_metrics.items()}
    return [
        network_state(module),
        witness.seen,
        fit.optimizers[0].state_dict(),
        {name: value for name, value in metrics.items() if "salmon" not in name},
        random_states(),
    ]


def test_fit_validate_and_test_are_bit_identical_with_the_monitor(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.7, strict=True)
    watched = run(tmp_path / "with", [monitor])
    alone = run(tmp_path / "without", [])
    assert monitor.results["validation"].samples == 40
    assert monitor.results["test"].samples == 40
    gradients = [g for seen in watched[1] for g in seen[2] if g is not None]
    assert any(bool(g.any()) for g in gradients)  # training gradients were live in validation
    assert "inside_forward" in watched[3]
    assert_identical(watched, alone)


def test_sampling_and_references_leave_no_trace_either(tmp_path: Path) -> None:
    first = SaliencyMonitor(level=0.7)
    module = Module()
    trainer(tmp_path, first).validate(module, loader(), verbose=False)
    monitors = [
        SaliencyMonitor(level=0.5, right_samples=5, max_mistakes=5, strict=True),
        SaliencyMonitor(reference=first.last_fit(Module()), every_n_validations=2, strict=True),
    ]
    # The reference names parameters net.features..., as every Module does.
    assert_identical(run(tmp_path / "a", monitors), run(tmp_path / "b", []))


def failing_loss(output: Any, targets: Tensor) -> Tensor:
    nn.functional.cross_entropy(output, targets)
    raise ZeroDivisionError("on purpose")


class HiddenInterrupt:
    """A loss in which Ctrl-C comes once, in a context manager that fails while it is left."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, output: Any, targets: Tensor) -> Tensor:
        if not self.came:
            self.came = True
            try:
                raise KeyboardInterrupt
            finally:
                raise RuntimeError("left while it was not entered")
        return nn.functional.cross_entropy(output, targets, reduction="none")


@pytest.mark.parametrize("strict", [False, True])
def test_ctrl_c_in_the_monitors_own_work_ends_the_training_whatever_becomes_of_it(
    tmp_path: Path, strict: bool
) -> None:
    monitor = SaliencyMonitor(loss=HiddenInterrupt(), level=0.7, strict=strict)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        trainer(tmp_path, monitor).validate(Restless(), loader(), verbose=False)


def test_ctrl_c_that_the_caller_deals_with_is_not_raised_again(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(loss=failing_loss)
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        trainer(tmp_path, monitor).validate(Restless(), loader(), verbose=False)
    assert "validation" not in monitor.results


def test_a_monitor_that_fails_leaves_no_trace(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(loss=failing_loss)
    assert_identical(run(tmp_path / "a", [monitor]), run(tmp_path / "b", []))
    assert monitor.results == {}


class Interrupting(Callback):
    """Stops a validation after one of its batches."""

    def __init__(self, error: type[BaseException], batch: int = 1) -> None:
        self.error = error
        self.batch = batch

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any,
        batch_idx: int, dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if batch_idx == self.batch and not trainer.sanity_checking:
            raise self.error("on purpose")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_in_mid_validation_nothing_is_left(
    tmp_path: Path, error: type[BaseException]
) -> None:
    states = []
    for monitors in ([SaliencyMonitor(level=0.7)], []):
        seed_everything(1, verbose=False)
        module = Restless()
        work = trainer(tmp_path, *monitors, Interrupting(error), accumulate_grad_batches=3)
        with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
            work.fit(module, loader(digits(72), shuffle=True), loader())
        states.append([network_state(module), work.optimizers[0].state_dict(), random_states()])
        # The same module and monitor go on as new.
        if monitors:
            trainer(tmp_path, *monitors).validate(module, loader(), verbose=False)
            assert monitors[0].results["validation"].samples == 40
    assert_identical(states[0], states[1])


def test_the_strict_monitor_raises_and_leaves_no_trace(tmp_path: Path) -> None:
    states = []
    for callback in (
        SaliencyMonitor(loss=failing_loss, strict=True),
        Interrupting(ZeroDivisionError, batch=0),
    ):
        seed_everything(1, verbose=False)
        module = Restless()
        with pytest.raises(ZeroDivisionError):
            trainer(tmp_path, callback).validate(module, loader(), verbose=False)
        states.append([network_state(module)[:6], random_states()])
    assert_identical(states[0], states[1])


class StaysInTraining(Module):
    """Keeps its dropout and BatchNorm in train mode during validation."""

    def on_validation_model_eval(self) -> None:
        self.train()


def test_a_module_validated_in_train_mode_is_measured_in_eval_mode_and_put_back(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    measured = {}
    make: Callable[[], Module]
    for name, make in {"train": StaysInTraining, "eval": Module}.items():
        seed_everything(1, verbose=False)
        module = make()
        setattr(module.net.features[1], "momentum", 0.0)  # noqa: B010 - validation in train mode would move it
        monitor = SaliencyMonitor(level=0.7)
        trainer(tmp_path, monitor).validate(module, loader(), verbose=False)
        found = monitor.results["validation"]
        assert found.trusted == (name == "eval")  # what is validated is another function
        measured[name] = found.fit.threshold
        if name == "train":
            assert all(m.training for m in module.modules())
    assert torch.equal(measured["train"], measured["eval"])
    assert "in train mode" in log.text
