"""Batches that do not fit into memory are measured part by part, to the same numbers."""

import logging
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from salmon import FilterIndex, filter_saliency
from salmon.saliency import logits_of, measure
from salmon.saliency.profile import _as_given
from tests.networks import PlainNet, batch

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")


sizes: list[int] = []
"""Of all forwards; a list on a network would be put back."""


class Cramped(PlainNet):
    """Fails as an allocator does for more than ``room`` samples."""

    def __init__(self, room: int, error: RuntimeError, kind: str = "tensor") -> None:
        super().__init__()
        self.room, self.error, self.kind = room, error, kind
        self.note: Callable[[int], None] = sizes.append

    def forward(self, x: Tensor) -> Any:
        self.note(len(x))
        if len(x) > self.room:
            raise self.error
        logits = super().forward(x)
        if self.kind == "mapping":
            return {"logits": logits, "scale": torch.ones(())}
        return SimpleNamespace(logits=logits) if self.kind == "object" else logits


def cramped(room: int, error: RuntimeError = CUDA, kind: str = "tensor") -> Cramped:
    torch.manual_seed(0)
    return Cramped(room, error, kind).double().eval()


@pytest.mark.parametrize("error", [CUDA, CPU], ids=["cuda", "cpu"])
@pytest.mark.parametrize("kind", ["tensor", "mapping", "object"])
@pytest.mark.parametrize("room", [1, 2, 4])
def test_parts_give_the_numbers_of_the_whole(room: int, kind: str, error: RuntimeError) -> None:
    inputs, targets = batch(7)
    inputs = inputs.double()
    whole = measure(cramped(7), inputs, targets)
    parts = measure(cramped(room, error, kind), inputs, targets)
    torch.testing.assert_close(parts.profile, whole.profile, rtol=1e-10, atol=0)
    torch.testing.assert_close(parts.losses, whole.losses, rtol=1e-12, atol=0)
    torch.testing.assert_close(logits_of(parts.output), whole.output, rtol=1e-12, atol=0)


def test_a_real_allocator_that_refuses_is_understood() -> None:
    # Half of the machine's memory per sample, never touched: one sample fits, many do not.
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2

    class Huge(PlainNet):
        def forward(self, x: Tensor) -> Tensor:
            torch.empty((len(x), half), dtype=torch.uint8)
            return super().forward(x)

    try:
        torch.empty((12, half), dtype=torch.uint8)
    except RuntimeError:
        pass
    else:
        pytest.skip("this system promises more memory than it has")
    torch.manual_seed(0)
    network = Huge().double().eval()
    inputs, targets = batch(12)
    found = filter_saliency(network, inputs.double(), targets)
    plain = PlainNet().double().eval()
    plain.load_state_dict(network.state_dict())
    exact = filter_saliency(plain, inputs.double(), targets)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=0)


def test_later_batches_begin_with_the_size_that_fitted(caplog: pytest.LogCaptureFixture) -> None:
    network, (inputs, targets) = cramped(2), batch(7)
    with caplog.at_level(logging.WARNING):
        filter_saliency(network, inputs.double(), targets)
        sizes.clear()
        filter_saliency(network, inputs.double(), targets)
    assert sizes == [1, 2, 2, 2, 1]  # the first one looks for filters
    assert [record.message for record in caplog.records] == [
        "Memory is short for the saliency of 7 samples at once; going on with 4.",
        "Memory is short for the saliency of 4 samples at once; going on with 2.",
    ]


def test_one_sample_that_does_not_fit_and_other_errors_are_raised() -> None:
    inputs, targets = batch(3)
    with pytest.raises(torch.OutOfMemoryError):
        filter_saliency(cramped(0), inputs.double(), targets)
    network = cramped(0, RuntimeError("shapes do not fit"))
    index = FilterIndex.from_model(network)
    sizes.clear()
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        filter_saliency(network, inputs.double(), targets, index)
    assert sizes == [3, 3]  # images as they are, too, not with their channels last in memory
    assert network not in _as_given  # since that was not the reason
