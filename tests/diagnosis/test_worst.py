"""The worst mistakes of a pass: the same for any split into batches, and nothing but them."""

from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset
from torchvision.transforms import v2 as transforms

from salmon import ViewSettings
from salmon.diagnosis.reservoir import priorities
from salmon.diagnosis.worst import MOST_RIGHT, MOST_WRONG, WorstSamples, find_images, shrunk
from salmon.monitor.facts import class_names, normalisation


def samples(count: int, size: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, targets, losses, and who is wrong."""
    generator = torch.Generator().manual_seed(count)
    return (
        torch.randn(count, 3, size, size, generator=generator),
        torch.arange(count),
        torch.rand(count, generator=generator),
        torch.rand(count, generator=generator) < 0.6,
    )


def collected(worst: WorstSamples, sizes: list[int], count: int = 40) -> WorstSamples:
    """Take the samples in batches of these sizes."""
    inputs, targets, losses, wrong = samples(count)
    start = 0
    while start < count:
        size = sizes[start % len(sizes)]
        part = slice(start, min(start + size, count))
        glimpse = worst.look(
            inputs[part],
            targets[part],
            losses[part],
            wrong[part],
            ~wrong[part],
            torch.arange(count)[part],
        )
        if glimpse is not None:
            worst.keep(glimpse, torch.arange(count)[part])
        start += size
    return worst


def by_hand(count: int, most: int) -> list[int]:
    """Positions of the wrong samples of the highest losses, worst first."""
    _, _, losses, wrong = samples(count)
    return sorted(wrong.nonzero().squeeze(1).tolist(), key=lambda i: -float(losses[i]))[:most]


@hypothesis.given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_any_split_keeps_the_same_samples(sizes: list[int]) -> None:
    worst = collected(WorstSamples(3, 7), sizes)
    assert [one.sample for one in worst.pictures] == by_hand(40, 3)
    assert list(worst.thumbnails) == by_hand(40, 7)
    inputs = samples(40)[0]
    for one in worst.pictures:
        assert torch.equal(one.inputs, inputs[one.sample : one.sample + 1])
        assert one.targets.tolist() == [one.sample]
    for number, image in worst.thumbnails.items():
        assert torch.equal(image, inputs[number])


@hypothesis.given(cut=st.integers(1, 39))
def test_merged_parts_keep_what_the_whole_keeps(cut: int) -> None:
    inputs, targets, losses, wrong = samples(40)
    whole, numbers = WorstSamples(3, 7), torch.arange(40)
    for part in (slice(cut), slice(cut, None)):
        one = WorstSamples(3, 7)
        glimpse = one.look(
            inputs[part], targets[part], losses[part], wrong[part], ~wrong[part], numbers[part]
        )
        assert glimpse is not None
        one.keep(glimpse, numbers[part])
        whole.merge(one)
    assert [one.sample for one in whole.pictures] == by_hand(40, 3)
    assert list(whole.thumbnails) == by_hand(40, 7)
    assert whole.extremes == collected(WorstSamples(3, 7), [40]).extremes


@hypothesis.given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_any_split_keeps_the_same_samples_that_are_chosen_by_chance(sizes: list[int]) -> None:
    inputs, _, _, wrong = samples(40)
    luck = priorities(torch.arange(40), 0).double()
    kept = collected(WorstSamples(3, 7), sizes)
    for found, flags, most in ((kept.right, ~wrong, MOST_RIGHT), (kept.wrong, wrong, MOST_WRONG)):
        least = min(most, int(flags.sum()))
        expected = luck.where(flags, -torch.inf).topk(least).indices.tolist()
        assert [one.sample for one in found] == expected
        for one in found:
            assert torch.equal(one.inputs, inputs[one.sample : one.sample + 1])


def test_inputs_without_images_are_not_kept() -> None:
    worst, wrong = WorstSamples(3, 7), torch.ones(4, dtype=torch.bool)
    table = torch.rand(4, 5)
    assert worst.look(table, torch.zeros(4), torch.ones(4), wrong, ~wrong, torch.arange(4)) is None


def test_samples_that_are_right_or_have_no_loss_are_never_kept() -> None:
    worst = WorstSamples(5, 5)
    losses = torch.tensor([9.0, torch.nan, 1.0, torch.inf])
    wrong = torch.tensor([False, True, True, True])
    glimpse = worst.look(
        torch.zeros(4, 3, 2, 2), torch.zeros(4), losses, wrong, ~wrong, torch.arange(4)
    )
    assert glimpse is not None
    worst.keep(glimpse, torch.arange(4))
    assert [one.sample for one in worst.pictures] == [3, 2]


def test_nothing_is_looked_at_where_nothing_is_wanted() -> None:
    inputs, targets, losses, wrong = samples(4)
    assert WorstSamples(0, 0).look(
        inputs, targets, losses, wrong, ~wrong, torch.arange(len(wrong))
    ) is None  # fmt: skip
    only = collected(WorstSamples(0, 4), [6])
    assert only.pictures == []
    assert list(only.thumbnails) == by_hand(40, 4)
    assert list(collected(WorstSamples(4, 0), [6]).thumbnails) == by_hand(40, 4)


def test_images_of_other_sizes_and_other_inputs_are_kept_as_they_are() -> None:
    worst = WorstSamples(4, 4)
    for start, size in ((0, 4), (2, 6)):
        inputs = {"image": torch.full((2, 1, size, size), float(size)), "age": torch.ones(2, 5)}
        glimpse = worst.look(
            inputs, torch.zeros(2), torch.ones(2), torch.ones(2) > 0, torch.ones(2) < 0,
            torch.arange(start, start + 2),
        )  # fmt: skip
        assert glimpse is not None
        worst.keep(glimpse, torch.arange(start, start + 2))
    shapes = [tuple(one.inputs["image"].shape) for one in worst.pictures]
    assert shapes == [(1, 1, 4, 4)] * 2 + [(1, 1, 6, 6)] * 2  # equal losses by position
    assert worst.pictures[0].inputs["age"].shape == (1, 5)


def test_what_is_kept_holds_no_memory_of_its_batch() -> None:
    worst = collected(WorstSamples(3, 3), [40])
    for kept in (*(one.inputs for one in worst.pictures), *worst.thumbnails.values()):
        assert kept.untyped_storage().nbytes() == kept.nbytes


@hypothesis.given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_the_range_is_that_of_all_images_right_ones_too(sizes: list[int]) -> None:
    inputs = samples(40)[0].double()
    low, high = collected(WorstSamples(3, 7), sizes).extremes or ([], [])
    assert low == inputs.amin((0, 2, 3)).tolist()
    assert high == inputs.amax((0, 2, 3)).tolist()


def test_broken_images_and_other_numbers_of_colours_do_not_spoil_the_range() -> None:
    worst = WorstSamples(1, 1)
    for number, images in enumerate((
        torch.full((1, 3, 2, 2), torch.nan), torch.rand(1, 3, 2, 2) / 2,
        torch.full((1, 3, 2, 2), torch.inf), torch.full((1, 1, 2, 2), 9.0),
        torch.full((1, 3, 2, 2), 200, dtype=torch.uint8),
    )):  # fmt: skip
        glimpse = worst.look(
            images, torch.zeros(1), torch.ones(1), torch.ones(1) > 0, torch.ones(1) < 0,
            torch.tensor([number]),
        )  # fmt: skip
        assert glimpse is not None
        worst.keep(glimpse, torch.tensor([number]))
    assert worst.extremes is not None
    assert max(worst.extremes[1]) <= 0.5


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        (torch.zeros(2, 3, 5, 5), (2, 3, 5, 5)),
        ((torch.zeros(2, 4), torch.zeros(2, 1, 5, 5)), (2, 1, 5, 5)),
        ({"x": torch.zeros(2, 7, 5, 5)}, None),
        ({"mask": torch.zeros(2, 1, 9, 9), "x": torch.zeros(2, 3, 5, 5)}, (2, 3, 5, 5)),
        (torch.zeros(2, 3, 5), None),
        ("text", None),
    ],
)
def test_images_are_found_by_their_shape(inputs: Any, shape: tuple[int, ...] | None) -> None:
    found = find_images(inputs)
    assert (None if found is None else tuple(found.shape)) == shape


def test_thumbnails_are_small_and_keep_their_proportions() -> None:
    assert shrunk(torch.zeros(2, 3, 96, 192)).shape == (2, 3, 24, 48)
    assert shrunk(torch.zeros(2, 3, 500, 2)).shape == (2, 3, 48, 1)
    whole = torch.randint(256, (1, 3, 96, 96), dtype=torch.uint8)
    assert shrunk(whole).dtype == torch.uint8
    blocks = whole.float().unflatten(3, (48, 2)).unflatten(2, (48, 2)).mean((3, 5))
    assert torch.equal(shrunk(whole), blocks.round().to(torch.uint8))
    small = torch.randn(1, 3, 8, 8)
    assert shrunk(small).data_ptr() != small.data_ptr()


class Named(TensorDataset):
    """As torchvision's data sets are."""

    def __init__(self, transform: Any = None) -> None:
        super().__init__(torch.zeros(4, 3, 2, 2), torch.zeros(4))
        self.classes = ["cat", "dog"]
        self.transform = transform


NORMALISE = transforms.Normalize([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def loader(data: Any) -> DataLoader[Any]:
    return DataLoader(data, 2)


def test_class_names_are_those_given_else_those_of_the_data_set() -> None:
    plain = TensorDataset(torch.zeros(2))
    assert class_names(loader(Named()), ViewSettings()) == ["cat", "dog"]
    assert class_names(loader(Subset(Named(), [0, 1])), ViewSettings()) == ["cat", "dog"]
    both: Any = ConcatDataset([plain, Named()])
    assert class_names(loader(both), ViewSettings()) == ["cat", "dog"]
    assert class_names(loader(plain), ViewSettings()) is None
    imagenet: Any = Named()
    imagenet.classes = [("tench", "Tinca tinca"), ("crane", "bird"), ("crane", "machine"), "cat"]
    assert class_names(loader(imagenet), ViewSettings()) == [
        "tench", "crane, bird", "crane, machine", "cat",
    ]  # fmt: skip
    imagenet.classes = [("tench",), 3]
    assert class_names(loader(imagenet), ViewSettings()) is None
    assert class_names([1, 2], ViewSettings()) is None
    given = ViewSettings(class_names=["a", "b"])
    assert class_names(loader(Named()), given) == ["a", "b"]
    odd = Named()
    odd.classes = 10  # type: ignore[assignment]
    assert class_names(loader(odd), ViewSettings()) is None


@pytest.mark.parametrize(
    "transform",
    [
        NORMALISE,
        transforms.Compose([transforms.Resize(2), NORMALISE]),
        [transforms.Compose([NORMALISE])],
        torch.nn.Sequential(transforms.Resize(2), NORMALISE),
        {"val": transforms.Compose([NORMALISE])},
    ],
)
def test_the_normalisation_is_that_of_the_transforms(transform: Any) -> None:
    for data in (Named(transform), Subset(Named(transform), [0])):
        found = normalisation(loader(data), ViewSettings())
        assert found is not None
        assert list(found.mean) == pytest.approx([0.1, 0.2, 0.3])
        assert list(found.std) == pytest.approx([0.4, 0.5, 0.6])


def test_a_given_normalisation_goes_first_and_an_unknown_one_is_guessed_later() -> None:
    given = normalisation(loader(Named(NORMALISE)), ViewSettings(mean=[0.5], std=[0.25]))
    assert given is not None
    assert list(given.mean) == [0.5]
    assert normalisation(loader(Named(transforms.Resize(2))), ViewSettings()) is None
    loop = transforms.Compose([transforms.Resize(2)])
    loop.transforms.append(loop)
    assert normalisation(loader(Named(loop)), ViewSettings()) is None
