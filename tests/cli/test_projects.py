"""The commands find what the user's own trainer with the monitor finds, whatever the project."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer, seed_everything

from salmon import SaliencyMonitor
from salmon.cli import main
from tests import ROOT
from tests.projects import Bytes, Data, Halved, LateNet, Net, Split, plain
from tests.shifts import dataset

TOP_K = 6

Built = tuple[LightningModule, LightningDataModule]


def trainer(folder: Path, **options: Any) -> Trainer:
    chosen: dict[str, Any] = {"logger": False, "enable_checkpointing": False} | options
    return Trainer(
        accelerator="cpu", devices=1, max_epochs=1, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, num_sanity_val_steps=0, **chosen,
    )  # fmt: skip


def late() -> LateNet:
    return LateNet(width=8)


def squares(**changes: Any) -> dict[str, Any]:
    model = {"class_path": "tests.projects.Net", "init_args": {"width": 8}}
    return {
        "seed_everything": 3, "ckpt_path": None, "trainer": {"max_epochs": 1},
        "model": model, "data": {"class_path": "tests.projects.Data"},
    } | changes  # fmt: skip


Row = tuple[Callable[[], LightningModule], Callable[[], Data], str, list[str], Any]
PROJECTS: dict[str, Row] = {
    # how the user builds it, the data that are looked at, options of the command, and the config
    "a config": (lambda: Net(8), Data, "test", [], squares()),
    "a config of a subcommand": (lambda: Net(8), Data, "test", [], {"fit": squares()}),
    "links and configure_model": (
        late, Data, "test", ["--cli", "tests.projects:LinkingCLI"],
        squares(model={"class_path": "tests.projects.LateNet"}),
    ),
    "a function that makes the command line": (
        late, Data, "test", ["--cli", "tests.projects:linking"],
        {"seed_everything": 3, "trainer": {"max_epochs": 1}, "data": {"samples": 120}},
    ),
    "save_hyperparameters": (
        lambda: Net(8, scale=0.5), Data, "test",
        ["--model", "tests.projects:Net", "--data", "tests.projects:Data"], None,
    ),
    "batch transfer hooks": (
        lambda: Halved(8), lambda: Bytes(400), "val", [],
        squares(
            model={"class_path": "tests.projects.Halved", "init_args": {"width": 8}},
            data={"class_path": "tests.projects.Bytes", "init_args": {"samples": 400}},
        ),
    ),
    "random_split in setup for fit": (
        lambda: Net(8), Split, "val", [], squares(data={"class_path": "tests.projects.Split"}),
    ),
}  # fmt: skip


def flags(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.rglob("flagged-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_hand(name: str, folder: Path) -> list[dict[str, Any]]:
    """What the user's own script finds: the same seed, objects and trainer, with the monitor."""
    make, data, stage, _, _ = PROJECTS[name]
    seed_everything(3, workers=True)
    found, module = data(), make()
    if isinstance(found, Split):  # which is only set up for a training
        found.setup("fit")
    work = trainer(folder, callbacks=[SaliencyMonitor(top_k=TOP_K)])
    run = work.test if stage == "test" else work.validate
    run(module, datamodule=found, ckpt_path=folder.parent / "last.ckpt", verbose=False)
    return flags(folder)


@pytest.fixture
def project(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with a config, and a checkpoint of a short training that knows its callbacks."""
    name: str = request.param
    make, data, _, _, config = PROJECTS[name]
    seed_everything(3, workers=True)
    found, module = data(), make()
    work = trainer(tmp_path)
    warnings.filterwarnings("ignore", "You have overridden .on_before_batch_transfer")
    work.fit(module, datamodule=found)
    work.save_checkpoint(tmp_path / "last.ckpt")
    if config is not None:
        (tmp_path / "config.yaml").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    return name


@pytest.mark.parametrize("project", PROJECTS, indirect=True)
def test_a_diagnosis_is_that_of_the_users_own_trainer_twice(project: str, tmp_path: Path) -> None:
    _, _, stage, options, config = PROJECTS[project]
    expected = by_hand(project, tmp_path / "by-hand")
    given = ["--config", "config.yaml"] if config is not None else ["--seed", "3"]
    for out in ("one", "two"):
        command = [
            "diagnose", *given, *options, "--ckpt-path", "last.ckpt", "--top-k", str(TOP_K),
            "--new", stage, "--reference", "none", "--quiet", "--out", out,
        ]  # fmt: skip
        assert main(command) == 0
        found = flags(tmp_path / out)
        assert [row.get("id") for row in found] == [row.get("id") for row in expected]
        assert len(found) > 10
        for row, other in zip(found, expected, strict=True):
            assert row.get("predicted") == other.get("predicted")
            for one, theirs in zip(row["top"], other["top"], strict=True):
                assert one["label"] == theirs["label"]
                if row["kind"] == "sample":
                    assert one["p"] == pytest.approx(theirs["p"], rel=1e-6)


@pytest.mark.parametrize("project", ["batch transfer hooks"], indirect=True)
def test_a_repair_takes_the_samples_that_the_step_feeds_the_network(
    project: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = by_hand(project, tmp_path / "by-hand")
    wrong = sum(row["kind"] == "sample" for row in expected)
    command = [
        "repair", "--config", "config.yaml", "--ckpt_path", "last.ckpt", "--new", "val",
        "--reference", "none", "--quiet", "--out", "out", "--repair.prefer", "step",
        "--repair.shares", "[0.1]", "--repair.min-split", "10",
    ]  # fmt: skip
    assert main(command) in (0, 1)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert 0 < report["mistakes_in_repair"] < wrong  # that split has four of ten samples
    assert sum(report["samples"]["new"].values()) == 400


@pytest.mark.parametrize("project", ["a config"], indirect=True)
def test_a_repair_twice_gives_the_same_bytes(project: str, tmp_path: Path) -> None:
    few, more = '"class_path": "tests.projects.Data"', '"init_args": {"samples": 400}'
    config = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace(few, f"{few}, {more}"))
    command = [
        "repair", "--config", "config.yaml", "--ckpt_path", "last.ckpt", "--quiet",
        "--repair.remedies", "[tune]", "--repair.shares", "[0.1]", "--repair.epochs", "1",
        "--repair.min_split", "10", "--out",
    ]  # fmt: skip
    codes = {main([*command, name]) for name in ("one", "two")}
    assert codes <= {0, 1}
    for path in sorted((tmp_path / "one").iterdir()):
        other = (tmp_path / "two" / path.name).read_bytes()
        assert path.read_bytes() == other.replace(b"--patch two/", b"--patch one/")


def names(project_of_loaders: str) -> list[str]:
    network = ["--model", "tests.project_of_a_user:Net", "--ckpt_path", "none"]
    return [*network, "--data", project_of_loaders, "--quiet"]


def test_a_forgotten_checkpoint_is_no_untrained_network(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", "tests.project_of_a_user:Net", "--data", "tests.project_of_a_user:loaders"]
    for command in (["diagnose"], ["repair"], ["compare", "--candidate", "x.ckpt"]):
        assert main([*command, *given]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "no --ckpt_path is given, so that Net would have the weights it is built" in line
        assert "--ckpt_path none where the project itself loads them" in line
    assert not list(here.glob("salmon-*"))


def test_loaders_are_named_as_in_the_mapping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    torch.manual_seed(0)
    given = names("tests.project_of_a_user:in_pieces")
    assert main(["diagnose", *given]) == 2
    message = capsys.readouterr().err
    assert "data gave the loaders ['night', 'val'], but not 'test'; name them with --new" in message
    assert main(["diagnose", *given, "--new", "night"]) == 0
    sample = next(row for row in flags(tmp_path / "salmon-diagnosis") if row["kind"] == "sample")
    assert sample["id_source"] == "position"
    # With given tails no reference is needed.
    assert main(["diagnose", *given, "--new", "night", "--reference", "none", "--force"]) == 0
    fit = next((tmp_path / "salmon-diagnosis").rglob("fit-*.safetensors"))
    again = [*given, "--new", "night", "--reference", "day", "--out", "again", "--fit", str(fit)]
    assert main(["diagnose", *again]) == 0


def test_what_a_project_does_not_have_is_told_in_a_line_before_any_pass(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passes: list[object] = []
    monkeypatch.setattr("salmon.cli.project._give_step", lambda *given: passes.append(given))
    for command in (["diagnose"], ["repair"], ["compare", "--candidate", "x.ckpt"]):
        given = names("tests.project_of_a_user:loaders")
        assert main([*command, *given, "--new", "train"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("salmon: data gave the loaders ['test', 'val'], but not 'train'")
    assert passes == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_told_in_a_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = names("tests.project_of_a_user:loaders")
    assert main(["diagnose", *given, "--device", "cuda"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("salmon: ")
    assert "cuda" in line.lower()


@pytest.mark.parametrize("word", ["--dry-run", "--dry_run"])
def test_hyphens_and_underscores_both_spell_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    assert main(["repair", *names("tests.project_of_a_user:loaders"), word]) == 0
    assert "400 new and 400 reference samples" in capsys.readouterr().out


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    return tmp_path


def test_a_plain_network_keeps_the_names_of_its_weights(here: Path) -> None:
    torch.manual_seed(1)
    network = plain().eval()
    torch.save(network.state_dict(), "state.pt")
    images, labels = dataset(400, 2, shifted=True).tensors
    wrong = (network(images).argmax(1) != labels).nonzero().squeeze(1).tolist()
    command = [
        "diagnose", "--model", "tests.projects:plain", "--data",
        "tests.project_of_a_user:loaders", "--ckpt_path", "state.pt", "--quiet", "--out", "out",
    ]  # fmt: skip
    assert main(command) == 0
    samples = [row for row in flags(here / "out") if row["kind"] == "sample"]
    assert [row["sample"] for row in samples] == wrong
    assert {top["label"].partition("[")[0] for row in samples for top in row["top"]} == {"0", "3"}
    assert json.loads((here / "out" / "diagnosis.json").read_text())["model"] == "Sequential"


def test_one_of_several_loaders_is_named_as_in_the_results(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section = {"class_path": "tests.projects.OtherNet"}
    data = {"class_path": "tests.projects.OtherData"}
    config = {"seed_everything": 1, "model": section, "data": data}
    (here / "config.yaml").write_text(json.dumps(config))
    given = ["--config", "config.yaml", "--ckpt_path", "none"]
    command = ["diagnose", *given, "--reference", "none", "--quiet"]
    assert main(command) == 2
    assert "name one of test/loader0, test/loader1." in capsys.readouterr().err
    assert not (here / "salmon-diagnosis").exists()
    assert main([*command, "--new", "test/loader1"]) == 0
    summary = json.loads((here / "salmon-diagnosis" / "diagnosis.json").read_text())
    assert summary["samples"] == 120


def test_the_monitor_of_a_config_says_how_to_measure(here: Path) -> None:
    monitor = {
        "class_path": "salmon.SaliencyMonitor", "init_args": {"top_k": 3, "include": ["net.0"]},
    }  # fmt: skip
    changed = squares(trainer={"callbacks": [monitor]})
    (here / "config.yaml").write_text(json.dumps(changed))
    given = ["--config", "config.yaml", "--ckpt_path", "none"]
    assert main(["diagnose", *given, "--quiet", "--out", "out"]) == 0
    assert json.loads((here / "out" / "diagnosis.json").read_text())["filters"] == 8
    assert {len(row["top"]) for row in flags(here / "out")} <= {0, 1, 2, 3}
