"""All kinds of trainers: in each the monitor does its job, and leaves no trace."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import seed_everything
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from salmon import FilterIndex, SaliencyMonitor, UnsupportedError, filter_saliency
from tests.monitor.test_monitor import DictModule, as_mappings, flagged
from tests.traces import assert_identical, network_state, random_states
from tests.trainers import Module, averaging, digits, loader, trainer


class Manual(Module):
    """Optimises by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


class TwoOptimizers(Manual):
    """Optimises features and head apart."""

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizers: Any = self.optimizers()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        for optimizer in optimizers:
            optimizer.step()
        optimizers[batch_idx % 2].zero_grad()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(part.parameters(), lr=0.05)
            for part in (self.net.features, self.net.head)
        ]


class FrozenBackbone(Module):
    """Trains its head only."""

    def __init__(self) -> None:
        super().__init__()
        self.net.features.requires_grad_(requires_grad=False)


class TwoLoaders(Module):
    """Validates on two loaders."""

    def val_dataloader(self) -> Any:
        return [loader(), loader(digits(24, seed=3))]


class Mute(Logger):
    """A user's logger without an experiment."""

    @property
    def name(self) -> str:
        return "mute"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


@dataclass(frozen=True)
class Kind:
    """One kind of trainer."""

    options: dict[str, Any] = field(default_factory=dict)
    module: Callable[[], Module] = Module
    callbacks: Callable[[], list[Callback]] = list
    samples: int = 40
    loaders: bool = True


KINDS = {
    "bf16-mixed": Kind({"precision": "bf16-mixed"}),
    "16-mixed": Kind({"precision": "16-mixed"}),
    "bf16-true": Kind({"precision": "bf16-true"}),
    "64-true": Kind({"precision": "64-true"}),
    "accumulation": Kind({"accumulate_grad_batches": 3}),
    "manual optimisation": Kind(module=Manual),
    "several optimisers": Kind(module=TwoOptimizers),
    "several loaders": Kind(module=TwoLoaders, loaders=False),
    "inside the epoch": Kind({"val_check_interval": 3}),
    "limited": Kind({"limit_val_batches": 3}, samples=24),
    "sanity check": Kind({"num_sanity_val_steps": 2}),
    "fast_dev_run": Kind({"fast_dev_run": 2}, samples=16),
    "overfit_batches": Kind({"overfit_batches": 2}, samples=16),
    "averaged weights": Kind(callbacks=lambda: [averaging(0.5)]),
    "frozen backbone": Kind(module=FrozenBackbone),
    "no inference mode": Kind({"inference_mode": False}),
    "csv logger": Kind({"logger": "csv"}),
    "several loggers": Kind({"logger": "several"}),
    "logger without experiment": Kind({"logger": "mute"}),
    "gradient clipping": Kind({"gradient_clip_val": 0.1}),
}


def logger_of(kind: Kind, folder: Path) -> dict[str, Any]:
    """Options with loggers in place of their names."""
    named: dict[str, Any] = {
        "csv": CSVLogger(folder),
        "several": [TensorBoardLogger(folder), CSVLogger(folder)],
        "mute": Mute(),
    }
    options = dict(kind.options)
    if "logger" in options:
        options["logger"] = named[options["logger"]]
    return options


def fit(folder: Path, kind: Kind, *monitors: SaliencyMonitor) -> tuple[Module, dict[str, Any]]:
    """Train for two epochs; hand out the module and the user's own metrics."""
    seed_everything(3, verbose=False)
    module = kind.module()
    options = {"max_epochs": 2} | logger_of(kind, folder)
    with warnings.catch_warnings():
        # Lightning on float16 without a GPU, and on shuffled data for overfitting.
        warnings.simplefilter("ignore", UserWarning)
        work = trainer(folder, *monitors, *kind.callbacks(), **options)
        work.fit(module, loader(digits(72), shuffle=True), loader() if kind.loaders else None)
    metrics = {k: v for k, v in work.callback_metrics.items() if "salmon" not in k}
    return module, metrics


@pytest.mark.parametrize("name", KINDS)
def test_the_monitor_does_its_job_in_every_kind_of_trainer(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    monitor = SaliencyMonitor(level=0.3, strict=True)
    module, _ = fit(tmp_path, kind, monitor)
    expected = {"validation": kind.samples}
    if not kind.loaders:
        expected = {"validation/loader0": 40, "validation/loader1": 24}
    assert {scope: d.samples for scope, d in monitor.results.items()} == expected
    for found in monitor.results.values():
        assert found.dropped == 0
        assert bool(found.fit.usable.any())
    if name in ("averaged weights", "overfit_batches"):
        return
    # The weights of the last validation are the final ones; compare with them in full precision.
    module = module.float().eval()
    index = FilterIndex.from_model(module)
    images, labels = (tensor[: kind.samples] for tensor in digits().tensors)
    mean = filter_saliency(module, images, labels, index).double().mean(0)
    found = next(iter(monitor.results.values()))
    tolerance = 0.3 if "16" in name else 1e-4
    difference = (found.fit.mean - mean).abs().max() / mean.max()
    assert difference < tolerance


@pytest.mark.parametrize("name", KINDS)
def test_the_monitor_leaves_no_trace_in_any_kind_of_trainer(tmp_path: Path, name: str) -> None:
    watched, metrics = fit(tmp_path / "a", KINDS[name], SaliencyMonitor(level=0.5, strict=True))
    states = [network_state(watched), metrics, random_states()]
    alone, metrics = fit(tmp_path / "b", KINDS[name])
    assert_identical(states, [network_state(alone), metrics, random_states()])


def test_averaged_weights_are_the_ones_measured(tmp_path: Path) -> None:
    class Keep(Callback):
        """Keeps the weights that validation uses."""

        mean = Tensor()

        def on_validation_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            images, labels = digits().tensors
            self.mean = filter_saliency(pl_module, images, labels).double().mean(0)

    keep, monitor = Keep(), SaliencyMonitor(level=0.5, strict=True)
    kind = Kind(callbacks=lambda: [averaging(0.9), keep])
    fit(tmp_path, kind, monitor)
    torch.testing.assert_close(
        monitor.results["validation"].fit.mean, keep.mean, rtol=1e-4, atol=1e-8
    )


def test_a_run_resumed_in_mid_epoch_counts_on_and_leaves_no_trace(tmp_path: Path) -> None:
    class Stop(Callback):
        """Ends the run after some steps."""

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 6:
                raise KeyboardInterrupt

    def run(folder: str, *callbacks: Any, resume: str | None = None) -> Module:
        seed_everything(4, verbose=False)
        module = Module()
        keep = ModelCheckpoint(
            tmp_path / folder, every_n_train_steps=5, save_top_k=-1, filename="{step}"
        )
        work = trainer(
            tmp_path / folder, *callbacks, keep,
            max_epochs=2, val_check_interval=4, enable_checkpointing=True,
        )  # fmt: skip
        path = None if resume is None else tmp_path / resume / "step=5.ckpt"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about folders of checkpoints
                work.fit(module, loader(digits(64)), loader(), ckpt_path=path)
        except (SystemExit, KeyboardInterrupt):
            assert folder.startswith("broken")
        return module

    monitors = [SaliencyMonitor(level=0.5, strict=True) for _ in range(3)]
    run("whole", monitors[0])
    run("broken with", monitors[1], Stop())
    run("broken without", Stop())
    assert monitors[1].state_dict()["finished"] == {"validation": 1}
    watched = run("resumed with", monitors[2], resume="broken with")
    alone = run("resumed without", resume="broken without")
    assert_identical(network_state(watched), network_state(alone))
    assert monitors[2].state_dict()["finished"] == monitors[0].state_dict()["finished"]
    assert monitors[2].results["validation"].samples == 40


class CLIModule(Module):
    """Brings its data along, for the command line."""

    def train_dataloader(self) -> Any:
        return loader(digits(16))

    def val_dataloader(self) -> Any:
        return loader(digits(24))


@pytest.fixture
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide pytest's own arguments from LightningCLI."""
    monkeypatch.setattr("sys.argv", ["main.py"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LightningCLI calls old jsonargparse
@pytest.mark.usefixtures("no_arguments")
@pytest.mark.parametrize("name", ["SaliencyMonitor", "salmon.SaliencyMonitor"])
def test_the_command_line_of_lightning_takes_it_with_typed_arguments(
    tmp_path: Path, name: str
) -> None:
    quiet = [
        "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.logger=false",
        "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
        "--trainer.enable_checkpointing=false", f"--trainer.default_root_dir={tmp_path}",
    ]  # fmt: skip
    cli = LightningCLI(
        CLIModule,
        args=[
            "fit", *quiet, f"--trainer.callbacks+={name}", "--trainer.callbacks.level=0.5",
            "--trainer.callbacks.exclude=['*.features.0']", "--trainer.callbacks.memory_mb=20",
        ],
        save_config_callback=None,
    )  # fmt: skip
    callbacks: Any = cli.trainer.callbacks  # type: ignore[attr-defined]
    monitor = next(c for c in callbacks if isinstance(c, SaliencyMonitor))
    assert monitor.settings.memory_mb == 20
    assert len(monitor.results["validation"].index) == 18


@pytest.mark.usefixtures("no_arguments")
def test_the_command_line_shows_help_for_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        LightningCLI(CLIModule, args=["fit", "--trainer.callbacks.help=salmon.SaliencyMonitor"])
    shown = capsys.readouterr().out
    assert "Quantile level of each filter's threshold" in shown
    assert "--trainer.callbacks.max_exceedances" in shown


@pytest.mark.parametrize("strategy", ["FSDPStrategy", "DeepSpeedStrategy"])
def test_sharded_parameters_are_refused_with_what_works(tmp_path: Path, strategy: str) -> None:
    work = trainer(tmp_path)
    work.strategy.__class__ = type(strategy, (type(work.strategy),), {})
    with pytest.raises(UnsupportedError, match=f"{strategy} shards.*strategy='auto', devices=1"):
        SaliencyMonitor().setup(work, Module(), "fit")


def ids(folder: Path, module: Module, data: Any, **arguments: Any) -> list[tuple[Any, Any]]:
    """Ids and sources of the flagged samples."""
    monitor = SaliencyMonitor(level=0.5, strict=True, **arguments)
    trainer(folder, monitor).validate(module, data, verbose=False)
    return [(r["id"], r["id_source"]) for r in flagged(folder) if r["kind"] == "sample"]


@pytest.mark.filterwarnings("ignore:Trying to infer the .batch_size.:UserWarning")
@pytest.mark.filterwarnings("ignore:Your .val_dataloader.'s sampler has shuffling enabled")
def test_samples_are_named_by_function_batch_sampler_or_position(tmp_path: Path) -> None:
    module = Module()
    by_sampler = ids(tmp_path / "1", module, loader())
    assert {source for _, source in by_sampler} == {"sampler"}
    positions = [number for number, _ in by_sampler]
    shuffled = DataLoader(digits(), 8, sampler=RandomSampler(digits()))
    assert {source for _, source in ids(tmp_path / "2", module, shuffled)} == {"position"}
    hidden = DataLoader(digits(), batch_sampler=BatchSampler(RandomSampler(digits()), 8, False))
    assert {source for _, source in ids(tmp_path / "8", module, hidden)} == {"position"}
    named = [row | {"id": f"image-{i}.png"} for i, row in enumerate(as_mappings())]
    other = DictModule()
    other.load_state_dict(module.state_dict())
    by_batch = ids(tmp_path / "3", other, DataLoader(named, 8))  # type: ignore[arg-type]
    assert by_batch == [(f"image-{n}.png", "batch") for n in positions]
    by_function = ids(
        tmp_path / "4", module, loader(), sample_ids=lambda batch: ["pi"] * len(batch[1])
    )
    assert set(by_function) == {("pi", "function")}
    for n, function in enumerate(
        [lambda b: np.arange(len(b[1])), lambda b: [Path("x")] * len(b[1])], start=6
    ):
        some = ids(tmp_path / str(n), module, loader(), sample_ids=function)
        assert {type(name) for name, _ in some} == {int if n == 6 else str}
    with pytest.raises(ValueError, match="sample_ids gave list for a batch of 8"):
        ids(tmp_path / "5", module, loader(), sample_ids=lambda batch: [1])
