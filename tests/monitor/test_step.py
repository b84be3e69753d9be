"""The monitor measures what the user's own step evaluates, or says that it does not."""

import copy
import json
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from salmon import (
    InputError,
    RepairInTraining,
    RepairSettings,
    SaliencyMonitor,
    UnsupportedError,
    filter_saliency,
)
from salmon.diagnosis import Diagnosis
from salmon.views import gather
from tests.networks import PlainNet
from tests.trainers import Module, digits, loader, trainer


def found(folder: Path, module: LightningModule, data: Any = None, **options: Any) -> Diagnosis:
    """What one validation of a module finds."""
    monitor = SaliencyMonitor(level=0.7, **options)
    trainer(folder, monitor).validate(module, data or loader(), verbose=False)
    return monitor.results["validation"]


def seeded(make: Callable[[], LightningModule]) -> Any:
    torch.manual_seed(3)
    return make()


class Normalises(Module):
    """Prepares the images in its step."""

    def unpack(self, batch: Any) -> tuple[Tensor, Tensor]:
        return (batch[0] - 0.5) / 0.25, batch[1]


class NormalisesInPlace(Module):
    def unpack(self, batch: Any) -> tuple[Tensor, Tensor]:
        return batch[0].sub_(0.5).div_(0.25), batch[1]


@pytest.mark.parametrize("make", [Normalises, NormalisesInPlace])
@pytest.mark.parametrize("inference_mode", [True, False])
def test_inputs_that_the_step_prepares_are_measured(
    tmp_path: Path, make: Callable[[], Module], inference_mode: bool
) -> None:
    module = seeded(make)
    monitor = SaliencyMonitor(level=0.7, strict=True)
    work = trainer(tmp_path, monitor, inference_mode=inference_mode)
    work.validate(module, loader(), verbose=False)
    got = monitor.results["validation"]
    images, labels = digits().tensors
    prepared = (images - 0.5) / 0.25
    with torch.no_grad():
        wrong = module.eval()(prepared).argmax(1) != labels
    assert got.mistakes.sample.tolist() == wrong.nonzero().flatten().tolist()
    profile = filter_saliency(module, prepared, labels, got.index)[wrong]
    torch.testing.assert_close(got.profile, profile, rtol=1e-4, atol=1e-8)
    assert got.trusted


def test_a_repair_in_a_training_looks_at_the_inputs_that_the_step_prepares(
    tmp_path: Path,
) -> None:
    settings = RepairSettings(prefer="step", order="magnitude", min_split=5, level=0.5)
    wanted = RepairInTraining(settings=settings, after="validation")
    monitor = SaliencyMonitor(level=0.7, repair=wanted, strict=True)
    trainer(tmp_path, monitor).validate(seeded(Normalises), loader(digits(200)), verbose=False)
    assert monitor.outcome is not None
    found = monitor.results["validation"]
    accuracy = 1 - found.misclassified / found.samples
    assert monitor.outcome.before["new"] == pytest.approx(accuracy)


class Averaged(Module):
    """Validates an average of the weights, which is a part of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.average = copy.deepcopy(self.net)
        with torch.no_grad():
            for value in self.average.parameters():
                value.mul_(1.5)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.average(batch[0]), batch[1]))


class DropsOut(Module):
    """Leaves dropout on in validation."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.net.train()
        super().validation_step(batch, batch_idx)
        self.net.eval()


class Masks(Module):
    """Changes the logits behind the network, in place."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])[:, 0] = -100.0


OTHERS = {"an average": Averaged, "dropout": DropsOut, "masked in place": Masks}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_function_in_the_step_makes_the_diagnosis_untrusted(
    tmp_path: Path, log: pytest.LogCaptureFixture, kind: str
) -> None:
    monitor = SaliencyMonitor(level=0.7)
    work = trainer(tmp_path, monitor)
    for _ in range(2):
        work.validate(seeded(OTHERS[kind]), loader(), verbose=False)
    got = monitor.results["validation"]
    assert not got.trusted
    assert "gave other outputs in the user's step" in got.doubts[0]
    told = {id(r) for r in log.records if "not to be trusted" in r.getMessage()}
    assert len(told) == 1  # once in a training
    assert "unpack=" in log.text
    (section,) = gather(tmp_path)
    assert section.record.doubts == list(got.doubts)
    with pytest.raises(InputError, match="gave other outputs"):
        found(tmp_path / "strict", seeded(OTHERS[kind]), strict=True)


def test_a_repair_refuses_an_untrusted_diagnosis(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    wanted = RepairInTraining(after="validation", settings=RepairSettings(min_split=5))
    monitor = SaliencyMonitor(level=0.7, repair=wanted)
    trainer(tmp_path, monitor).validate(Averaged(), loader(), verbose=False)
    assert monitor.outcome is None
    assert "could not look for a repair (InputError: the diagnosis 'validation'" in log.text


class Softmax(Module):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


def nll(output: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.nll_loss(output.log(), targets, reduction="none")


def test_probabilities_in_place_of_logits_are_noticed(tmp_path: Path) -> None:
    got = found(tmp_path, seeded(Softmax))
    assert "probabilities where logits are needed" in got.doubts[0]
    assert found(tmp_path / "own loss", seeded(Softmax), loss=nll).trusted


def test_a_repair_refuses_a_network_that_gives_probabilities() -> None:
    from salmon import Samples, repair

    images, labels = digits(120).tensors
    samples = Samples(images, labels, tuple(range(120)))
    with pytest.raises(InputError, match="gives probabilities where logits"):
        repair(seeded(Softmax).eval(), samples, None, RepairSettings(min_split=10))


class CallsParts(Module):
    """Never calls itself; forward is what it runs."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))


class WithoutForward(LightningModule):
    """Has a network, and no forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = PlainNet()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))


class InPieces(WithoutForward):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.net.head(self.net.features(batch[0]).flatten(1))


class Metered(Module):
    """Calls metrics, whose hash changes with what they have seen."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=4)
        self.mean = torchmetrics.MeanMetric()
        self.more = torchmetrics.MetricCollection(
            [torchmetrics.Precision("multiclass", num_classes=4)]
        )

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        logits = self.logits(batch[0])
        self.accuracy(logits, batch[1])
        self.more(logits, batch[1])
        self.log("accuracy", self.accuracy)
        self.log("mean", self.mean(nn.functional.cross_entropy(logits, batch[1])))

    def logits(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self(images))

    test_step = validation_step


class MeteredParts(Metered):
    def logits(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.net(images))


@pytest.mark.parametrize("make", [CallsParts, WithoutForward, Metered, MeteredParts])
def test_a_step_that_calls_parts_of_the_module_is_measured_like_one_that_calls_it(
    tmp_path: Path, make: Callable[[], LightningModule]
) -> None:
    expected = found(tmp_path, seeded(Module), strict=True)
    got = found(tmp_path, seeded(make), strict=True)
    assert torch.equal(got.profile, expected.profile)
    assert got.trusted


def test_metrics_that_a_step_calls_are_no_trouble_in_any_epoch(tmp_path: Path) -> None:
    module, monitor = seeded(Metered), SaliencyMonitor(level=0.7, strict=True)
    work = trainer(tmp_path, monitor, max_epochs=2)
    work.fit(module, loader(digits(64)), loader())
    work.test(module, loader(), verbose=False)
    assert set(monitor.results) == {"validation", "test"}
    assert all(found.trusted for found in monitor.results.values())


def test_a_module_without_forward_whose_step_runs_several_parts_is_told_to_define_it(
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match="InPieces has no forward, and its step runs 2 of its"):
        found(tmp_path, InPieces(), strict=True)


class NothingSeen(Module):
    """Validates a network that is no part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [PlainNet().eval()]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.hidden[0](batch[0])


def test_a_step_in_which_nothing_is_seen_is_told(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    assert found(tmp_path, NothingSeen()).trusted
    assert "was not seen to run the network" in log.text


class SeveralInputs(Module):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0] + 1)
        self(batch[0] + 2)


class Repeats(Module):
    """Also runs a flipped copy, as for a metric of its own."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0].flip(3))
        self(batch[0])


def test_several_inputs_are_ambiguous_unless_the_batch_is_among_them(tmp_path: Path) -> None:
    got = found(tmp_path, seeded(SeveralInputs))
    assert "ran the network on several inputs (in 5 batches)" in got.doubts[0]
    got = found(tmp_path, seeded(Repeats), strict=True)
    assert torch.equal(got.profile, found(tmp_path, seeded(Module)).profile)
    taught = found(tmp_path, seeded(SeveralInputs), unpack=lambda b: (b[0] + 2, b[1]), strict=True)
    assert taught.trusted


class Mapped(Module):
    """Takes labels out of the batch and hands the rest to forward by name."""

    def forward(self, *, first: Tensor, second: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"logits": torch.as_tensor(self.net(first + second))}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        labels = batch.pop("label")
        self.log("val_loss", nn.functional.cross_entropy(self(**batch)["logits"], labels))


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_batches_that_lose_entries_in_the_step_are_remembered(
    tmp_path: Path, kind: Callable[..., Any]
) -> None:
    def collated(rows: list[tuple[Tensor, Tensor]]) -> Any:
        x, y = (torch.stack(column) for column in zip(*rows, strict=True))
        return kind(first=x / 2, second=x / 2, label=y)

    data = DataLoader(digits(), 8, collate_fn=collated)
    got = found(tmp_path, seeded(Mapped), data, strict=True)
    torch.testing.assert_close(got.profile, found(tmp_path, seeded(Module)).profile)


class Video(Module):
    """Takes a list of two clips as one argument, as SlowFast does."""

    def forward(self, x: list[Tensor]) -> Tensor:  # type: ignore[override]
        slow, fast = x
        return torch.as_tensor(self.net(slow + fast[:, :, ::2]))

    def unpack(self, batch: Any) -> tuple[Any, Tensor]:
        x, y = batch
        return [x / 2, x.repeat_interleave(2, 2) / 2], y


def test_networks_that_take_a_list_are_measured(tmp_path: Path) -> None:
    module = seeded(Video).eval()
    images, labels = digits(6).tensors
    clips = [images / 2, images.repeat_interleave(2, 2) / 2]
    plain = seeded(Module).eval()
    expected = filter_saliency(plain, images, labels)
    torch.testing.assert_close(filter_saliency(module, clips, labels), expected)
    assert found(tmp_path, seeded(Video), strict=True).trusted


class Squeezes(Module):
    """Loses the first dimension of a batch of one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])


def test_a_last_batch_of_one_that_forward_flattens_is_left_out(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    got = found(tmp_path, seeded(Squeezes), loader(digits(41)))
    assert got.samples == 40
    assert "left out batch 5: the network returned logits of shape (4,)" in log.text
    assert "squeeze(1)" in log.text
    assert "left out 1 batches" in log.text


class Pairs(Module):
    """Returns logits beside something else."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x.mean((2, 3)).sum(1)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])


def test_the_only_logits_in_a_tuple_are_taken(tmp_path: Path) -> None:
    got = found(tmp_path, seeded(Pairs), strict=True)
    assert torch.equal(got.profile, found(tmp_path, seeded(Module)).profile)


def test_images_of_different_size_are_left_out_with_advice(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    data: Any = [([torch.zeros(3, 16, 16), torch.zeros(3, 18, 16)], torch.tensor([0, 1]))] * 2

    class Detects(Module):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            for image in batch[0]:
                self(image[None])

    monitor = SaliencyMonitor()
    trainer(tmp_path, monitor).validate(Detects(), DataLoader(data, batch_size=None), verbose=False)
    assert monitor.results == {}
    assert "images of different size in a list have to be brought to one size" in log.text


class CachesInInferenceMode(Module):
    scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = x.new_ones(1)
        return super().forward(x * self.scale)


def test_tensors_that_validation_cached_do_not_end_the_pass(tmp_path: Path) -> None:
    assert found(tmp_path, seeded(CachesInInferenceMode), strict=True).samples == 40


def test_trouble_in_a_hook_ends_the_pass_and_not_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    def short(*args: Any) -> None:
        raise torch.OutOfMemoryError("no room for a copy")

    monkeypatch.setattr("salmon.monitor.step.Call", short)
    monitor = SaliencyMonitor(level=0.7)
    work = trainer(tmp_path, monitor)
    work.validate(Module(), loader(), verbose=False)
    assert "val_loss" in work.callback_metrics
    assert monitor.results == {}
    assert "stopped measuring (OutOfMemoryError: no room for a copy)" in log.text
    with pytest.raises(torch.OutOfMemoryError):
        found(tmp_path, Module(), strict=True)


def test_hooks_are_there_during_a_step_only_and_gone_after_an_error(tmp_path: Path) -> None:
    class Raises(Module):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[0])
            if batch_idx == 2:
                raise ZeroDivisionError

    module = Raises()
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, SaliencyMonitor(level=0.7)).validate(module, loader(), verbose=False)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_a_compiled_module_is_measured_and_told_to_be_out_of_sight(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    module = seeded(Module)
    module.forward = torch.compile(module.forward, backend="eager")
    got = found(tmp_path, module, strict=True)
    assert torch.equal(got.profile, found(tmp_path, seeded(Module)).profile)


def test_tensors_of_a_class_of_its_own_are_measured_like_others(tmp_path: Path) -> None:
    monai = pytest.importorskip("monai.data")

    def collated(rows: list[tuple[Tensor, Tensor]]) -> Any:
        x, y = (torch.stack(column) for column in zip(*rows, strict=True))
        return monai.MetaTensor(x), monai.MetaTensor(y)

    plain = found(tmp_path / "plain", seeded(Module), strict=True)
    got = found(
        tmp_path / "meta", seeded(Module), DataLoader(digits(), 8, collate_fn=collated), strict=True
    )
    assert type(got.profile) is Tensor
    assert torch.equal(got.profile, plain.profile)
    (section,) = gather(tmp_path / "meta")
    flagged = [picture for picture in section.pictures if picture.kind == "flagged"]
    assert len([picture for picture in flagged if picture.heat is not None]) == 12


class CompilesParts(Module):
    """Its parts run as compiled code that a hook cannot see into."""

    def __init__(self) -> None:
        super().__init__()
        self.fast = torch.compile(self.net.forward, backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.fast(x))


def test_hooks_do_nothing_inside_of_compiled_code(tmp_path: Path) -> None:
    got = found(tmp_path, seeded(CompilesParts), strict=True)
    assert got.trusted
    torch.testing.assert_close(got.profile, found(tmp_path, seeded(Module)).profile)


def test_records_without_doubts_of_earlier_versions_are_read(tmp_path: Path) -> None:
    found(tmp_path, Module())
    logs = tmp_path / "salmon_logs"
    path = next(logs.glob("pass-*.json"))
    record = json.loads(path.read_text())
    del record["doubts"]
    path.write_text(json.dumps(record))
    logs.rename(tmp_path / "salmon")  # as version 0.1 named it
    (section,) = gather(tmp_path)
    assert section.name == "validation"
    assert section.record.doubts == []


def test_a_layer_that_runs_without_gradients_ends_the_pass(tmp_path: Path) -> None:
    class Frozen(Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.net.features[0](x)
            return torch.as_tensor(self.net.head(self.net.features[1:](x).flatten(1)))

    with pytest.raises(UnsupportedError, match="ran without gradients"):
        found(tmp_path, Frozen(), strict=True)
