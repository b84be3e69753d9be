"""What other tools than TensorBoard store of a training, read back with the tools themselves."""

import csv
import gc
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from salmon import RepairInTraining, RepairSettings, SaliencyMonitor
from salmon.views import Board, PassRecord, gather
from tests.trainers import Module, digits, loader, trainer
from tests.views.test_board import events, text_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def fitted(folder: Path, logger: Any) -> tuple[PassRecord, EventAccumulator]:
    """Train for two epochs of five steps; the last record, and what TensorBoard got beside."""
    torch.manual_seed(0)
    wanted = RepairInTraining(settings=RepairSettings(min_split=10))
    monitor = SaliencyMonitor(level=0.7, strict=True, repair=wanted)
    loggers = [TensorBoardLogger(folder, name="", version=""), logger]
    work = trainer(folder, monitor, logger=loggers, max_epochs=2, num_sanity_val_steps=0)
    work.fit(Module(), loader(), loader(digits(300)))
    (section,) = gather(folder / "salmon_logs")
    assert section.record.step == 10
    assert section.record.findings
    return section.record, events(folder)


def sizes(seen: EventAccumulator) -> set[tuple[str, int, tuple[int, int]]]:
    """Tag, step, and width and height of the images in TensorBoard."""
    return {
        (tag, image.step, (image.width, image.height))
        for tag in seen.Tags()["images"]
        for image in seen.Images(tag)
    }


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A logger that stores in a folder."""
    pytest.importorskip("mlflow")
    from pytorch_lightning.loggers import MLFlowLogger

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return MLFlowLogger(tracking_uri=f"file:{tmp_path}/mlruns")


def mlflow_images(logger: Any) -> set[tuple[str, int, tuple[int, int]]]:
    found = set()
    for file in logger.experiment.list_artifacts(logger.run_id, "images"):
        if named := re.fullmatch(r"images/(.+)\+step\+(\d+)\+.+\.png", file.path):
            with Image.open(logger.experiment.download_artifacts(logger.run_id, file.path)) as png:
                found.add((named[1].replace("~", "/"), int(named[2]), png.size))
    return found


def mlflow_text(logger: Any, path: str) -> str:
    return Path(logger.experiment.download_artifacts(logger.run_id, path)).read_text()


def mlflow_table(logger: Any, path: str) -> Any:
    return logger.experiment.load_table(logger.experiment_id, path, run_ids=[logger.run_id])


def test_mlflow_gets_the_images_of_all_steps_and_the_last_texts_and_tables(
    tmp_path: Path, mlflow: Any
) -> None:
    record, seen = fitted(tmp_path, mlflow)
    assert mlflow_images(mlflow) == sizes(seen)
    for tag in ("salmon/0_overview", "salmon/coverage", "repair"):
        assert mlflow_text(mlflow, f"{tag}.md") == text_of(seen, tag)
    assert mlflow_text(mlflow, "salmon/report.html").startswith("<!DOCTYPE html>")
    table = mlflow_table(mlflow, "salmon/filters.json")
    assert list(table["step"]) == [10] * len(record.filters)
    assert list(table["filter"]) == [row.label for row in record.filters]
    assert list(table["mistakes"]) == [row.mistakes for row in record.filters]
    findings = mlflow_table(mlflow, "salmon/findings.json")
    assert list(findings["filter"]) == [row.label for row in record.findings]
    # Its pages show as tables what this tag names.
    tag = mlflow.experiment.get_run(mlflow.run_id).data.tags["mlflow.loggedArtifacts"]
    assert {each["path"] for each in json.loads(tag)} == {
        "salmon/filters.json", "salmon/findings.json", "salmon/confusions.json",
    }  # fmt: skip


def test_mlflow_gets_names_from_data_to_the_letter_and_tags_as_it_allows_them(mlflow: Any) -> None:
    board = Board(mlflow)
    for step in (1, 2):
        board.table("salmon/night: 1/pairs", ["true"], [["007"], ["<b>,\n"]], step)
    board.image("salmon/night: 1/shares", np.zeros((4, 6, 3), np.uint8), 2)
    stored = json.loads(mlflow_text(mlflow, "salmon/night 1/pairs.json"))
    assert stored == {"columns": ["step", "true"], "data": [[2, "007"], [2, "<b>,\n"]]}
    assert mlflow_images(mlflow) == {("salmon/night 1/shares", 2, (6, 4))}


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A logger that stores in a folder."""
    package = pytest.importorskip("wandb")
    from pytorch_lightning.loggers import WandbLogger

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield WandbLogger()
    package.finish()


@pytest.mark.filterwarnings("ignore:.*:UserWarning:wandb")
def test_weights_and_biases_gets_every_view_in_a_type_of_its_own(
    tmp_path: Path, wandb: Any
) -> None:
    record, seen = fitted(tmp_path, wandb)
    last, files = dict(wandb.experiment.summary), Path(wandb.experiment.dir)
    for tag in seen.Tags()["images"]:
        (image,) = seen.Images(tag)[-1:]
        assert last[tag]["_type"] == "images/separated"
        assert (last[tag]["width"], last[tag]["height"]) == (image.width, image.height)
        with Image.open(files / last[tag]["filenames"][0]) as png:
            assert png.size == (image.width, image.height)
    for method, counts in record.counts.items():
        histogram = last[f"salmon/depth/{method}"]
        assert histogram["_type"] == "histogram"
        assert (histogram["values"], histogram["bins"]) == (counts, list(range(len(counts) + 1)))
    assert len(list((files / "media" / "html" / "salmon").glob("0_overview_text_*"))) == 2
    for name, words in (
        ("salmon/0_overview", "<li><strong>Mistakes.</strong>"),
        ("salmon/coverage", "<table>"),
        ("repair", "<h1>Repair: "),
    ):
        text = last[f"{name}_text"]
        assert text["_type"] == "html-file"
        assert words in (files / text["path"]).read_text()
    table = json.loads((files / last["salmon/findings_table"]["path"]).read_text())
    assert [row[1] for row in table["data"]] == [row.label for row in record.findings]
    # The number of that name is there beside the table.
    assert last["salmon/findings"] == len(record.findings)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:wandb")
def test_weights_and_biases_gets_few_bins_of_a_network_of_many_layers(wandb: Any) -> None:
    counts = [*range(1025)]
    Board(wandb).histogram("salmon/depth/pot", range(1026), counts, 1)
    histogram = wandb.experiment.summary["salmon/depth/pot"]
    assert histogram["values"] == [sum(counts[i : i + 3]) for i in range(0, 1025, 3)]
    assert histogram["bins"] == [*range(0, 1025, 3), 1025]


@pytest.mark.filterwarnings("ignore:.*socket:pytest.PytestUnraisableExceptionWarning")
def test_comet_gets_every_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMET_START_ONLINE", "0")  # online=False would switch the logger off
    monkeypatch.setenv("COMET_DISABLE_AUTO_LOGGING", "1")  # as its logger sets it
    pytest.importorskip("comet_ml")
    from pytorch_lightning.loggers import CometLogger

    logger = CometLogger(api_key="none", offline_directory=str(tmp_path / "comet"))
    record, seen = fitted(tmp_path, logger)
    logger.experiment.end()
    del logger
    gc.collect()  # Comet leaves a socket open
    (path,) = (tmp_path / "comet").glob("*.zip")
    found: dict[str, dict[tuple[str, int], bytes]] = {}  # by type, then by name and step
    with zipfile.ZipFile(path) as stored:
        for line in stored.read("messages.json").splitlines():
            sent = json.loads(line)["payload"]
            if "upload_type" in sent:
                about = (sent["additional_params"] or {}) | (sent["metadata"] or {})
                name = about.get("figName") or about.get("tag") or about.get("fileName", "")
                content = stored.read(sent["file_path"])
                found.setdefault(sent["upload_type"], {})[name, about.get("step", 0)] = content
    images = {
        (tag, step, Image.open(io.BytesIO(png)).size)
        for (tag, step), png in found["visualization"].items()
    }
    assert images == sizes(seen)
    for tag in ("salmon/0_overview", "repair"):
        assert found["text-sample"][tag, 10].decode() == text_of(seen, tag)
    assert ("salmon/0_overview", 5) in found["text-sample"]
    table = list(csv.reader(found["asset"]["salmon/filters.csv", 10].decode().splitlines()))
    assert table[0][:2] == ["filter", "group"]
    assert [row[0] for row in table[1:]] == [row.label for row in record.filters]
    assert ("salmon/filters.csv", 5) in found["asset"]
    (report,) = [data for (name, _), data in found["asset"].items() if name.endswith(".html")]
    assert report.startswith(b"<!DOCTYPE html>")
    for method, counts in record.counts.items():
        histogram = json.loads(found["histogram3d"][f"salmon/depth/{method}", 10])
        assert sum(count for _, count in histogram["index_values"]) == sum(counts)
