"""Flagged images: pixels as people know them, maps on top, captions below, few bytes."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2 as transforms

from salmon import InputError, StateError, ViewSettings
from salmon.views import Normalisation, Picture, guess_normalisation
from salmon.views.charts import share_bars
from salmon.views.figures import pixels
from salmon.views.files import read_pictures, write_pictures
from salmon.views.pictures import (
    IMAGENET,
    Pixels,
    coloured,
    contact_sheet,
    encoded,
    enlarged,
    overlay,
    response_sheet,
)
from tests.records import hand_record


def photo(seed: int = 0, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (channels, 20, 30), dtype=torch.uint8, generator=generator)


def extremes(images: list[Tensor]) -> tuple[list[float], list[float]]:
    """Lowest and highest value of each colour."""
    every = torch.stack(images)
    return every.amin((0, 2, 3)).tolist(), every.amax((0, 2, 3)).tolist()


def rows(image: Tensor) -> Pixels:
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.0,) * 3, (1.0,) * 3), ((0.5,) * 3, (0.5,) * 3), IMAGENET, ((0.0,) * 3, (1 / 255,) * 3)],
)
@pytest.mark.parametrize("given", [True, False])
def test_normalised_images_get_their_pixels_back(
    mean: tuple[float, ...], std: tuple[float, ...], given: bool
) -> None:
    images = [photo(seed) for seed in range(3)]
    images[0][:, 0, 0], images[0][:, 0, 1] = 0, 255  # the whole range, as in a data set
    normalise = transforms.Normalize(list(mean), list(std))
    seen = [normalise(image.float() / 255) for image in images]
    found = Normalisation(mean=mean, std=std) if given else guess_normalisation(*extremes(seen))
    for image, value in zip(images, seen, strict=True):
        assert np.array_equal(found.pixels(value), rows(image))


def test_one_normalisation_serves_all_images_of_a_set() -> None:
    bright = [torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), -1.0)]
    shown = [guess_normalisation(*extremes(bright)).pixels(image) for image in bright]
    assert [int(image[0, 0, 0]) for image in shown] == [191, 0]


def test_unknown_ranges_are_stretched_and_odd_values_do_no_harm() -> None:
    image = torch.tensor([[[-7.0, 13.0, torch.nan, torch.inf]]])
    found = guess_normalisation([-7.0], [13.0])
    assert found.pixels(image)[0, :, 0].tolist() == [0, 255, 0, 255]
    assert guess_normalisation([], []).mean == (0.0,)
    flat = torch.full((1, 2, 2), 7000.0)
    assert guess_normalisation([7000.0], [7000.0]).pixels(flat).shape == (2, 2, 3)


def test_whole_numbers_and_grey_images_are_shown_as_they_are() -> None:
    image = photo(channels=1)
    normalisation = Normalisation(mean=(0.1,), std=(0.3,))
    assert np.array_equal(normalisation.pixels(image), rows(image))


def test_a_map_colours_where_it_is_high_only() -> None:
    grey = np.full((2, 2, 3), 100, np.uint8)
    heat = torch.tensor([[0.0, 1.0], [0.5, 0.0]])
    found = overlay(grey, heat)
    assert len(set(found[0, 0].tolist())) == 1  # grey
    assert found[0, 1, 0] > 200 > found[0, 1, 2]  # orange
    assert (found[1, 0] > np.minimum(found[0, 0], found[0, 1])).sum() >= 1


def test_classes_have_colours_and_the_first_one_and_unlabelled_pixels_have_none() -> None:
    white = np.full((4, 6, 3), 255, np.uint8)
    found = coloured(white, torch.tensor([[0, 1, 2], [-1, 1, 8]]))  # of half the size
    grey, one, two, again = found[0, 0], found[0, 2], found[1, 5], found[3, 5]
    assert len(set(grey.tolist())) == 1
    assert np.array_equal(found[2, 0], grey)
    assert np.array_equal(found[3, 3], one)
    assert np.array_equal(again, one)  # there are seven colours
    assert len({tuple(each.tolist()) for each in (grey, one, two)}) == 3


def test_small_images_grow_by_whole_numbers_and_large_ones_shrink() -> None:
    small = rows(photo())
    grown = enlarged(small, 256)
    assert grown.shape == (160, 240, 3)
    assert np.array_equal(grown[::8, ::8], small)
    large = np.zeros((300, 600, 3), np.uint8)
    assert enlarged(large, 256).shape == (128, 256, 3)


def flagged(**changes: Any) -> Picture:
    white = np.full((20, 30, 3), 255, np.uint8)
    one = Picture(
        kind="flagged", sample=1, pixels=white, heat=torch.zeros(20, 30), classes=("cat", "dog"),
        filter="conv1[3]", caption=["id 1"],
    )  # fmt: skip
    return replace(one, **changes)


def test_a_contact_sheet_has_images_maps_and_words_three_in_a_row() -> None:
    sheet = contact_sheet([flagged(), flagged(heat=None), *4 * [flagged(classes=("x" * 300, "y"))]])
    assert sheet.shape[1] == 900
    assert sheet[12:88, 12:128].min() == 255  # the image; its map is grey
    assert sheet[12:88, 154:270].max() < 255
    assert sheet[12:88, 460:590].min() == 255  # the second has none
    assert sheet[150:230, :300].min() < 80
    assert contact_sheet([flagged()]).shape[0] < sheet.shape[0]


def test_a_sheet_shows_masks_between_images_and_maps_two_samples_in_a_row() -> None:
    masks = torch.zeros(20, 30).long(), torch.ones(20, 30).long()
    sheet = contact_sheet([flagged(masks=masks), flagged(masks=masks, heat=None)])
    assert sheet.shape[1] == 1180
    shown = [sheet[50, 60 + 142 * i].tolist() for i in range(4)]
    assert shown[0] == [255, 255, 255]
    assert [len(set(colour)) == 1 for colour in shown] == [True, True, False, True]
    assert sheet[50, 590 + 60 + 3 * 142].min() == 255  # the second has no map


def test_a_sheet_of_responses_has_a_row_per_filter_with_mistakes_left_and_right_samples_right() -> (
    None
):
    heat = torch.ones(20, 30)
    kinds: list[Any] = ["mistake", "mistake", "right"]
    seen = [flagged(kind=kind, heat=heat) for kind in kinds]
    sheet = response_sheet([("conv1[3]: 9 mistakes, 2 expected", seen), ("conv2[1]", seen[:1])])
    assert sheet.shape[1] <= 900
    warm = (sheet == (213, 94, 0)).all(2)
    half, middle = sheet.shape[0] // 2, sheet.shape[1] // 2
    counts = [part[:, cut].sum() for part in (warm[:half], warm[half:])
              for cut in (slice(middle), slice(middle, None))]  # fmt: skip
    assert counts[0] == 2 * counts[1] == 2 * counts[2] > 0
    assert counts[3] == 0


def decoded(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_images_are_stored_exactly_as_photos_or_as_charts() -> None:
    small = rows(photo())
    media, data = encoded(small, "exact")
    assert media == "image/png"
    assert np.array_equal(decoded(data), small)
    smooth = np.linspace(0, 255, 300).astype(np.uint8)[:, None, None].repeat(200, 1).repeat(3, 2)
    media, data = encoded(smooth, "photo")
    assert media == "image/jpeg"
    assert np.abs(decoded(data).astype(int) - smooth).max() < 10
    chart = pixels(share_bars(hand_record()))
    media, data = encoded(chart, "chart")
    assert media == "image/png"
    assert len(data) < len(encoded(chart, "exact")[1]) / 2
    far = np.abs(decoded(data).astype(int) - chart).max(2)
    assert (far > 24).mean() < 0.01  # edges of letters


def pictures(folder: Path) -> Path:
    small = rows(photo())
    heat = torch.rand(20, 30)
    masks = torch.zeros(20, 30).long(), torch.ones(20, 30).long()
    one = flagged(sample=7, pixels=small, heat=heat, masks=masks, caption=["id 7", "..."])
    two = flagged(sample=9, pixels=small, heat=None)
    path = folder / "pictures.jsonl"
    write_pictures(path, 4, [one, two, Picture(kind="thumbnail", sample=7, pixels=small)])
    return path


def test_pictures_are_the_same_after_their_way_to_disk(tmp_path: Path) -> None:
    first, second, thumbnail = read_pictures(pictures(tmp_path))
    assert (first.number, first.sample, first.caption) == (4, 7, ["id 7", "..."])
    assert (first.kind, first.classes, first.filter) == ("flagged", ("cat", "dog"), "conv1[3]")
    assert first.heat is not None
    assert second.heat is None
    assert (len(first.masks), len(second.masks)) == (2, 0)
    assert (thumbnail.sample, thumbnail.kind) == (7, "thumbnail")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"media": "image/png"', '"media": "image/svg+xml"'),
        ('"media": "image/png"', '"media": "image/jpeg"'),
        ('"data": "iVBOR', '"data": "<scri'),
        ('"data": "iVBOR', '"data": "PHN2Z'),
    ],
)
def test_images_that_are_something_else_are_refused(tmp_path: Path, old: str, new: str) -> None:
    path = pictures(tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(StateError, match="holds an image that is none"):
        read_pictures(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pictures": -1}, "pictures is -1"),
        ({"thumbnails": 1.5}, "thumbnails is 1.5"),
        ({"class_names": "cat"}, "class_names is the string"),
        ({"mean": [0.5]}, "mean and std go together"),
        ({"mean": [0.5, 0.5], "std": [1.0, 1.0]}, "one number for all colours or three"),
        ({"mean": [0.5], "std": [0.0]}, "std > 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ViewSettings(**arguments)  # type: ignore[arg-type]
