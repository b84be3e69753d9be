"""Files go under the run they belong to, and nothing is put in anybody's way."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from salmon import RepairInTraining, RepairSettings, SaliencyMonitor
from salmon.monitor.output import LOGS
from salmon.views import gather
from tests.trainers import Module, digits, loader, trainer


def validated(folder: Path, logger: Any, **options: Any) -> SaliencyMonitor:
    monitor = SaliencyMonitor(level=0.7, **options)
    work = trainer(folder, monitor, logger=logger)
    work.validate(Module(), loader(), verbose=False)
    return monitor


def folders(place: Path) -> list[str]:
    """Of the monitor's files."""
    return sorted(str(p.parent.relative_to(place)) for p in place.rglob("pass-*.json"))


def test_python_still_finds_the_package_where_a_run_left_its_files(tmp_path: Path) -> None:
    for logger in (False, CSVLogger(tmp_path), TensorBoardLogger(tmp_path)):
        validated(tmp_path, logger)
    assert not list(tmp_path.rglob("salmon"))
    done = subprocess.run(
        [sys.executable, "-c", "from salmon import SaliencyMonitor"], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(gather(tmp_path)) == 3


class Named(Logger):
    """Has a place, a name and a version; what it is told goes nowhere."""

    def __init__(self, save_dir: str | None, name: str | None, version: int | str | None) -> None:
        super().__init__()
        self._parts = (save_dir, name, version)

    @property
    def save_dir(self) -> str | None:
        return self._parts[0]

    @property
    def name(self) -> str | None:
        return self._parts[1]

    @property
    def version(self) -> int | str | None:
        return self._parts[2]

    def log_metrics(self, *args: Any, **options: Any) -> None: ...

    def log_hyperparams(self, *args: Any, **options: Any) -> None: ...


@pytest.mark.parametrize(
    ("save_dir", "name", "version", "expected"),
    [
        ("logs", "project", "run7", "logs/project/run7"),
        ("logs/", "project", 3, "logs/project/version_3"),
        (None, "project", "run7", "default/project/run7"),
        ("file://{}/logs", "project", "run7", "logs/project/run7"),
    ],
)
def test_files_are_under_the_loggers_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_dir: str | None, name: str,
    version: int | str, expected: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    place = save_dir and save_dir.format(tmp_path)
    validated(tmp_path / "default", Named(place, name, version))
    assert folders(tmp_path) == [f"{expected}/{LOGS}"]


def test_runs_that_a_logger_does_not_name_do_not_share_a_folder(tmp_path: Path) -> None:
    for _ in range(2):
        validated(tmp_path, Named(str(tmp_path), "project", None))
    assert len(set(folders(tmp_path))) == 2
    assert all(place.startswith("project/") for place in folders(tmp_path))


def test_an_address_that_is_no_folder_here_is_said_and_nothing_is_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monitor = SaliencyMonitor(level=0.7, strict=True)
    work = trainer(tmp_path, monitor, logger=Named("memory://bucket", "project", "run7"))
    for _ in range(2):
        work.validate(Module(), loader(), verbose=False)
    assert monitor.results["validation"].samples == 40
    assert list(tmp_path.iterdir()) == []
    told = {r.getMessage() for r in log.records if "writes no files" in r.getMessage()}
    assert len(told) == 1
    assert "memory://bucket/project/run7 is no folder of this machine" in told.pop()


def test_a_repair_without_checkpoints_is_written_under_the_run(tmp_path: Path) -> None:
    wanted = RepairInTraining(after="validation", settings=RepairSettings(min_split=10))
    monitor = SaliencyMonitor(level=0.7, strict=True, repair=wanted)
    work = trainer(tmp_path, monitor, logger=Named(str(tmp_path), "project", "run7"))
    work.validate(Module(), loader(digits(300)), verbose=False)
    assert monitor.outcome is not None
    assert (tmp_path / "project" / "run7" / "salmon-repair-000000" / "report.json").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:.*:UserWarning:wandb")
def test_weights_and_biases_keeps_its_layout_and_runs_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    from pytorch_lightning.loggers import WandbLogger

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    names = []
    for _ in range(2):
        logger = WandbLogger()
        validated(tmp_path, logger)
        names.append(f"lightning_logs/{logger.version}/{LOGS}")
        wandb.finish()
    assert folders(tmp_path) == sorted(names)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lightning_logs", "wandb"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_mlflow_still_reads_its_experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    from pytorch_lightning.loggers import MLFlowLogger

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    names = []
    for _ in range(2):
        logger = MLFlowLogger(tracking_uri=f"file:{tmp_path}/mlruns")
        validated(tmp_path, logger)
        names.append(f"mlruns/{logger.experiment_id}/{logger.run_id}/{LOGS}")
    assert folders(tmp_path) == sorted(names)
    client = mlflow.MlflowClient(tracking_uri=f"file:{tmp_path}/mlruns")
    experiments = {each.name: each.experiment_id for each in client.search_experiments()}
    assert "lightning_logs" in experiments
    assert len(client.search_runs([experiments["lightning_logs"]])) == 2


def test_metrics_of_a_run_without_files_are_those_of_one_with_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    written = validated(tmp_path / "a", False).results["validation"]
    torch.manual_seed(0)
    other = Named("memory://x", "project", "run")
    unwritten = validated(tmp_path / "b", other).results["validation"]
    assert torch.equal(written.fit.threshold, unwritten.fit.threshold)
