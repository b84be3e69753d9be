"""Odd numbers, shapes and layouts: saliency and the monitor measure them or say why not."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from salmon import (
    FilterIndex,
    FitStatus,
    SaliencyMonitor,
    filter_saliency,
)
from salmon.repairs.predictions import Objective
from salmon.tasks import NO_CLASS
from salmon.views import gather
from salmon.views.report.page import render
from tests.networks import PlainNet, batch, layer_relative_error, one_by_one
from tests.trainers import Module, digits, loader, trainer

TINY32, TINY64 = 2.0**-149, 5e-324  # the smallest positive numbers


@pytest.fixture
def network() -> PlainNet:
    return PlainNet().eval()


# Saliency


def scaled(unit: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The cross-entropy in another unit."""
    return lambda output, y: unit * nn.functional.cross_entropy(output, y, reduction="none")


@pytest.mark.parametrize(
    ("dtype", "exponent", "smallest"),
    [(torch.float32, -130, TINY32), (torch.float32, -142, TINY32), (torch.float64, -1040, TINY64)],
)
def test_saliency_of_denormal_size_is_right_to_a_few_of_the_smallest_numbers(
    network: PlainNet, dtype: torch.dtype, exponent: int, smallest: float
) -> None:
    inputs, targets = batch()
    unit = 2.0**exponent
    found = filter_saliency(network.to(dtype), inputs.to(dtype), targets, loss=scaled(unit))
    exact = filter_saliency(network.double(), inputs.double(), targets) * unit
    assert 0 < float(found.max()) < torch.finfo(dtype).tiny
    assert float((found.double() - exact).abs().max()) <= 10 * smallest


def test_samples_of_any_size_beside_each_other_get_what_they_get_alone(network: PlainNet) -> None:
    inputs, targets = batch(7)
    network, inputs = network.double(), inputs.double()
    inputs[0, 0, 0, 0] = math.nan
    inputs[1, 1] = math.inf
    inputs[2] *= 1e30
    inputs[3] = 0
    inputs[4] *= 1e-310
    index = FilterIndex.from_model(network)
    found = filter_saliency(network, inputs, targets, index)
    finite = [False, False, True, True, True, True, True]
    assert torch.isfinite(found).all(1).tolist() == finite
    exact = one_by_one(network, inputs, targets, index)
    for i in range(2, 7):
        torch.testing.assert_close(found[i], exact[i], rtol=1e-10, atol=10 * TINY64)
    assert bool((found[3, :6] == 0).all())  # the weights of the first layer see nothing but zeros


class Masked(nn.Module):
    """Rules a class out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = PlainNet()
        self.mask: Tensor
        self.register_buffer("mask", torch.tensor([0.0, 0.0, -math.inf, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.net(x) + self.mask)


def test_a_class_that_is_ruled_out_costs_only_the_samples_that_have_it() -> None:
    network = Masked().double().eval()
    inputs, targets = batch(6)[0].double(), torch.tensor([0, 1, 2, 3, 0, 1])
    index = FilterIndex.from_model(network)
    found = filter_saliency(network, inputs, targets, index)
    assert torch.isfinite(found).all(1).tolist() == [True, True, False, True, True, True]
    rest = [0, 1, 3, 4, 5]
    exact = one_by_one(network, inputs[rest], targets[rest], index)
    torch.testing.assert_close(found[rest], exact, rtol=1e-10, atol=0)


def test_filters_of_zeros_have_the_saliency_that_autograd_gives_them(network: PlainNet) -> None:
    network = network.double()
    with torch.no_grad():
        for convolution in (network.features[0], network.features[7]):
            convolution.get_parameter("weight")[::2] = 0
    index = FilterIndex.from_model(network)
    inputs, targets = batch(5)
    found = filter_saliency(network, inputs.double(), targets, index)
    exact = one_by_one(network, inputs.double(), targets, index)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
    assert not filter_saliency(network, inputs.double(), targets, index).any()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every other": lambda x: torch.stack([x, x + 1], -1)[..., 0],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "part of more channels": lambda x: torch.cat([x, x + 1], 1)[:, :3],
    "part of more samples": lambda x: torch.cat([x + 1, x])[len(x) :],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_in_memory_does_not_matter(network: PlainNet, layout: str) -> None:
    inputs, targets = batch()
    index = FilterIndex.from_model(network)
    odd = LAYOUTS[layout](inputs)
    assert torch.equal(odd, inputs)
    found = filter_saliency(network, odd, targets, index)
    assert layer_relative_error(found, filter_saliency(network, inputs, targets, index), index) < (
        1e-6
    )


def test_one_image_or_channel_or_label_used_again_and_again_is_as_good_as_copies(
    network: PlainNet,
) -> None:
    inputs, targets = batch()
    same, grey = inputs[:1].expand(6, -1, -1, -1), inputs[:, :1].expand(-1, 3, -1, -1)
    one = targets[:1].expand(6)
    for odd, labels in ((same, targets), (grey, targets), (inputs, one)):
        assert 0 in (*odd.stride(), *labels.stride())
        found = filter_saliency(network, odd, labels)
        assert torch.equal(found, filter_saliency(network, odd.clone(), labels.clone()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_networks_are_measured_in_float32(
    network: PlainNet, dtype: torch.dtype, tolerance: float
) -> None:
    inputs, targets = batch()
    index = FilterIndex.from_model(network)
    network, inputs = network.to(dtype), inputs.to(dtype)
    found = filter_saliency(network, inputs, targets, index)
    assert found.dtype == torch.float32
    exact = one_by_one(network, inputs, targets, index, common_forward=True)
    assert layer_relative_error(found, exact.float(), index) < tolerance


class Bytes(nn.Module):
    """Takes images as they are in files."""

    def __init__(self) -> None:
        super().__init__()
        self.net = PlainNet()

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.net(x.float() / 255))


def byte_images(samples: int = 40) -> TensorDataset:
    images, labels = digits(samples).tensors
    return TensorDataset((images * 40 + 120).clamp(0, 255).to(torch.uint8), labels)


def test_images_of_bytes_are_measured_where_the_network_takes_them(network: PlainNet) -> None:
    images, labels = byte_images(6).tensors
    caster = Bytes().eval()
    found = filter_saliency(caster, images, labels)
    assert torch.equal(found, filter_saliency(caster.net, images.float() / 255, labels))
    with pytest.raises(RuntimeError, match="Byte"):  # the network's own
        filter_saliency(network, images, labels)


# The monitor


def measured(folder: Path, data: Any, module: Module | None = None, **options: Any) -> Any:
    """What the monitor finds in a validation, whose files can be made a page of."""
    monitor = SaliencyMonitor(level=0.7, strict=True)
    work = trainer(folder, monitor, **options)
    work.validate(module or Module(), data, verbose=False)
    assert render(gather(folder), "run")
    return monitor.results["validation"]


def test_batches_of_one_give_what_larger_ones_give(tmp_path: Path) -> None:
    module = Module().double()
    images, labels = digits().tensors
    data = TensorDataset(images.double(), labels)
    one = measured(tmp_path / "a", loader(data, 1), module, precision="64-true")
    many = measured(tmp_path / "b", loader(data, 8), module, precision="64-true")
    assert torch.equal(one.mistakes.sample, many.mistakes.sample)
    torch.testing.assert_close(one.fit.threshold, many.fit.threshold, rtol=1e-9, atol=0)
    torch.testing.assert_close(one.profile, many.profile, rtol=1e-9, atol=0)


def test_a_validation_of_one_sample_has_no_fit_and_a_page(tmp_path: Path) -> None:
    images, labels = digits(1).tensors
    for name, label in (("right", labels), ("wrong", (labels + 1) % 4)):
        found = measured(tmp_path / name, loader(TensorDataset(images, label)))
        assert found.samples == 1
        assert found.fit.counts()[FitStatus.TOO_FEW] == 24


class WithEmptyBatches(IterableDataset[Any]):
    """Batches of eight, and one without samples after each."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = digits().tensors
        for x, y in zip(images.split(8), labels.split(8), strict=True):
            yield x, y
            yield x[:0], y[:0]


class Silent(Module):
    """Logs nothing, since the mean of no losses is NaN."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])


def test_empty_batches_between_others_change_nothing(tmp_path: Path) -> None:
    module = Silent()
    found = measured(tmp_path / "a", DataLoader(WithEmptyBatches(), batch_size=None), module)
    plain = measured(tmp_path / "b", loader(), module)
    assert (found.samples, found.dropped) == (40, 0)
    assert torch.equal(found.fit.threshold, plain.fit.threshold)
    assert torch.equal(found.mistakes.sample, plain.mistakes.sample)


class ByteModule(Module):
    """Casts its images itself."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.net(x.float() / 255))


def test_images_of_bytes_go_through_the_monitor(tmp_path: Path) -> None:
    module = ByteModule()
    found = measured(tmp_path, loader(byte_images()), module)
    images, labels = byte_images().tensors
    profile = filter_saliency(module.net.eval(), images.float() / 255, labels)
    assert (found.samples, found.dropped) == (40, 0)
    rows = found.mistakes.sample
    assert layer_relative_error(found.profile, profile[rows], found.index) < 1e-3


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_modules_in_half_precision_are_measured(tmp_path: Path, precision: Any) -> None:
    images, labels = digits().tensors
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float16
    found = measured(tmp_path, loader(TensorDataset(images.to(dtype), labels)), precision=precision)
    assert (found.samples, found.dropped) == (40, 0)
    assert found.profile.dtype == torch.float32
    assert sum(found.fit.counts().values()) == 24


def flags(folder: Path) -> list[Any]:
    """Samples in the file of flags."""
    (path,) = (folder / "salmon_logs").glob("flagged-*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [flag for flag in lines if flag["kind"] == "sample"]


def test_an_output_of_nan_is_no_prediction_and_never_right(tmp_path: Path) -> None:
    module = Module()
    with torch.no_grad():
        module.net.get_parameter("head.1.weight")[1, 0] = math.nan
    found = measured(tmp_path, loader(), module)
    assert (found.samples, found.dropped, found.misclassified) == (40, 40, 40)
    assert found.mistakes.predicted.tolist() == [NO_CLASS] * 40
    assert found.fit.counts()[FitStatus.TOO_FEW] == 24
    assert {flag["predicted"] for flag in flags(tmp_path)} == {-1}
    assert {flag["confidence_predicted"] for flag in flags(tmp_path)} == {None}
    assert "<td>none</td>" in render(gather(tmp_path), "run")


class MaskedModule(Module):
    """Rules class 2 out."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.tensor([0.0, 0.0, -math.inf, 0.0])
        return torch.as_tensor(self.net(x) + mask)


def test_a_class_that_is_ruled_out_is_a_prediction_of_the_others(tmp_path: Path) -> None:
    module = MaskedModule()
    found = measured(tmp_path, loader(), module)
    images, labels = digits().tensors
    with torch.no_grad():
        predicted = module.eval()(images).argmax(1)
    wrong = (predicted != labels).nonzero().squeeze(1)
    assert found.mistakes.sample.tolist() == wrong.tolist()
    assert found.mistakes.predicted.tolist() == predicted[wrong].tolist()
    assert found.dropped == int((labels == 2).sum())  # their loss is infinite


def test_predictions_of_a_repair_are_right_only_with_probabilities() -> None:
    inf = math.inf
    logits = torch.tensor(
        [[1.0, 0.0], [1.0, -inf], [inf, 0.0], [math.nan, 0.0], [-inf, -inf], [0.0, 1.0]],
        dtype=torch.float64,
    )
    targets = torch.zeros(6, dtype=torch.int64)
    with torch.no_grad():
        found = Objective().read(logits, targets)
        unknown = Objective().read(logits[3:5], targets[:2])
    assert found.right.tolist() == [True, True, False, False, False, False]
    assert found.calibration_error is not None
    assert math.isfinite(found.calibration_error)
    assert unknown.calibration_error is not None
    assert math.isnan(unknown.calibration_error)


def test_samples_that_are_all_the_same_are_degenerate(tmp_path: Path) -> None:
    images, labels = digits().tensors
    data = TensorDataset(images[:1].expand(40, -1, -1, -1), ((labels[:1] + 1) % 4).expand(40))
    found = measured(tmp_path, loader(data))
    counts = found.fit.counts()
    assert counts[FitStatus.DEGENERATE] == 24
    assert bool((found.rankings["pot"].filters == -1).all())
