"""Odd numbers, shapes and layouts: the right number, a status or an error; never a wrong number."""

import json
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from salmon import (
    FilterIndex,
    FitStatus,
    InputError,
    SaliencyMonitor,
    Tails,
    filter_saliency,
    fit_tails,
    gpd,
    rank_filters,
)
from salmon.ranking import NO_CLASS
from salmon.repairs.evaluate import Predictions
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


# Streams and fits


def streamed(profile: Tensor, capacity: int = 128) -> Tails:
    tails = Tails(profile.shape[1], capacity)
    for part in profile.split(37):
        tails.update(part)
    return tails


def heavy(samples: int = 400, filters: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(samples, filters, generator=generator, dtype=torch.float64).pow(-0.3)


@pytest.mark.parametrize("exponent", [-1030, -1000, -600, 400, 1000])
def test_tails_of_any_size_are_those_of_ordinary_size(exponent: int) -> None:
    profile, unit = heavy(), 2.0**exponent
    one, other = fit_tails(streamed(profile)), fit_tails(streamed(profile * unit))
    assert other.counts()[FitStatus.OK] == 3
    torch.testing.assert_close(other.xi, one.xi, rtol=0, atol=1e-9)
    torch.testing.assert_close(other.sigma / unit, one.sigma, rtol=1e-9, atol=0)
    torch.testing.assert_close(other.xi_se, one.xi_se, rtol=1e-9, atol=0)
    torch.testing.assert_close(other.ad_p, one.ad_p, rtol=1e-8, atol=0)
    there, here = rank_filters(profile * unit, other), rank_filters(profile, one)
    assert torch.equal(there.filters, here.filters)
    torch.testing.assert_close(there.log_p, here.log_p, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_denormal_values_of_float32_are_fitted_as_they_are() -> None:
    profile = (heavy().float() * 1e-42)[:, :1]
    assert 0 < float(profile.max()) < torch.finfo(torch.float32).tiny
    fit = fit_tails(streamed(profile))
    values = np.sort(profile.double().numpy()[:, 0])
    above = values[values > values[-41]]
    assert float(fit.threshold) == values[-41]
    excess = torch.from_numpy(above - values[-41])
    shape, _, scale = stats.genpareto.fit(excess.numpy() * 2.0**140, floc=0)
    assert float(fit.xi) == pytest.approx(shape, abs=2e-2)
    assert float(fit.sigma) * 2.0**140 == pytest.approx(scale, rel=2e-2)
    mine = gpd.log_likelihood(excess, fit.xi, fit.sigma)
    theirs = gpd.log_likelihood(excess, torch.tensor([shape]), torch.tensor([scale * 2.0**-140]))
    assert float(mine) >= float(theirs) - 1e-9
    assert float(fit.std) == pytest.approx(profile.double().std().item(), rel=1e-9)


def exact_variance(values: list[float]) -> Fraction:
    """The square of the standard deviation, without rounding."""
    exact = [Fraction(value) for value in values]
    mean = sum(exact, Fraction()) / len(exact)
    return sum(((value - mean) ** 2 for value in exact), Fraction()) / (len(exact) - 1)


@given(
    exponent=st.integers(-1074, 1023),
    spread=st.sampled_from([0.0, 1e-9, 1e-3, 1.0]),
    seed=st.integers(0, 100),
)
@example(exponent=-512, spread=1.0, seed=0)
@example(exponent=-484, spread=1.0, seed=0)
@example(exponent=-480, spread=1e-3, seed=0)
@example(exponent=512, spread=1.0, seed=0)
@example(exponent=1023, spread=1.0, seed=0)
def test_a_standard_deviation_is_right_or_not_there(
    exponent: int, spread: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = np.ldexp(0.5 + spread * random.random(50) / 2.1, exponent)
    tails = Tails(1, 64)
    for part in torch.from_numpy(values)[:, None].split(7):
        tails.update(part)
    found, exact = float(tails.std), exact_variance(values.tolist())
    if math.isnan(found):
        assert exponent < -400 or exponent > 480
        return
    mean = Fraction(float(np.mean(values)))
    if exact <= (mean * Fraction(1, 10**11)) ** 2:  # what counts as constant
        assert Fraction(found) <= mean * Fraction(1, 10**10)
    else:
        assert Fraction(found) ** 2 / exact == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("unit", [1e-200, 1e-320, 1e160, 1e300])
def test_values_whose_squares_float64_cannot_hold_have_no_z_score(unit: float) -> None:
    profile = heavy() * unit
    fit = fit_tails(streamed(profile))
    assert bool(torch.isnan(fit.std).all())
    ranking = rank_filters(profile, fit, "zscore")
    assert bool((ranking.filters == -1).all())
    assert bool((ranking.ranked == 0).all())


def test_a_sum_beyond_the_largest_number_is_no_mean() -> None:
    tails = streamed(torch.full((100, 2), 1.5e308, dtype=torch.float64))
    assert bool(torch.isnan(tails.mean).all())
    assert bool(torch.isnan(tails.std).all())
    assert (tails.samples, tails.dropped) == (100, 0)
    again = Tails(2, 128)
    again.load_state_dict(tails.state_dict())
    assert bool(torch.isnan(again.mean).all())


def test_ties_everywhere_have_a_status_and_a_z_score_of_zero() -> None:
    profile = torch.cat([torch.zeros(300, 2), torch.full((300, 2), 1e-3)], 1)
    fit = fit_tails(streamed(profile))
    assert fit.status.tolist() == [FitStatus.DEGENERATE] * 4
    assert bool(torch.isnan(fit.xi).all())
    assert fit.std.tolist() == pytest.approx([0.0] * 4, abs=1e-15)
    assert bool((rank_filters(profile, fit).filters == -1).all())
    z = rank_filters(profile[:5], fit, "zscore")
    assert z.filters[:, :4].tolist() == [[0, 1, 2, 3]] * 5
    assert float(z.score[:, :4].abs().max()) < 1e-12


def test_one_sample_gives_no_fit_no_ranking_and_no_z_score() -> None:
    profile = torch.rand(1, 5)
    fit = fit_tails(streamed(profile))
    assert fit.status.tolist() == [FitStatus.TOO_FEW] * 5
    assert torch.equal(fit.mean, profile[0].double())
    assert bool(torch.isnan(fit.std).all())
    for method in ("pot", "zscore"):
        assert bool((rank_filters(profile, fit, method).filters == -1).all())
    assert rank_filters(profile, fit, "magnitude", top_k=1).filters.item() == int(profile.argmax())


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_excesses_that_are_asked_for_make_no_trouble(count: int) -> None:
    for samples in (0, 1, 2, 5):
        fit = fit_tails(streamed(heavy()[:samples]), 0.5, min_exceedances=count)
        fitted = fit.usable
        assert bool((fit.exceedances[fitted] >= 2).all())
        assert bool((fit.sigma[fitted] > 0).all())


def profiles() -> Iterator[tuple[str, Tensor]]:
    """Layouts and types of one profile."""
    plain = heavy(200, 4).float()
    yield "transposed", plain.t().contiguous().t()
    yield "every other", torch.stack([plain, plain + 1], 1).flatten(0, 1)[::2]
    yield "with a graph", plain.clone().requires_grad_()
    yield "float64", plain.double()
    coarse = plain.bfloat16()
    yield "bfloat16", coarse
    yield "float16", coarse.half()


@pytest.mark.parametrize(("name", "profile"), list(profiles()))
def test_profiles_of_any_layout_and_type_are_streamed_and_ranked(
    name: str, profile: Tensor
) -> None:
    plain = profile.detach().clone(memory_format=torch.contiguous_format).float()
    one, other = streamed(plain), streamed(profile)
    assert torch.equal(one.largest(), other.largest().float())
    torch.testing.assert_close(one.std, other.std, rtol=1e-12, atol=0)
    fit = fit_tails(one)
    ranked, again = rank_filters(plain, fit), rank_filters(profile, fit)
    assert torch.equal(ranked.filters, again.filters)
    torch.testing.assert_close(ranked.log_p, again.log_p, rtol=0, atol=0, equal_nan=True)


def test_one_row_used_again_and_again_is_as_good_as_copies() -> None:
    row = heavy(1, 6)
    one, other = streamed(row.expand(100, -1)), streamed(row.repeat(100, 1))
    assert torch.equal(one.largest(), other.largest())
    assert fit_tails(one).counts() == fit_tails(other).counts()


def test_half_precision_overflow_is_dropped_and_counted() -> None:
    profile = torch.rand(50, 3).half()
    profile[7] *= 1e4
    profile[7, 1] = math.inf
    profile[9] = 6e4  # the sum of the row has no place in float16, its values have
    tails = streamed(profile)
    assert (tails.samples, tails.dropped) == (49, 1)
    assert tails.largest()[:, 0].tolist() == [torch.tensor(6e4).half().item()] * 3


def test_a_hundred_thousand_filters_are_fitted_like_a_few() -> None:
    filters, some = 100_000, torch.arange(0, 100_000, 1999)
    tails = Tails(filters, 32)
    parts = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        # One in 16 million random numbers is 0, whose power would be infinite.
        part = torch.rand(75, filters, generator=generator).add_(1e-4).pow_(-0.3)
        part[:, 5] = 0
        tails.update(part)
        parts.append(part[:, some])
    fit = fit_tails(tails, 0.92)
    few = fit_tails(streamed(torch.cat(parts), 32), 0.92)
    assert len(fit.status) == filters
    assert (tails.samples, tails.dropped) == (300, 0)
    assert tails.nbytes <= filters * (32 + 64 + 1) * 4
    assert int(fit.status[5]) == FitStatus.DEGENERATE
    for name in ("threshold", "xi", "sigma", "log_likelihood", "ad_p", "mean", "std"):
        mine, theirs = getattr(fit, name)[some], getattr(few, name)
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12, equal_nan=True)
    ranking = rank_filters(part[:3], fit, top_k=10)
    assert bool((ranking.filters >= 0).all())
    assert 5 not in ranking.filters


# Rankings


def test_no_infinite_or_missing_saliency_is_ranked() -> None:
    profile = heavy(300, 4)
    fit = fit_tails(streamed(profile))
    odd = profile[:3].clone()
    odd[0, 1], odd[1], odd[2, 3] = math.inf, math.nan, -math.inf
    for method in ("pot", "zscore", "magnitude", "random"):
        ranking = rank_filters(odd, fit, method, top_k=4)
        assert 1 not in ranking.filters[0]
        assert ranking.filters[1].tolist() == [-1] * 4
        assert ranking.ranked[1] == 0
        assert 3 not in ranking.filters[2]
        named = ranking.filters >= 0
        assert bool(torch.isfinite(ranking.score[named]).all())
    assert rank_filters(profile[:0], fit).filters.shape == (0, 25)
    with pytest.raises(InputError, match="complex64; real numbers are needed"):
        rank_filters(profile.to(torch.complex64), fit)


def test_equal_scores_are_ranked_by_number_past_any_size() -> None:
    column = heavy(300, 1)
    profile = column.expand(-1, 500)
    fit = fit_tails(streamed(profile))
    far = column.max() * torch.tensor([[1.0], [1e3], [1e300]], dtype=torch.float64)
    ranking = rank_filters(far.expand(-1, 500), fit, top_k=40)
    assert ranking.filters.tolist() == [list(range(40))] * 3
    assert torch.isfinite(ranking.log_p).all()
    assert bool((ranking.log_p[1:] < ranking.log_p[:-1]).all())


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
    (path,) = (folder / "salmon").glob("flagged-*.jsonl")
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
    found = Predictions(logits, torch.tensor([0, 0, 0, 0, 0, 0]))
    assert found.right.tolist() == [True, True, False, False, False, False]
    assert math.isfinite(found.calibration_error)
    assert math.isnan(Predictions(logits[3:5], torch.tensor([0, 0])).calibration_error)


def test_samples_that_are_all_the_same_are_degenerate(tmp_path: Path) -> None:
    images, labels = digits().tensors
    data = TensorDataset(images[:1].expand(40, -1, -1, -1), ((labels[:1] + 1) % 4).expand(40))
    found = measured(tmp_path, loader(data))
    counts = found.fit.counts()
    assert counts[FitStatus.DEGENERATE] == 24
    assert bool((found.rankings["pot"].filters == -1).all())
