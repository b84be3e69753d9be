"""Flagged images as people see them: un-normalised, with the saliency map beside and a caption.

Images are ``[C, H, W]`` with one or three colours, as the network got them; maps ``[H, W]`` in
[0, 1]; pixels ``[H, W, 3]`` uint8.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from salmon.views.wording import clipped

Pixels = npt.NDArray[np.uint8]

Kind = Literal["flagged", "thumbnail", "mistake", "right"]
"""A flagged sample, a small image of one; a mistake or a right sample to which a filter responds.
"""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_PAPER, _INK, _FAINT, _WARM = (255, 255, 255), (26, 26, 26), (95, 95, 95), (213, 94, 0)
_CLASSES = (  # Okabe and Ito's, which also the colour-blind tell apart
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (204, 121, 167),
    _WARM,
)  # fmt: skip
_SLACK = 1e-3  # of resized images beyond the range
_CELL = 138  # side of an image on a sheet
_LINE = 27
_MARGIN = 10
_QUALITY = {"photo": 85, "sheet": 60}
_LETTERS = 25  # in a line of a cell


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """An image of a sample."""

    kind: Kind
    sample: int  # position in the pass
    pixels: Pixels
    masks: tuple[Tensor, Tensor] | None = None  # [H, W] true and predicted class of each pixel
    heat: Tensor | None = None  # [H, W] in [0, 1], where filters look
    classes: tuple[str, str] = ("", "")  # true and predicted; or one text, where there are none
    filter: str = ""  # label of the first one, or of the one that responds
    caption: Sequence[str] = ()

    @property
    def overlay(self) -> Pixels | None:
        """The image in grey with its map in colour, where there is one."""
        return None if self.heat is None else overlay(self.pixels, self.heat)

    @property
    def segments(self) -> list[Pixels]:
        """The image in grey with the true classes in colour, and with the predicted ones."""
        return [coloured(self.pixels, classes) for classes in self.masks or ()]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Normalisation:
    """What pixels in [0, 1] became: ``value = (pixel - mean) / std``, per colour or for all."""

    mean: Sequence[float]
    std: Sequence[float]

    def pixels(self, image: Tensor) -> Pixels:
        """Turn an image back into pixels.

        Args:
            image: ``[C, H, W]``, C = 1 or 3; uint8 is taken as it is.

        Returns:
            ``[H, W, 3]``.
        """
        image = image.detach().cpu()
        if image.dtype != torch.uint8:
            mean, std = (
                torch.tensor(each, dtype=torch.float32).view(-1, 1, 1)
                for each in (self.mean, self.std)
            )
            shown = (image.float() * std + mean).nan_to_num(0, 1, 0).clamp(0, 1)
            image = (255 * shown).round().to(torch.uint8)
        return image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()


def guess_normalisation(low: Sequence[float], high: Sequence[float]) -> Normalisation:
    """Guess from the range of all images how they were normalised.

    Args:
        low: ``[C]`` lowest value of each colour; nothing, as of ``high``, where none is known.

    Returns:
        [0, 1] as it is; [0, 255]; [-1, 1]; ImageNet's; else what shows the whole range.
    """
    least, most = min(low, default=0.0), max(high, default=1.0)
    if least >= -_SLACK and most <= 1 + _SLACK:
        return Normalisation(mean=(0.0,), std=(1.0,))
    if least >= 0 and most <= 255:
        return Normalisation(mean=(0.0,), std=(1 / 255,))
    if least >= -1 - _SLACK and most <= 1 + _SLACK:
        return Normalisation(mean=(0.5,), std=(0.5,))
    if len(low) == 3 and _in_imagenet_range(low, high):
        return Normalisation(mean=IMAGENET[0], std=IMAGENET[1])
    spread = max(most - least, torch.finfo(torch.float32).tiny)
    return Normalisation(mean=(-least / spread,), std=(1 / spread,))


def _in_imagenet_range(low: Sequence[float], high: Sequence[float]) -> bool:
    """Whether every colour lies where ImageNet's normalisation puts [0, 1]."""
    return all(
        a >= -mean / std - _SLACK and b <= (1 - mean) / std + _SLACK
        for a, b, mean, std in zip(low, high, *IMAGENET, strict=True)
    )


def overlay(pixels: Pixels, heat: Tensor) -> Pixels:
    """Lay a map over the greyed image, warm where it is high.

    Args:
        heat: ``[H, W]`` in [0, 1].

    Returns:
        ``[H, W, 3]``.
    """
    colour = np.asarray(_WARM, dtype=np.float32)
    return _mixed(pixels, colour, heat.clamp(0, 1).cpu().numpy().astype(np.float32)[:, :, None])


def coloured(pixels: Pixels, classes: Tensor) -> Pixels:
    """Lay classes over the greyed image, each in its colour; 0 and -1 have none.

    Args:
        classes: ``[h, w]`` int64, brought to the size of the image.

    Returns:
        ``[H, W, 3]``.
    """
    sized = torch.nn.functional.interpolate(classes[None, None].double(), pixels.shape[:2])
    numbers = sized[0, 0].long().cpu().numpy()
    colour = np.asarray(_CLASSES, dtype=np.float32)[(numbers - 1) % len(_CLASSES)]
    return _mixed(pixels, colour, np.where(numbers > 0, np.float32(0.6), 0)[:, :, None])


def _mixed(
    pixels: Pixels, colour: npt.NDArray[np.float32], strength: npt.NDArray[np.float32]
) -> Pixels:
    """The image in grey, with a colour in [0, 1] of strength."""
    grey = pixels.astype(np.float32).mean(2, keepdims=True).repeat(3, 2) * 0.6 + 70
    mixed: Pixels = (grey + (colour - grey) * strength).round().astype(np.uint8)
    return mixed


def enlarged(pixels: Pixels, side: int) -> Pixels:
    """Scale an image to a side of about that length, small ones by whole numbers."""
    height, width = pixels.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        factor = max(1, int(factor))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def contact_sheet(pictures: Sequence[Picture]) -> Pixels:
    """Flagged images with their classes and maps beside each other, in rows, worst first."""
    masked = any(picture.masks is not None for picture in pictures)
    columns, wide = (2, 590) if masked else (3, 300)
    rows, high = -(-len(pictures) // columns), _CELL + 3 * _LINE + 2 * _MARGIN
    page = Image.new("RGB", (columns * wide, rows * high + _MARGIN), _PAPER)
    for number, picture in enumerate(pictures):
        left, top = number % columns * wide + _MARGIN, number // columns * high + _MARGIN
        last = [] if picture.overlay is None else [picture.overlay]
        for i, pixels in enumerate([picture.pixels, *picture.segments, *last]):
            _paste(page, pixels, left + (_CELL + 4) * i, top)
        true, predicted = picture.classes
        taken = f"taken for {predicted}" if predicted else ""
        lines = (f"{number + 1}. {true}", taken, picture.filter)
        for i, (text, colour) in enumerate(zip(lines, (_INK, _INK, _FAINT), strict=True)):
            _write(page, left, top + _CELL + 4 + _LINE * i, clipped(text, _LETTERS), colour)
    return np.asarray(page)


def response_sheet(rows: Sequence[tuple[str, Sequence[Picture]]]) -> Pixels:
    """What filters respond to, a row each: in mistakes that blame them, and in right samples.

    Args:
        rows: A sentence on the filter and its pictures, of which the first few of each kind are
            shown.
    """
    each, step = 3, _CELL + 6
    high = _CELL + _LINE + 2 * _MARGIN
    page = Image.new("RGB", (2 * each * step + 3 * _MARGIN, len(rows) * high + 2 * _LINE), _PAPER)
    starts = (_MARGIN, each * step + 2 * _MARGIN)
    for left, text in zip(starts, ("mistakes that blame it", "right samples"), strict=True):
        _write(page, left, 2, text, _FAINT)
    for number, (text, pictures) in enumerate(rows):
        top = number * high + _LINE + _MARGIN
        _write(page, _MARGIN, top, clipped(text, 3 * _LETTERS), _INK)
        for left, kind in zip(starts, ("mistake", "right"), strict=True):
            shown = [one for one in pictures if one.kind == kind][:each]
            for i, one in enumerate(shown):
                pixels = one.pixels if one.overlay is None else one.overlay
                _paste(page, pixels, left + step * i, top + _LINE)
    return np.asarray(page)


def _paste(page: Image.Image, pixels: Pixels, left: int, top: int) -> None:
    """Put an image into a cell."""
    page.paste(Image.fromarray(enlarged(pixels, _CELL)), (left, top))


def _write(page: Image.Image, left: int, top: int, text: str, colour: tuple[int, int, int]) -> None:
    ImageDraw.Draw(page).text((left, top), text, colour, _font(22))


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow, so that pictures look the same everywhere."""
    return ImageFont.load_default(size)


def encoded(pixels: Pixels, how: str) -> tuple[str, bytes]:
    """Store an image in few bytes.

    Args:
        how: "exact"; "photo" or "sheet", with some loss or more; or "chart", with fewer shades.
    """
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if bool((pixels == pixels[:, :, :1]).all()):
        image = image.convert("L")  # the same grey in half the bytes
    if how in _QUALITY:
        image.save(buffer, "JPEG", quality=_QUALITY[how], optimize=True)
        return "image/jpeg", buffer.getvalue()
    if how == "chart" and image.mode == "RGB":  # a third of the bytes and of the time
        image = image.quantize(128, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image.save(buffer, "PNG", compress_level=6)
    return "image/png", buffer.getvalue()
