"""Labels in the forms that people have them in, and those that are no labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from salmon import SaliencyMonitor, filter_saliency
from salmon.diagnosis import Diagnosis
from tests.networks import PlainNet, batch
from tests.trainers import Module, digits, trainer


class Silent(Module):
    """Its step only runs the network."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])


def found(
    folder: Path, images: Tensor, labels: Tensor, *others: Tensor, net: Any = None, **options: Any
) -> Diagnosis:
    """What a validation finds; the network is the same each time."""
    torch.manual_seed(3)
    module = Silent()
    if net is not None:
        module.net = net
    monitor = SaliencyMonitor(level=0.7, **({"strict": True} | options))
    data = DataLoader(TensorDataset(images, labels, *others), 8)
    trainer(folder, monitor).validate(module, data, verbose=False)
    return monitor.results["validation"]


IMAGES, LABELS = digits().tensors


def same(one: Diagnosis, other: Diagnosis) -> bool:
    return torch.equal(one.mistakes.sample, other.mistakes.sample) and torch.equal(
        one.fit.threshold, other.fit.threshold
    )


TYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("column", [False, True])
def test_class_numbers_of_any_type_in_a_row_or_column(
    tmp_path: Path, dtype: torch.dtype, column: bool
) -> None:
    labels = LABELS.to(dtype)
    got = found(tmp_path, IMAGES, labels[:, None] if column else labels)
    assert same(got, found(tmp_path / "plain", IMAGES, LABELS))


def test_a_column_of_class_numbers_with_a_loss_of_the_users(tmp_path: Path) -> None:
    def loss(output: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, targets.squeeze(1), reduction="none")

    got = found(tmp_path, IMAGES, LABELS[:, None], loss=loss)
    assert same(got, found(tmp_path / "plain", IMAGES, LABELS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_one_hot_rows_are_class_probabilities(tmp_path: Path, dtype: torch.dtype) -> None:
    hot = nn.functional.one_hot(LABELS, 4).to(dtype)
    assert same(found(tmp_path, IMAGES, hot), found(tmp_path / "plain", IMAGES, LABELS))


def bce(output: Tensor, targets: Tensor) -> Tensor:
    losses = nn.functional.binary_cross_entropy_with_logits(
        output, targets.to(output.dtype).reshape(output.shape), reduction="none"
    )
    return losses if losses.ndim == 1 else losses.mean(1)


class OneLogit(PlainNet):
    def __init__(self, *, squeezed: bool) -> None:
        super().__init__(1)
        self.squeezed = squeezed

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits.squeeze(1) if self.squeezed else logits


@pytest.mark.parametrize("squeezed", [False, True])
def test_one_logit_is_two_classes(tmp_path: Path, squeezed: bool) -> None:
    net = OneLogit(squeezed=squeezed)
    got = found(tmp_path, IMAGES, LABELS % 2, net=net, loss=bce)
    assert (got.task, len(got.class_samples)) == ("binary", 2)
    assert same(got, found(tmp_path / "plain", IMAGES, LABELS % 2, net=net))


def test_several_labels_per_image_are_no_classes(tmp_path: Path) -> None:
    several = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)).round()
    got = found(tmp_path, IMAGES, several, loss=bce)
    assert (got.task, got.has_classes, got.confusions) == ("multilabel", False, [])
    assert same(got, found(tmp_path / "plain", IMAGES, several))


def test_an_index_taken_for_the_label_is_noticed(tmp_path: Path) -> None:
    index = torch.arange(40)
    got = found(tmp_path, IMAGES, index, LABELS, strict=False)
    assert "Most labels (36 of 40) are higher than the classes of the network" in got.doubts[0]
    assert "unpack=, such as lambda batch: (batch[0], batch[2])" in got.doubts[0]
    taught = found(tmp_path, IMAGES, index, LABELS, unpack=lambda b: (b[0], b[2]))
    assert same(taught, found(tmp_path / "plain", IMAGES, LABELS))


def test_labels_that_begin_at_one_are_noticed(tmp_path: Path) -> None:
    got = found(tmp_path, IMAGES, LABELS + 1, strict=False)
    beyond = int((LABELS == 3).sum())
    assert f"No label is 0, and {beyond} of 40 are higher than the 4 classes" in got.doubts[0]
    taught = found(tmp_path, IMAGES, LABELS + 1, unpack=lambda b: (b[0], b[1] - 1))
    assert same(taught, found(tmp_path / "plain", IMAGES, LABELS))
    some = found(tmp_path / "some", IMAGES, torch.where(LABELS == 3, 9, LABELS), strict=False)
    assert (some.unlabelled, some.doubts) == (beyond, ())


LOSSES = {
    "none": (None, -100),
    "torch's": (nn.CrossEntropyLoss(), -100),
    "another number": (nn.CrossEntropyLoss(ignore_index=255, reduction="none"), 255),
    "a class": (nn.CrossEntropyLoss(ignore_index=2, reduction="sum"), 2),
    "a function": (
        lambda out, y: nn.functional.cross_entropy(out, y, reduction="none", ignore_index=-1), -1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_labels_are_left_out_and_counted_as_unlabelled(tmp_path: Path, name: str) -> None:
    loss, ignored = LOSSES[name]
    labels = LABELS.clone()
    if name != "a class":
        labels[::2] = ignored
    kept = labels != ignored
    got = found(tmp_path, IMAGES, labels, loss=loss)
    only = found(tmp_path / "kept", IMAGES[kept], labels[kept], loss=loss)
    assert got.unlabelled == int((~kept).sum())
    assert (got.samples, got.dropped) == (int(kept.sum()), 0)
    assert (got.fit.samples, got.fit.dropped) == (int(kept.sum()), 0)
    for name_of in ("mean", "std", "threshold"):
        torch.testing.assert_close(
            getattr(got.fit, name_of), getattr(only.fit, name_of), rtol=1e-5, atol=0
        )
    assert not set(got.mistakes.sample.tolist()) & set((~kept).nonzero().flatten().tolist())


def test_a_loss_module_is_taken_per_sample_and_stays_as_it_was() -> None:
    given = nn.CrossEntropyLoss(label_smoothing=0.1)
    taken = SaliencyMonitor(loss=given).settings.loss
    assert isinstance(taken, nn.CrossEntropyLoss)
    assert (taken.reduction, taken.label_smoothing, given.reduction) == ("none", 0.1, "mean")


def test_class_numbers_of_any_type_outside_a_trainer() -> None:
    network = PlainNet().eval()
    images, labels = batch(6)
    expected = filter_saliency(network, images, labels)
    for given in (labels.to(torch.uint8), labels[:, None], nn.functional.one_hot(labels, 4)):
        assert torch.equal(filter_saliency(network, images, given), expected)
