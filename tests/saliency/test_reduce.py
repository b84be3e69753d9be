"""Each reduction strategy alone, against per-sample autograd of one convolution."""

import itertools

import pytest
import torch

from salmon.saliency import reduce
from tests.saliency.convolutions import example

STRATEGIES = {
    name: getattr(reduce, name) for name in ("pointwise", "taps", "depthwise", "singly", "grouped")
}
UNGROUPED = list(itertools.product([1, 2, 3], [2, 3], [1, 2], [0, 1, 2], [1, 2], [5, 7]))


@pytest.mark.parametrize("strategy", ["taps", "singly", "grouped"])
def test_ungrouped_convolutions_match_autograd(strategy: str) -> None:
    for dims, kernel, stride, padding, dilation, size in UNGROUPED:
        inputs, grad, geometry, exact = example(dims, kernel, stride, padding, dilation, 1, size)
        sums = STRATEGIES[strategy](inputs, grad, geometry)
        torch.testing.assert_close(sums, exact, rtol=1e-10, atol=0)


@pytest.mark.parametrize("strategy", ["pointwise", "taps", "singly", "grouped"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_kernels_of_one_match_autograd(strategy: str, stride: int, dims: int) -> None:
    inputs, grad, geometry, exact = example(dims, 1, stride, 0, 1, 1, 6)
    sums = STRATEGIES[strategy](inputs, grad, geometry)
    torch.testing.assert_close(sums, exact, rtol=1e-10, atol=0)


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_grouped_and_transposed_convolutions_match_autograd(
    groups: int,
    transposed: bool,
    dims: int,
) -> None:
    outputs_fit = 2 if groups == 4 else groups  # 6 outputs divide into 2 groups
    inputs, grad, geometry, exact = example(
        dims, 3, 2, 1, 1, outputs_fit, 6, channels=4, transposed=transposed
    )
    sums = reduce.filter_sums(inputs, grad, geometry)
    torch.testing.assert_close(sums, exact, rtol=1e-10, atol=0)


@pytest.mark.parametrize("strategy", ["depthwise", "grouped"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_depthwise_convolutions_match_autograd(strategy: str, dims: int) -> None:
    for stride, padding, dilation, size in itertools.product([1, 2], [0, 1, 2], [1, 2], [5, 6]):
        inputs, grad, geometry, exact = example(
            dims, 3, stride, padding, dilation, 6, size, channels=6
        )
        sums = STRATEGIES[strategy](inputs, grad, geometry)
        torch.testing.assert_close(sums, exact, rtol=1e-10, atol=0)


@pytest.mark.parametrize("size", [1, 2])
def test_kernels_larger_than_the_image_match_autograd(size: int) -> None:
    # A 3x3 kernel on 1x1 has one tap inside: the product of two vectors.
    inputs, grad, geometry, exact = example(2, 3, 1, 1, 1, 1, size)
    for strategy in ("taps", "singly", "grouped"):
        sums = STRATEGIES[strategy](inputs, grad, geometry)
        torch.testing.assert_close(sums, exact, rtol=1e-10, atol=0)


def test_small_buffers_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, grad, geometry, exact = example(2, 3, 1, 1, 1, 1, 7)
    monkeypatch.setattr(reduce, "BUFFER_ELEMENTS", 50)
    monkeypatch.setattr(reduce, "GROUPED_ELEMENTS", 500)
    for strategy in ("taps", "singly", "grouped"):
        sums = STRATEGIES[strategy](inputs, grad, geometry)
        torch.testing.assert_close(sums, exact, rtol=1e-10, atol=0)


def test_channels_last_inputs_match_autograd() -> None:
    inputs, grad, geometry, exact = example(2, 3, 1, 1, 1, 1, 7)
    inputs, grad = (t.to(memory_format=torch.channels_last) for t in (inputs, grad))
    for strategy in ("taps", "singly", "grouped"):
        sums = STRATEGIES[strategy](inputs, grad, geometry)
        torch.testing.assert_close(sums, exact, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("kernel", "channels", "size", "groups", "expected"),
    [
        (1, 32, 20, 1, "pointwise"),
        (3, 32, 8, 1, "taps"),
        (3, 3, 8, 1, "grouped"),  # few channels
        (3, 3, 32, 1, "singly"),  # very many positions
        (3, 32, 20, 1, "grouped"),  # many positions
        (3, 32, 8, 2, "grouped"),
        (3, 6, 8, 6, "grouped"),
        (3, 6, 2, 6, "depthwise"),  # few positions
        (5, 6, 8, 6, "depthwise"),  # many taps
        (5, 6, 21, 6, "grouped"),
    ],
)
def test_the_strategy_follows_from_the_shape(
    kernel: int, channels: int, size: int, groups: int, expected: str
) -> None:
    inputs, grad, geometry, exact = example(
        2, kernel, 1, kernel // 2, 1, groups, size, channels=channels
    )
    assert reduce.strategy_for(inputs, grad, geometry) is STRATEGIES[expected]
    torch.testing.assert_close(
        reduce.filter_sums(inputs, grad, geometry), exact, rtol=1e-10, atol=0
    )
