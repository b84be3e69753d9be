"""Samples in memory and their split."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from salmon import InputError, Samples
from salmon.repairs.samples import PARTS, check_sizes

SHARES = (0.4, 0.3, 0.3)


def labelled(targets: list[int], ids: list[int | str] | None = None) -> Samples:
    names = tuple(range(len(targets))) if ids is None else tuple(ids)
    return Samples(torch.arange(len(targets)).float()[:, None], torch.tensor(targets), names)


def parts_of(samples: Samples, seed: int) -> dict[str, Samples]:
    return {name: samples.take(rows) for name, rows in samples.split(SHARES, seed).items()}


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(0, 5))
@settings(deadline=None)
def test_every_sample_is_in_one_part(targets: list[int], seed: int) -> None:
    parts = parts_of(labelled(targets), seed)
    assert list(parts) == list(PARTS)
    assert sorted(i for part in parts.values() for i in part.ids) == list(range(len(targets)))


@given(st.integers(0, 50))
@settings(deadline=None)
def test_parts_have_the_shares_of_every_class(seed: int) -> None:
    targets = [0] * 200 + [1] * 50 + [2] * 10
    parts = parts_of(labelled(targets), seed)
    for share, part in zip(SHARES, parts.values(), strict=True):
        for label, count in ((0, 200), (1, 50), (2, 10)):
            assert abs(int((part.targets == label).sum()) - share * count) <= 2
        assert abs(len(part) - share * 260) <= 1


def test_a_split_depends_on_seed_and_ids_only() -> None:
    targets = [i % 3 for i in range(90)]
    one, other = parts_of(labelled(targets), 0), parts_of(labelled(targets), 1)
    assert one["guard"].ids != other["guard"].ids
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    shuffled = parts_of(labelled(targets).take(order), 0)
    for name in PARTS:
        assert set(shuffled[name].ids) == set(one[name].ids)


def test_repeats_of_a_sample_stay_together() -> None:
    parts = parts_of(labelled([0] * 60, [f"image {i % 20}" for i in range(60)]), 0)
    for name, part in parts.items():
        others = {i for other in PARTS if other != name for i in parts[other].ids}
        assert not set(part.ids) & others


def test_too_few_samples_say_how_many_are_needed() -> None:
    parts = parts_of(labelled([0, 1] * 25), 0)
    with pytest.raises(InputError, match=r"15 in guard, 15 in accept.*about 100 samples in all"):
        check_sizes(parts, 30, "new")
    check_sizes(parts, 15, "new")


def test_samples_are_collected_from_a_loader() -> None:
    images, targets = torch.randn(50, 2), torch.arange(50) % 3
    loader = DataLoader(TensorDataset(images, targets), 8)
    found = Samples.collect(loader)
    assert torch.equal(found.inputs, images)
    assert torch.equal(found.targets, targets)
    assert found.ids == tuple(range(50))


def test_a_limit_keeps_the_same_samples_in_any_order() -> None:
    images, targets = torch.randn(50, 2), torch.arange(50) % 3
    names = torch.arange(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))

    def collect(rows: torch.Tensor, batch: int) -> Samples:
        data = DataLoader(TensorDataset(images[rows], targets[rows], names[rows]), batch)
        return Samples.collect(
            data, unpack=lambda b: (b[0], b[1]), ids=lambda b: b[2], most=12, seed=3
        )

    one, other = collect(torch.arange(50), 8), collect(order, 5)
    assert len(one) == 12
    assert one.ids == other.ids
    assert torch.equal(one.inputs, other.inputs)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "gave no samples"),
        (
            [(torch.zeros(2, 2), torch.zeros(2)), (torch.zeros(1, 3), torch.zeros(1))],
            r"shapes \(2,\), \(3,\); a repair needs",
        ),
        ([(torch.zeros(3, 2), torch.zeros(2).long())], "one label per input"),
    ],
)
def test_data_that_do_not_fit_are_refused(
    batches: list[tuple[torch.Tensor, torch.Tensor]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Samples.collect(batches)
    with pytest.raises(InputError, match="ids gave 1 ids for a batch of 3"):
        Samples.collect([(torch.zeros(3, 2), torch.zeros(3).long())], ids=lambda _: [1])
