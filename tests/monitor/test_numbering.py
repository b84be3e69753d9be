"""Where samples stand when several processes share them out, against the real sampler."""

from collections.abc import Iterator
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from lightning_fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
)

from salmon.monitor.distributed import Numbering, PeerError, Processes
from salmon.monitor.loaders import keeps_order


def data(samples: int) -> TensorDataset:
    return TensorDataset(torch.arange(samples))


@hypothesis.given(
    samples=st.integers(1, 60),
    ranks=st.integers(1, 7),
    batch=st.integers(1, 9),
    drop_last=st.booleans(),
)
def test_every_sample_counts_once_however_it_is_shared_out(
    samples: int, ranks: int, batch: int, drop_last: bool
) -> None:
    hypothesis.assume(samples >= ranks or not drop_last)
    seen: list[int] = []
    for rank in range(ranks):
        sampler: Any = DistributedSampler(
            data(samples), ranks, rank, shuffle=False, drop_last=drop_last
        )
        numbering = Numbering(rank, ranks, samples)
        got = list(sampler)
        for start in range(0, len(got), batch):
            part = torch.tensor(got[start : start + batch])
            numbers = numbering.next(len(part))
            fresh = numbers >= 0
            assert torch.equal(numbers[fresh], part[fresh])  # positions are indices
            seen += numbers[fresh].tolist()
    expected = samples // ranks * ranks if drop_last else samples
    assert sorted(seen) == list(range(expected))


def test_batches_of_all_processes_have_numbers_of_their_own() -> None:
    numbers = [Numbering(rank, 3).batch(b) for rank in range(3) for b in range(4)]
    assert sorted(numbers) == list(range(12))


class Picked(Sampler[int]):
    """A part of the data, in an order of its own."""

    def __init__(self, places: list[int]) -> None:
        self.places = places

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


@pytest.mark.parametrize(
    ("sampler", "ordered"),
    [
        (SequentialSampler, True),
        (RandomSampler, False),
        (lambda d: DistributedSampler(d, 2, 0, shuffle=False), True),
        (lambda d: DistributedSampler(d, 2, 0, shuffle=True), False),
        (lambda d: DistributedSamplerWrapper(SequentialSampler(d), num_replicas=2, rank=0), False),
    ],
)
def test_the_order_of_the_data_set_is_known_only_where_the_sampler_keeps_it(
    sampler: Any, ordered: bool
) -> None:
    rows = data(10)
    assert keeps_order(DataLoader(rows, 3, sampler=sampler(rows))) is ordered
    hidden = BatchSampler(sampler(rows), 3, drop_last=False)
    own = type("Own", (BatchSampler,), {})(sampler(rows), 3, False)
    assert keeps_order(DataLoader(rows, batch_sampler=hidden)) is ordered
    assert keeps_order(DataLoader(rows, batch_sampler=own)) is False


def test_one_process_needs_no_others() -> None:
    alone = Processes()
    assert alone.first
    assert alone.objects("x") == ["x"]
    alone.reduce("x", pytest.fail)
    assert alone.on_first(lambda: 3) == alone.together(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        alone.together(lambda: 1 // 0)
    assert issubclass(PeerError, RuntimeError)
