"""Views in real trainers: what a person finds, what a checkpoint remembers, what trouble costs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from salmon import InputError, SaliencyMonitor, ViewSettings
from salmon.cli import main
from salmon.diagnosis import Finding, Findings, most_blamed
from salmon.saliency import input_saliency, map_of_image
from salmon.views import gather
from salmon.views.files import StoredPicture, read_pass, read_pictures
from tests import ROOT
from tests.trainers import Module, digits, loader, trainer
from tests.views.test_board import Collector, events


def trained(folder: Path, monitor: SaliencyMonitor, **options: Any) -> Module:
    module = Module()
    options = {"logger": TensorBoardLogger(folder, name="", version="")} | options
    trainer(folder, monitor, **options).fit(module, loader(digits(64)), loader())
    return module


def test_a_training_leaves_all_views_behind(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.7, strict=True, views=ViewSettings(pictures=2))
    trained(tmp_path, monitor, max_epochs=2)
    found = events(tmp_path)
    tags = found.Tags()
    assert {"salmon/flagged", "salmon/shares"} <= set(tags["images"])
    assert len(found.Images("salmon/heatmap/pot")) == 2
    assert {
        "salmon/mistakes", "salmon/share/conv1_x", "salmon_details/share/difference/conv1_x",
        "salmon_details/doubtful",
    } <= set(tags["scalars"])  # fmt: skip
    records = [
        read_pass(tmp_path / "salmon_logs" / f"pass-validation-{n:06d}.json") for n in (0, 1)
    ]
    assert [record.number for record in records] == [0, 1]
    assert records[1].misclassified == monitor.results["validation"].misclassified
    assert 0 < records[1].seconds < 60


def test_the_pictures_are_those_of_the_highest_loss(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.7, strict=True, views=ViewSettings(pictures=3, thumbnails=5))
    trained(tmp_path, monitor)
    found = monitor.results["validation"]
    worst = found.mistakes.sample[found.mistakes.loss.argsort(descending=True)].tolist()
    stored = read_pictures(tmp_path / "salmon_logs" / "pictures-validation.jsonl")
    assert [p.sample for p in stored if p.kind == "flagged"] == worst[:3]
    assert [p.sample for p in stored if p.kind == "thumbnail"] == worst[:5]
    first = stored[0]
    row = found.mistakes.sample.tolist().index(worst[0])
    truth, taken = int(found.mistakes.target[row]), int(found.mistakes.predicted[row])
    assert first.classes == (f"class {truth}", f"class {taken}")
    best = int(found.rankings["pot"].filters[row, 0])
    assert first.filter == found.index.label(best)
    assert first.caption[1].startswith(f"{first.filter}, p ")
    assert first.heat is not None


def test_the_map_is_that_of_the_top_filters(tmp_path: Path, monkeypatch: Any) -> None:
    monitor = SaliencyMonitor(level=0.7, strict=True, views=ViewSettings(pictures=1))
    seen: list[Tensor] = []

    def watched(gradient: Tensor) -> Tensor:
        seen.append(gradient)
        return map_of_image(gradient)

    monkeypatch.setattr("salmon.monitor.images.map_of_image", watched)
    module = trained(tmp_path, monitor)
    found = monitor.results["validation"]
    row = int(found.mistakes.loss.argmax())
    sample = int(found.mistakes.sample[row])
    images, labels = digits().tensors
    expected = input_saliency(
        module.eval(), images[sample : sample + 1], labels[sample : sample + 1], found.index,
        found.fit, found.rankings["pot"].filters[row : row + 1, :10],
    )  # fmt: skip
    torch.testing.assert_close(seen[0], expected[0], rtol=1e-3, atol=1e-3 * float(expected.max()))


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")  # of ModelCheckpoint
def test_a_resumed_run_shows_the_passes_before_it(tmp_path: Path) -> None:
    def fit(folder: str, epochs: int, resume: Path | None = None) -> SaliencyMonitor:
        monitor = SaliencyMonitor(level=0.7, strict=True, views=ViewSettings(pictures=0))
        torch.manual_seed(3)
        module = Module()
        module.net.head[0] = nn.Dropout(0.0)  # random numbers do not resume
        keep = ModelCheckpoint(tmp_path / folder / "checkpoints", save_last=True)
        work = trainer(
            tmp_path / folder, monitor, keep, max_epochs=epochs, enable_checkpointing=True,
            logger=TensorBoardLogger(tmp_path / folder, name="", version=""),
        )  # fmt: skip
        work.fit(module, loader(digits(64)), loader(), ckpt_path=resume)
        return monitor

    whole = fit("whole", 3)
    fit("first", 2)
    second = fit("second", 3, tmp_path / "first" / "checkpoints" / "last.ckpt")
    one, other = (m.state_dict() for m in (whole, second))
    assert one["blamed"] == other["blamed"]
    for name, value in one["histories"]["validation"].items():
        assert str(value) == str(other["histories"]["validation"][name])
    (image,) = events(tmp_path / "second").Images("salmon/heatmap/pot")
    assert image.encoded_image_string == (
        events(tmp_path / "whole").Images("salmon/heatmap/pot")[-1].encoded_image_string
    )


def test_views_can_be_switched_off(tmp_path: Path) -> None:
    off = ViewSettings(pictures=0, thumbnails=0, figures=False)
    trained(tmp_path, SaliencyMonitor(level=0.7, strict=True, views=off))
    tags = events(tmp_path).Tags()
    assert tags["images"] == []
    assert "custom_scalars__config__" not in tags["tensors"]
    assert not (tmp_path / "salmon_logs" / "pictures-validation.jsonl").exists()


def test_pictures_without_maps_cost_no_backward(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("salmon.monitor.images.input_saliency", None)
    views = ViewSettings(pictures=1, maps=False)
    trained(tmp_path, SaliencyMonitor(level=0.7, strict=True, views=views))
    stored = read_pictures(tmp_path / "salmon_logs" / "pictures-validation.jsonl")
    assert stored[0].heat is None
    assert stored[0].caption


def with_findings(monkeypatch: Any) -> None:
    """Let the filters that most mistakes blame stand out."""

    def found(mistakes: Any, ranking: Any, *_: Any, **__: Any) -> Findings:
        nothing = torch.zeros(24, dtype=torch.float64)
        most = most_blamed(ranking, 3).filters.tolist()
        all_of_them = [Finding(filter=f, mistakes=9, expected=1.0, p=0.01) for f in most]
        return Findings(expected=nothing, p=nothing, found=tuple(all_of_them))

    monkeypatch.setattr("salmon.diagnosis.passes.find", found)


def responses(folder: Path) -> list[StoredPicture]:
    stored = read_pictures(folder / "salmon_logs" / "pictures-validation.jsonl")
    return [picture for picture in stored if picture.kind in ("mistake", "right")]


def test_findings_come_with_what_they_respond_to(tmp_path: Path, monkeypatch: Any) -> None:
    with_findings(monkeypatch)
    monitor = SaliencyMonitor(level=0.7, strict=True)
    trained(tmp_path, monitor)
    found = monitor.results["validation"]
    blamed = found.rankings["pot"].filters
    seen = responses(tmp_path)
    labels = [found.index.label(each.filter) for each in found.findings.found]
    assert {picture.filter for picture in seen} == set(labels)
    wrong = found.mistakes.sample.tolist()
    for picture in seen:
        assert picture.heat is not None
        assert (picture.sample in wrong) == (picture.kind == "mistake")
        if picture.kind == "mistake":
            row, number = wrong.index(picture.sample), labels.index(picture.filter)
            assert found.findings.found[number].filter in blamed[row].tolist()
    assert "salmon/responses" in events(tmp_path).Tags()["images"]


@pytest.mark.parametrize("maps", [False, True])
def test_responses_that_fail_or_are_not_wanted_cost_nothing_else(
    tmp_path: Path, monkeypatch: Any, log: pytest.LogCaptureFixture, *, maps: bool
) -> None:
    with_findings(monkeypatch)
    monkeypatch.setattr("salmon.monitor.images.filter_responses", refuse)
    trained(tmp_path, SaliencyMonitor(level=0.7, views=ViewSettings(maps=maps)))
    assert ("could not show what filters respond to (RuntimeError" in log.text) == maps
    stored = read_pictures(tmp_path / "salmon_logs" / "pictures-validation.jsonl")
    assert {picture.kind for picture in stored} == {"flagged", "thumbnail"}


def test_samples_that_are_not_finite_cost_the_responses_of_others_nothing(
    tmp_path: Path, monkeypatch: Any
) -> None:
    with_findings(monkeypatch)
    images, labels = digits().tensors
    images[:3] = torch.nan
    data = DataLoader(TensorDataset(images, labels), 8)
    work = trainer(tmp_path, SaliencyMonitor(level=0.7, strict=True))
    work.validate(Module(), data, verbose=False)
    assert responses(tmp_path)


def test_what_a_pass_was_made_of_is_told_without_secrets_and_costs_nothing_where_it_fails(
    tmp_path: Path, monkeypatch: Any, log: pytest.LogCaptureFixture
) -> None:
    words = ["python", "train.py", "--api-key=hush", "--wandb_token", "hush", "--lr", "0.1"]
    monkeypatch.setattr("sys.orig_argv", words)
    arrays: Any = {"class_names": np.array(list("abcd")), "mean": np.full(3, 0.5)}
    views = ViewSettings(**arrays, std=arrays["mean"])
    trained(tmp_path, SaliencyMonitor(level=0.7, views=views, strict=True))
    record = read_pass(tmp_path / "salmon_logs" / "pass-validation-000000.json")
    assert record.origin["command"] == "python train.py --api-key=*** --wandb_token *** --lr 0.1"
    assert record.origin["data"] == "TensorDataset, 40 samples"
    assert record.origin["settings"].startswith("level=0.7, ")
    assert record.classes == list("abcd")
    monkeypatch.setattr("salmon.monitor.facts.versions", refuse)
    trained(tmp_path / "odd", SaliencyMonitor(level=0.7))
    assert "could not say what was measured (RuntimeError" in log.text
    assert not read_pass(tmp_path / "odd" / "salmon_logs" / "pass-validation-000000.json").origin


def refuse(*arguments: Any, **named: Any) -> Any:
    raise RuntimeError("derivative for aten::odd_backward is not implemented")


def test_a_network_without_maps_has_pictures_all_the_same(
    tmp_path: Path, monkeypatch: Any, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("salmon.monitor.images.input_saliency", refuse)
    trained(tmp_path, SaliencyMonitor(level=0.7, views=ViewSettings(pictures=3)), max_epochs=3)
    warnings = {r for r in log.records if "images without saliency maps" in r.getMessage()}
    assert len(warnings) == 1  # for three pictures in each of three passes
    stored = read_pictures(tmp_path / "salmon_logs" / "pictures-validation.jsonl")
    assert len([p for p in stored if p.kind == "flagged"]) == 3


def test_a_mistake_in_making_maps_is_raised_where_all_trouble_is(
    tmp_path: Path, monkeypatch: Any
) -> None:
    def broken(*arguments: Any, **named: Any) -> Any:
        raise KeyError("a mistake")

    monkeypatch.setattr("salmon.monitor.images.input_saliency", broken)
    views = ViewSettings(pictures=1)
    trained(tmp_path / "lenient", SaliencyMonitor(level=0.7, views=views))
    stored = read_pictures(tmp_path / "lenient" / "salmon_logs" / "pictures-validation.jsonl")
    assert stored[0].caption
    with pytest.raises(KeyError, match="a mistake"):
        trained(tmp_path / "strict", SaliencyMonitor(level=0.7, views=views, strict=True))


def test_a_map_of_the_zscores_filters_says_so(tmp_path: Path) -> None:
    # Fits whose thresholds no sample reaches: POT ranks nothing.
    first = SaliencyMonitor(level=0.7, strict=True)
    module = trained(tmp_path / "first", first)
    fit = replace(first.last_fit(module), threshold=first.last_fit(module).threshold + 1e6)
    judge = SaliencyMonitor(reference=fit, strict=True, views=ViewSettings(pictures=1))
    trainer(tmp_path / "second", judge).validate(module, loader(), verbose=False)
    stored = read_pictures(tmp_path / "second" / "salmon_logs" / "pictures-validation.jsonl")
    assert stored[0].heat is not None
    assert "no filter above its threshold" in stored[0].caption
    assert stored[0].caption[-1] == "last image: pixels that move the top filters by z-score"


def test_two_monitors_in_a_trainer_are_warned_of(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    pair = [SaliencyMonitor(level=0.7), SaliencyMonitor(level=0.8)]
    trainer(tmp_path, *pair).validate(Module(), loader(), verbose=False)
    warnings = {r for r in log.records if "has 2 SaliencyMonitors" in r.getMessage()}
    assert len(warnings) == 1  # not one each


def test_a_board_that_breaks_costs_the_views_only(
    tmp_path: Path, monkeypatch: Any, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("salmon.monitor.output.publish", refuse)
    monitor = SaliencyMonitor(level=0.7)
    trained(tmp_path, monitor, max_epochs=2)
    assert "SaliencyMonitor could not show its views (RuntimeError" in log.text
    assert monitor.results["validation"].samples == 40
    assert (tmp_path / "salmon_logs" / "pass-validation-000001.json").exists()
    with pytest.raises(RuntimeError, match="odd_backward"):
        trained(tmp_path / "strict", SaliencyMonitor(level=0.7, strict=True))


def test_inputs_that_are_no_images_have_all_other_views(tmp_path: Path) -> None:
    class Flat(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.net(x))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

    data = TensorDataset(torch.randn(60, 3, 8), torch.randint(3, (60,)))
    work = trainer(
        tmp_path, SaliencyMonitor(level=0.7, strict=True),
        logger=TensorBoardLogger(tmp_path, name="", version=""),
    )  # fmt: skip
    work.validate(Flat(), DataLoader(data, 10), verbose=False)
    tags = events(tmp_path).Tags()["images"]
    assert "salmon/shares" in tags
    assert not any("flagged" in tag for tag in tags)
    (section,) = gather(tmp_path)
    assert section.flags
    assert section.pictures == []


class Logger(Collector):
    """What a trainer asks of a logger, beside the methods for images and tables."""

    name = version = save_dir = log_dir = root_dir = None

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics = getattr(self, "metrics", {}) | metrics

    def __getattr__(self, name: str) -> Any:
        if name in ("after_save_checkpoint", "log_hyperparams", "log_graph", "save", "finalize"):
            return lambda *args, **kwargs: None
        raise AttributeError(name)


def test_a_logger_of_another_kind_gets_scalars_images_and_tables(tmp_path: Path) -> None:
    logger: Any = Logger()
    trained(tmp_path, SaliencyMonitor(level=0.7, strict=True), logger=logger)
    assert "salmon_details/share/difference/conv1_x" in logger.metrics
    assert {"salmon/shares", "salmon/flagged"} <= set(logger.images)
    assert "salmon/filters_table" in logger.tables


def test_the_command_line_of_lightning_can_set_views() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SaliencyMonitor, "monitor")
    parsed = parser.parse_args(["--monitor.views.pictures=2", "--monitor.views.maps=false"])
    views = parser.instantiate(parsed).monitor.settings.views
    assert (views.pictures, views.maps) == (2, False)
    with pytest.raises(InputError, match="pictures is -3"):
        ViewSettings(pictures=-3)


def test_a_diagnosis_has_a_report(
    tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    out = tmp_path / "diagnosis"
    names = ["--model", "tests.project_of_a_user:Net", "--data", "tests.project_of_a_user:loaders"]
    assert main(["diagnose", *names, "--ckpt_path", "none", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Classes that are confused most" in shown
    (section,) = gather(out)
    assert section.name == "test"
    assert section.record.given_fit
    summary = json.loads((out / "diagnosis.json").read_text())
    assert summary["misclassified"] == section.record.misclassified == section.flagged
    assert main(["report", str(out), "-o", str(tmp_path / "report.html")]) == 0


def test_a_rehearsal_shows_nothing(tmp_path: Path) -> None:
    trained(tmp_path, SaliencyMonitor(level=0.5, strict=True), fast_dev_run=True)
    assert not list(tmp_path.rglob("*tfevents*"))
    assert not (tmp_path / "salmon_logs").exists()
