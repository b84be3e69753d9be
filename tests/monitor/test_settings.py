"""Arguments are checked when they are given, and the same in YAML as in Python."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning.cli import LightningCLI

from salmon import InputError, RepairSettings, SaliencyMonitor, ViewSettings, fit_tails
from salmon.tails import Tails
from salmon.tasks import Segmentation
from tests.trainers import Module, loader, trainer

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"repair": True}, "repair is True; RepairInTraining is needed"),
    ({"repair": {"after": "fit"}}, "RepairInTraining is needed"),
    ({"views": {"pictures": 1}}, "views is {'pictures': 1}; ViewSettings are needed"),
    ({"views": False}, "views is False; ViewSettings are needed"),
    ({"unpack": None}, "unpack is None; a function is needed, such as lambda batch"),
    ({"loss": "cross_entropy"}, "loss is 'cross_entropy'; a function or None is needed"),
    ({"sample_ids": "id"}, "sample_ids is 'id'; a function or None"),
    ({"groups": ["a"]}, "groups is ['a']; a function or None"),
    ({"reference": 3}, "reference is a int; fits as of monitor.last_fit(model)"),
    ({"strict": "yes"}, "strict is 'yes'; True or False is needed"),
    ({"write_files": None}, "write_files is None; True or False"),
    ({"seed": "1"}, "seed is '1'; a whole number is needed"),
    ({"level": 90}, "level is 90; a number in (0, 1) (90 % is 0.9) or 'auto' is needed"),
    ({"level": "best"}, "level is 'best'; a number in (0, 1)"),
    ({"estimator": "map"}, "estimator is 'map'; 'shrunk' or 'ml' is needed"),
    ({"calibrate": 1}, "calibrate is 1; True or False"),
    ({"units": ("convs",)}, "units is ('convs',); some of conv, heads, linear are needed"),
    ({"exclude": "conv1"}, "exclude is the string 'conv1'; a list of strings is needed"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_cannot_be_meant_is_refused_by_the_constructor(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        SaliencyMonitor(**options)


def test_a_missing_file_of_fits_is_told_before_the_training(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(reference=tmp_path / "fit.safetensors")
    with pytest.raises(InputError, match="which is no file"):
        trainer(tmp_path, monitor).fit(Module(), loader(), loader())


def test_patterns_that_fit_nothing_are_told_before_the_training(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    wrong = ["layer9.*"]
    run = trainer(tmp_path, SaliencyMonitor(include=wrong), limit_val_batches=0)
    run.fit(Module(), loader(), loader())
    assert "include=['layer9.*'] names no module of Module; there are net" in log.text
    run = trainer(tmp_path, SaliencyMonitor(include=wrong, strict=True))
    with pytest.raises(InputError, match="names no module"):
        run.fit(Module(), loader(), loader())
    right = SaliencyMonitor(include=["net.*"], level=0.7, strict=True)
    trainer(tmp_path, right).fit(Module(), loader(), loader())
    assert len(right.results["validation"].index) == 24


def test_a_training_without_a_validation_is_told(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    said = "SaliencyMonitor measured nothing: the training ended without a validation."
    trainer(tmp_path, SaliencyMonitor(level=0.7)).fit(Module(), loader(), loader())
    assert said not in log.text
    trainer(tmp_path, SaliencyMonitor(), limit_val_batches=0).fit(Module(), loader(), loader())
    assert said in log.text


def test_names_of_more_or_fewer_classes_are_told_once(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    views = ViewSettings(class_names=["cat", "dog", "cow"])
    monitor = SaliencyMonitor(level=0.7, views=views)
    trainer(tmp_path, monitor, max_epochs=2).fit(Module(), loader(), loader())
    said = "class_names has 3 names, but the network tells 4 classes apart"
    assert log.text.count(said) == log.text.count("validation pass 1:") > 0


def test_a_pass_that_was_not_measured_is_missing_with_a_reason() -> None:
    with pytest.raises(KeyError, match="no pass 'validation' was measured; there are \\[\\]"):
        SaliencyMonitor().results["validation"]
    assert SaliencyMonitor().results.get("validation") is None


def test_nothing_to_exclude_may_be_none(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.7, exclude=None, strict=True)
    trainer(tmp_path, monitor).validate(Module(), loader(), verbose=False)
    assert len(monitor.results["validation"].index) == 24


SHARES = ("margin", "class_margin", "max_broken_reference", "max_ece_increase")


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("value", [5, 1.01, -0.01, float("nan")])
def test_shares_of_a_repair_lie_between_0_and_1(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"{name} is .* a share in \[0, 1\] .*5 % is 0.05"):
        RepairSettings(**{name: value})


@pytest.mark.parametrize("name", ["level", "alpha", "reference_confidence"])
@pytest.mark.parametrize("value", [95, 1.0, -0.1, float("nan")])
def test_probabilities_of_a_repair_lie_below_1(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"{name} is .* \(\d+ % is 0\.\d+\)"):
        RepairSettings(**{name: value})


def test_a_level_in_percent_is_refused_by_the_fit() -> None:
    with pytest.raises(InputError, match=r"level is 90; .* \(90 % is 0.9\)"):
        fit_tails(Tails(1), level=90)


CONFIG: dict[str, Any] = {
    "model": {"class_path": "tests.trainers.Module", "init_args": {"classes": 4}},
    "trainer": {
        "max_epochs": 1, "logger": False, "enable_checkpointing": False, "accelerator": "cpu",
        "enable_progress_bar": False, "enable_model_summary": False,
        "callbacks": [{
            "class_path": "salmon.SaliencyMonitor",
            "init_args": {
                "level": 0.7,
                "task": {
                    "class_path": "salmon.tasks.Segmentation",
                    "init_args": {"metric": "accuracy", "bound": 0.8},
                },
                "loss": {
                    "class_path": "torch.nn.CrossEntropyLoss",
                    "init_args": {"label_smoothing": 0.1},
                },
                "views": {"pictures": 1, "maps": False},
                "repair": {"after": "fit", "settings": {"margin": 0.02, "shares": [0.01]}},
                "exclude": None,
            },
        }],
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_all_arguments_can_be_given_in_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    module = pytest.importorskip(f"{package}.cli")
    path = tmp_path / "config.yaml"
    config = CONFIG
    if package != "pytorch_lightning":  # whose modules are of the other package
        config = {"trainer": CONFIG["trainer"]}
        cli_class, base = module.LightningCLI, pytest.importorskip(package).LightningModule
    else:
        cli_class, base = LightningCLI, None
    path.write_text(yaml.safe_dump(config))
    arguments = ["--config", str(path), "--seed_everything", "1"]
    cli = cli_class(*([base] if base else []), run=False, args=arguments)
    monitor = next(c for c in cli.trainer.callbacks if isinstance(c, SaliencyMonitor))
    settings = monitor.settings
    assert settings.task == Segmentation("accuracy", bound=0.8)
    assert isinstance(settings.loss, torch.nn.CrossEntropyLoss)
    assert (settings.loss.reduction, settings.loss.label_smoothing) == ("none", 0.1)
    assert settings.views == ViewSettings(pictures=1, maps=False)
    assert monitor._repair is not None
    assert monitor._repair.settings == RepairSettings(margin=0.02, shares=(0.01,), prefer="step")
    assert settings.exclude == ()
