"""The monitor in real trainers: what it finds, logs and writes."""

import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from salmon import (
    FilterIndex,
    FitStatus,
    SaliencyMonitor,
    Tails,
    filter_saliency,
    fit_tails,
    group_shares,
    rank_filters,
)
from salmon.diagnosis import passes
from salmon.tails import load_fit
from tests.trainers import Module, digits, loader, trainer


def trained(folder: Path, monitor: SaliencyMonitor, **options: Any) -> Module:
    module = Module()
    trainer(folder, monitor, **options).fit(module, loader(digits(64), shuffle=True), loader())
    return module


def test_when_mistakes_are_looked_for_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    late = SaliencyMonitor()
    trained(tmp_path / "late", late)
    monkeypatch.setattr(passes, "PENDING_MB", 0)
    torch.manual_seed(0)
    soon = SaliencyMonitor()
    trained(tmp_path / "soon", soon)
    one, other = late.results["validation"], soon.results["validation"]
    assert torch.equal(one.profile, other.profile)
    assert one.mistakes.ids == other.mistakes.ids
    for name, column in one.mistakes.columns().items():
        assert torch.equal(column, getattr(other.mistakes, name))


def flagged(folder: Path, name: str = "flagged-validation-000000.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "salmon_logs" / name).read_text().splitlines()]


def test_fits_and_rankings_equal_those_computed_offline(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.7, top_k=7)
    module = trained(tmp_path, monitor)
    module.eval()
    images, labels = digits().tensors
    index = FilterIndex.from_model(module)
    profile = filter_saliency(module, images, labels, index)
    tails = Tails(len(index))
    tails.update(profile)
    offline = fit_tails(tails, 0.7, index=index)
    found = monitor.results["validation"]
    for name in ("threshold", "rate", "xi", "sigma", "mean", "std"):
        torch.testing.assert_close(
            getattr(found.fit, name), getattr(offline, name), rtol=1e-4, atol=0, equal_nan=True
        )
    wrong = (module(images).argmax(1) != labels).nonzero().squeeze(1)
    assert found.mistakes.sample.tolist() == wrong.tolist()
    assert found.misclassified == len(wrong) > 0
    for method in ("pot", "zscore"):
        ranking = rank_filters(profile[wrong], offline, method, top_k=7, own=True)
        assert torch.equal(found.rankings[method].filters, ranking.filters)
    confidence = module(images).softmax(1)[wrong].double()
    torch.testing.assert_close(
        found.mistakes.details["confidence_target"].float(),
        confidence.gather(1, labels[wrong][:, None]).squeeze(1).float(),
    )


@pytest.mark.parametrize("entry", ["fit", "validate", "test"])
def test_every_entry_point_of_a_trainer_is_measured(tmp_path: Path, entry: str) -> None:
    monitor = SaliencyMonitor(level=0.7)
    work = trainer(tmp_path, monitor)
    module = Module()
    if entry == "fit":
        work.fit(module, loader(), loader())
    elif entry == "validate":
        work.validate(module, loader(), verbose=False)
    else:
        work.test(module, loader(), verbose=False)
    stage = "test" if entry == "test" else "validation"
    prefix = "salmon/test" if entry == "test" else "salmon"
    details = prefix.replace("salmon", "salmon_details")
    found = monitor.results[stage]
    assert found.samples == 40
    metrics = work.callback_metrics
    assert metrics[f"{details}/samples"].item() == 40
    assert metrics[f"{prefix}/mistakes"].item() == found.misclassified
    shares = group_shares(found.rankings["pot"], found.index)
    for group, share in shares.items():
        assert metrics[f"{details}/share/pot/{group}"].item() == pytest.approx(share)
    assert sum(metrics[f"{details}/fits/{status.label}"].item() for status in FitStatus) == len(
        found.index
    )
    assert metrics[f"{details}/cost/seconds"].item() > 0
    assert 0 < metrics[f"{prefix}/cost/share"].item() < 1
    rows = flagged(tmp_path, f"flagged-{stage}-000000.jsonl")
    assert {row["stage"] for row in rows} == {stage}
    assert (
        load_fit(tmp_path / "salmon_logs" / f"fit-{stage}.safetensors", found.index).samples == 40
    )


def test_lightning_and_pytorch_lightning_both_take_it(tmp_path: Path) -> None:
    class Other(lightning.pytorch.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Module()

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.inner(x))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    options: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "default_root_dir": tmp_path,
    }  # fmt: skip
    for bare in (False, True):
        monitor = SaliencyMonitor(level=0.7)
        options["callbacks"] = monitor if bare else [monitor]
        work = lightning.pytorch.Trainer(**options)
        work.fit(Other(), loader(), loader())
        assert monitor.results["validation"].samples == 40
        assert "salmon/mistakes" in work.callback_metrics


def test_flags_describe_every_mistake_and_its_batch(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.7, top_k=5)
    trained(tmp_path, monitor)
    found = monitor.results["validation"]
    rows = flagged(tmp_path)
    samples = [row for row in rows if row["kind"] == "sample"]
    batches = [row for row in rows if row["kind"] == "batch"]
    assert {row["schema"] for row in rows} == {"salmon.flagged/2"}
    assert [row["sample"] for row in samples] == found.mistakes.sample.tolist()
    assert [row["batch"] for row in samples] == [row["sample"] // 8 for row in samples]
    assert sorted({row["batch"] for row in samples}) == [row["batch"] for row in batches]
    assert [sample for row in batches for sample in row["samples"]] == [
        row["sample"] for row in samples
    ]
    for row in samples:
        assert row["target"] != row["predicted"]
        assert 0 <= row["confidence_target"] <= row["confidence_predicted"] <= 1
        assert len(row["top"]) <= 5
        probabilities = [top["p"] for top in row["top"]]
        assert probabilities == sorted(probabilities)
        assert 0 < row["sample_p"] <= 1
        striking = [top["strength"] for top in row["top"]].count("significant")
        assert row["significant_filters"] >= striking
        for top in row["top"]:
            assert top["p_low"] < top["p"] < top["p_high"]
            assert top["e"] == pytest.approx(found.rankings["pot"].tested * top["p"])
            assert top["strength"] in ("ordinary", "weak", "significant")
            assert (top["e"] > 1) <= (top["strength"] == "ordinary")
            assert top["extrapolated"] == (top["p"] < 0.1 / found.fit.samples)
            assert top["saliency"] > top["threshold"]
            assert top["label"] == found.index.label(top["filter"])


def test_tensorboard_gets_scalars_and_depth_histograms(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.7, top_k=5)
    log = TensorBoardLogger(tmp_path, name="run", version="")
    trained(tmp_path, monitor, logger=log, max_epochs=2)
    events = EventAccumulator(
        str(tmp_path / "run"), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0}
    ).Reload()
    assert len(events.Scalars("salmon_details/share/zscore/conv1_x")) == 2
    assert len(events.Scalars("salmon/mistakes")) == 2
    found = monitor.results["validation"]
    for method in ("pot", "zscore"):
        histogram = events.Histograms(f"salmon/depth/{method}")[-1].histogram_value
        assert list(histogram.bucket_limit) == [1.0, 2.0, 3.0]
        named = found.rankings[method].filters
        layers = found.index.layer_of[named[named >= 0]]
        assert list(histogram.bucket) == torch.bincount(layers, minlength=3).tolist()
    # Said once in two epochs, since nothing changed.
    (text,) = events.Tensors("salmon/coverage/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert shown.startswith("24 filters in 3 weights measured (3 fast); 6 parameters left out")
    assert "| net.features.4.weight | 8x6x3x3 | 8 | fast |" in shown
    assert (tmp_path / "run" / "salmon_logs" / "flagged-validation-000001.jsonl").exists()


def test_other_loggers_and_several_loggers_are_served(tmp_path: Path) -> None:
    for number, logger in enumerate(
        [
            CSVLogger(tmp_path / "csv"),
            [TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "c")],
        ]
    ):
        monitor = SaliencyMonitor(level=0.7, strict=True)
        trained(tmp_path / str(number), monitor, logger=logger)
    (metrics,) = (tmp_path / "csv").rglob("metrics.csv")
    assert "salmon/mistakes" in metrics.read_text().splitlines()[0]


def test_given_fits_rank_new_data(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.7)
    module = trained(tmp_path / "old", monitor)
    new = digits(30, seed=5)
    file = tmp_path / "old" / "salmon_logs" / "fit-validation.safetensors"
    diagnoses = []
    for reference in (monitor.last_fit(module), file, str(file)):
        judge = SaliencyMonitor(reference=reference, strict=True)
        trainer(tmp_path / "new", judge).validate(module, loader(new), verbose=False)
        diagnoses.append(judge.results["validation"])
    for found in diagnoses:
        torch.testing.assert_close(
            found.fit.xi, monitor.results["validation"].fit.xi, rtol=0, atol=0, equal_nan=True
        )
        assert torch.equal(found.rankings["pot"].filters, diagnoses[0].rankings["pot"].filters)
        assert found.samples == 30


def test_a_reference_of_another_network_is_refused(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.7)
    module = trained(tmp_path, monitor)
    judge = SaliencyMonitor(
        reference=monitor.last_fit(module), include=["net.features.0"], strict=True
    )
    with pytest.raises(ValueError, match="fits 24 filters but this network has 6"):
        trainer(tmp_path, judge).validate(module, loader(), verbose=False)


class DictModule(Module):
    """Takes batches as mappings."""

    def unpack(self, batch: Any) -> tuple[Tensor, Tensor]:
        return batch["image"], batch["label"]


def as_mappings(samples: int = 40) -> list[dict[str, Tensor]]:
    images, labels = digits(samples).tensors
    return [{"image": x, "label": y} for x, y in zip(images, labels, strict=True)]


def test_batches_as_mappings_and_through_a_function_are_taken(tmp_path: Path) -> None:
    usual = SaliencyMonitor(level=0.7)
    own = SaliencyMonitor(level=0.7, unpack=lambda batch: (batch["image"], batch["label"]))
    for monitor in (usual, own):
        work = trainer(tmp_path, monitor)
        work.validate(DictModule(), DataLoader(as_mappings(), 8), verbose=False)  # type: ignore[arg-type]
        assert monitor.results["validation"].samples == 40


def test_an_own_loss_is_used(tmp_path: Path) -> None:
    module = Module().eval()
    losses = {
        "twice": lambda out, y: 2 * nn.functional.cross_entropy(out, y, reduction="none"),
        "once": None,
    }
    thresholds = {}
    for name, loss in losses.items():
        monitor = SaliencyMonitor(level=0.7, loss=loss, strict=True)
        trainer(tmp_path, monitor).validate(module, loader(), verbose=False)
        thresholds[name] = monitor.results["validation"].fit.threshold
    torch.testing.assert_close(thresholds["twice"], 2 * thresholds["once"], rtol=1e-5, atol=0)


def test_several_loaders_have_a_stream_each(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.7, strict=True)
    work = trainer(tmp_path, monitor)
    work.validate(Module(), [loader(digits(40)), loader(digits(24, seed=1))], verbose=False)
    assert {scope: d.samples for scope, d in monitor.results.items()} == {
        "validation/loader0": 40, "validation/loader1": 24,
    }  # fmt: skip
    assert work.callback_metrics["salmon_details/loader1/samples"].item() == 24
    rows = flagged(tmp_path, "flagged-validation-loader1-000000.jsonl")
    assert {row["loader"] for row in rows} == {1}


def test_every_nth_validation_is_measured_and_the_sanity_check_never(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.7, every_n_validations=3)
    work = trainer(tmp_path, monitor, max_epochs=4, num_sanity_val_steps=2)
    work.fit(Module(), loader(), loader())
    names = sorted(p.name for p in (tmp_path / "salmon_logs").iterdir())
    assert names == [
        "fit-validation.safetensors",
        "flagged-validation-000000.jsonl",
        "flagged-validation-000003.jsonl",
        "pass-validation-000000.json", "pass-validation-000003.json", "pictures-validation.jsonl",
    ]  # fmt: skip


def test_validations_inside_an_epoch_are_counted_on(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.7)
    trained(tmp_path, monitor, val_check_interval=0.5)
    assert (tmp_path / "salmon_logs" / "flagged-validation-000001.jsonl").exists()


class Endless(IterableDataset[Any]):
    """A stream of samples without a length."""

    def __iter__(self) -> Any:
        images, labels = digits(40).tensors
        return iter(zip(images, labels, strict=True))


def test_a_stream_without_a_length_is_measured_whole(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.5, right_samples=5, max_mistakes=5, strict=True)
    trainer(tmp_path, monitor).validate(Module(), DataLoader(Endless(), 8), verbose=False)
    found = monitor.results["validation"]
    assert found.samples == found.measured == 40


def test_a_loader_without_labels_does_not_take_the_name_of_another(tmp_path: Path) -> None:
    class Mixed(Module):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[0])

    monitor = SaliencyMonitor(level=0.5)
    unlabelled = loader(torch.utils.data.TensorDataset(digits().tensors[0]))
    trainer(tmp_path, monitor).validate(Mixed(), [unlabelled, loader()], verbose=False)
    assert list(monitor.results) == ["validation/loader1"]


def test_profiles_beyond_the_memory_budget_are_sampled_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "salmon.diagnosis.passes.BYTES_PER_MB", 4 * 24 * 5
    )  # room for four mistakes and a right sample
    monitor = SaliencyMonitor(level=0.7, memory_mb=1, strict=True)
    trainer(tmp_path, monitor).validate(Module(), loader(), verbose=False)
    found = monitor.results["validation"]
    assert found.misclassified > 5
    assert len(found.mistakes.sample) == 4
    assert found.profile.shape == (4, 24)
    assert sum(pair.mistakes for pair in found.confusions) == found.misclassified
    assert len(found.right.filters) == 1
    assert f"{found.misclassified} misclassified (filters of 4 of them ranked)" in log.text
    assert [r["sample"] for r in flagged(tmp_path) if r["kind"] == "sample"] == (
        found.mistakes.sample.tolist()
    )


def test_the_log_says_which_level_was_chosen_and_why(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    monitor = SaliencyMonitor(level="auto", strict=True)
    trainer(tmp_path, monitor).validate(Module(), loader(), verbose=False)
    assert f"Threshold: {monitor.results['validation'].level_reason} It took" in log.text


def test_the_log_says_what_stands_out_and_how_many_filters_are_reported(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    monitor = SaliencyMonitor(level=0.7, strict=True)
    trainer(tmp_path, monitor).validate(Module(), loader(), verbose=False)
    found = monitor.results["validation"]
    assert found.rankings["pot"].filters.shape[1] == 2  # a tenth of 24
    assert "Top 2 of 24 filters by POT" in log.text
    assert f"Filters that stand out: {len(found.findings.filters)}." in log.text
    row = flagged(tmp_path)[0]
    assert row["beyond_chance"] == len(
        {each["filter"] for each in row["top"]} & {each.filter for each in found.findings.filters}
    )


def test_fast_dev_run_measures_and_writes_nothing(tmp_path: Path) -> None:
    monitor = SaliencyMonitor(level=0.5, strict=True)
    trained(tmp_path, monitor, fast_dev_run=True)
    assert monitor.results["validation"].samples == 8
    assert not (tmp_path / "salmon_logs").exists()


def test_files_can_be_switched_off(tmp_path: Path) -> None:
    trained(tmp_path, SaliencyMonitor(level=0.7, write_files=False))
    assert not (tmp_path / "salmon_logs").exists()


def test_a_network_that_is_always_right_has_fits_and_no_flags(tmp_path: Path) -> None:
    module = Module()
    with torch.no_grad():
        labels = module.eval()(digits().tensors[0]).argmax(1)
    data = torch.utils.data.TensorDataset(digits().tensors[0], labels)
    monitor = SaliencyMonitor(level=0.7, strict=True)
    work = trainer(tmp_path, monitor)
    work.validate(module, loader(data), verbose=False)
    found = monitor.results["validation"]
    assert (found.misclassified, found.samples) == (0, 40)
    assert work.callback_metrics["salmon/mistakes"].item() == 0
    assert not any("/share/" in name for name in work.callback_metrics)
    names = sorted(p.name for p in (tmp_path / "salmon_logs").iterdir())
    assert names == ["fit-validation.safetensors", "pass-validation-000000.json"]
    assert not math.isnan(float(found.fit.xi[0]))
