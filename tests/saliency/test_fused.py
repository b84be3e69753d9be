"""The kernels for a GPU, against per-sample autograd in float64.

They run on a GPU if there is one, and else in Triton's interpreter, on the CPU.
"""

import itertools

import pytest
import torch
from torch import nn

from salmon import FilterIndex, filter_saliency
from salmon.saliency import Geometry, fused, reduce
from tests.saliency.convolutions import example

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = [  # dimensions, kernel, stride, padding, dilation; few, since interpreted they are slow
    (1, 3, 2, 2, 2),
    (1, 1, 2, 0, 1),
    (2, 3, 1, 1, 1),
    (2, 3, 2, 2, 2),
    (2, 1, 2, 0, 1),
    (3, 2, 2, 1, 1),
]
BLOCKS = {"whole block": 16, "parts of blocks": 70, "large blocks": 130}


def error(exact: torch.Tensor, sums: torch.Tensor) -> float:
    """Largest difference, in units of the layer's largest sum."""
    assert sums.dtype == torch.float32
    return float((sums.cpu() - exact).abs().max() / exact.max())


def sums_of(inputs: torch.Tensor, grad: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    return fused.fused_sums(inputs.float().to(DEVICE), grad.float().to(DEVICE), geometry)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("outputs", [6, 40])
def test_the_kernels_agree_with_autograd_in_any_geometry(outputs: int, groups: int) -> None:
    for dims, kernel, stride, padding, dilation in CASES:
        inputs, grad, geometry, exact = example(
            dims, kernel, stride, padding, dilation, groups, 4, channels=2, outputs=outputs
        )
        assert error(exact, sums_of(inputs, grad, geometry)) < 1e-6


@pytest.mark.parametrize("channels", BLOCKS.values(), ids=list(BLOCKS))
@pytest.mark.parametrize("outputs", BLOCKS.values(), ids=list(BLOCKS))
@pytest.mark.parametrize("kernel", [1, 3])
def test_blocks_that_are_full_or_not_agree(kernel: int, outputs: int, channels: int) -> None:
    inputs, grad, geometry, exact = example(
        2, kernel, 1, kernel // 2, 1, 1, 6, channels=channels, outputs=outputs
    )
    assert error(exact, sums_of(inputs, grad, geometry)) < 1e-6


@pytest.mark.parametrize("groups", [1, 16])
def test_any_order_in_memory_gives_the_same(groups: int) -> None:
    inputs, grad, geometry, exact = example(2, 3, 1, 1, 1, groups, 4, channels=16, outputs=16)
    plain = sums_of(inputs, grad, geometry)
    last = (t.to(memory_format=torch.channels_last) for t in (inputs, grad))
    turned = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in (inputs, grad))
    for x, g in (last, turned):
        assert torch.equal(sums_of(x, g, geometry), plain)
    assert error(exact, plain) < 1e-6


def test_a_gradient_that_is_expanded_is_read_right() -> None:
    inputs, grad, geometry, _ = example(2, 3, 1, 1, 1, 1, 6, channels=20, outputs=20)
    inputs = inputs.float().to(DEVICE)
    same = grad[:, :, :1, :1].float().to(DEVICE).expand_as(grad)
    sums = fused.fused_sums(inputs, same, geometry)
    assert torch.equal(sums, fused.fused_sums(inputs, same.contiguous(), geometry))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_sample_that_is_not_finite_leaves_the_others_alone() -> None:
    inputs, grad, geometry, exact = example(2, 3, 1, 1, 1, 1, 6, channels=20, outputs=20)
    inputs[1], grad[2] = torch.nan, torch.inf
    sums = sums_of(inputs, grad, geometry).cpu()
    assert not torch.isfinite(sums[1:3]).any()
    torch.testing.assert_close(sums[[0, 3, 4]], exact[[0, 3, 4]].float(), rtol=1e-5, atol=0)


def test_linear_operations_agree_with_one_product_for_each_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reduce, "_fused", lambda _: fused.fused_sums)
    a, g = torch.randn(3, 50, 20, device=DEVICE), torch.randn(3, 50, 70, device=DEVICE)
    exact = torch.stack(
        [(y.double().T @ x.double()).abs().sum(1) for x, y in zip(a, g, strict=True)]
    )
    assert error(exact.cpu(), reduce.linear_sums(a, g)) < 1e-6


def test_a_network_is_measured_as_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, groups=16),
        nn.ReLU(),
        nn.Conv2d(32, 24, 1),
        nn.ConvTranspose2d(24, 8, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()
    images, labels = torch.randn(5, 3, 12, 12), torch.randint(4, (5,))
    exact = filter_saliency(network.double(), images.double(), labels)
    network.float()
    index = FilterIndex.from_model(network)
    used = []

    def counted(*given: object) -> torch.Tensor:
        used.append(given)
        return fused.fused_sums(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(reduce, "_fused", lambda _: counted)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # of the network's own
    network, images, labels = network.to(DEVICE), images.to(DEVICE), labels.to(DEVICE)
    profile = filter_saliency(network, images, labels, index).cpu()
    assert len(used) == 3  # the transposed one and that of a single position have other ways
    for start, end in itertools.pairwise(index.starts):
        assert error(exact[:, start:end], profile[:, start:end]) < 1e-5


@pytest.mark.parametrize("fault", ["it fails", "it is wrong"])
def test_kernels_that_do_not_work_on_a_machine_are_not_used_and_it_is_said(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(inputs: torch.Tensor, grad: torch.Tensor, geometry: object) -> torch.Tensor:
        if fault == "it fails":
            raise RuntimeError("no C compiler")
        return grad.new_zeros(grad.shape[:2])

    assert reduce.fused_on.__wrapped__(DEVICE) is fused.fused_sums
    assert not caplog.records
    monkeypatch.setattr(fused, "fused_sums", broken)
    assert reduce.fused_on.__wrapped__(DEVICE) is None
    said = {"it fails": "RuntimeError: no C compiler", "it is wrong": "its numbers are wrong"}
    assert said[fault] in caplog.text


def test_memory_that_is_short_does_not_put_the_kernels_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def short(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(fused, "fused_sums", short)
    with pytest.raises(torch.OutOfMemoryError):
        reduce.fused_on(DEVICE)
    monkeypatch.undo()
    assert reduce.fused_on(DEVICE) is fused.fused_sums
    reduce.fused_on.cache_clear()


def test_the_cpu_has_no_kernel() -> None:
    assert reduce._fused(torch.zeros(1)) is None
