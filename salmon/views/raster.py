"""Drawings as pixels, for loggers that take pictures."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from salmon.views.drawing import DASHES, Box, Dot, Drawing, Grid, Line, Words
from salmon.views.palette import LIGHT, Colour, mixed

Pixels = npt.NDArray[np.uint8]

SCALE = 2  # pixels per length, so that text stays sharp when enlarged

_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def pixels(drawing: Drawing, scale: int = SCALE) -> Pixels:
    """Draw on white paper.

    Args:
        drawing: What to show.
        scale: Pixels per length of the drawing.

    Returns:
        ``[height, width, 3]`` uint8.
    """
    size = (round(drawing.width * scale), round(drawing.height * scale))
    image = Image.new("RGB", size, LIGHT["paper"])
    brush = ImageDraw.Draw(image)
    for shape in drawing.shapes:
        match shape:
            case Box():
                _box(brush, shape, scale)
            case Grid():
                for box in _cells(shape):
                    _box(brush, box, scale)
            case Dot():
                x, y, r = shape.x * scale, shape.y * scale, shape.radius * scale
                brush.ellipse((x - r, y - r, x + r, y + r), fill=LIGHT[shape.paint])
            case Line():
                _line(brush, shape, scale)
            case Words():
                _words(image, brush, shape, scale)
    return np.asarray(image)


@lru_cache(maxsize=32)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow, so that pictures look the same everywhere.

    Args:
        size: In pixels.

    Returns:
        The font.
    """
    return ImageFont.load_default(size)


def _box(brush: ImageDraw.ImageDraw, box: Box, scale: int) -> None:
    """A filled rectangle; nothing where it has no area."""
    if box.width <= 0 or box.height <= 0:
        return
    x, y = box.x * scale, box.y * scale
    end = (x + box.width * scale - 1, y + box.height * scale - 1)
    brush.rectangle(
        (x, y, max(x, end[0]), max(y, end[1])),
        fill=mixed(LIGHT[box.paint], LIGHT["paper"], box.strength),
    )


def _cells(grid: Grid) -> Iterator[Box]:
    """The cells that have a number."""
    for row, strengths in enumerate(grid.rows):
        for column, strength in enumerate(strengths):
            if strength > 0:  # neither NaN nor the shade of the paper
                yield Box(
                    grid.x + column * grid.width, grid.y + row * grid.height,
                    grid.width, grid.height - 0.5, grid.paint, strength,
                )  # fmt: skip


def _line(brush: ImageDraw.ImageDraw, line: Line, scale: int) -> None:
    """A line, in its dashes."""
    points = [(x * scale, y * scale) for x, y in line.points]
    width, colour = max(1, round(line.width * scale)), LIGHT[line.paint]
    pattern = [length * scale for length in DASHES[line.dash]]
    if not pattern:
        brush.line(points, fill=colour, width=width, joint="curve")
        return
    place, left = 0, pattern[0]  # in the pattern; they go on over the corners
    for (x0, y0), (x1, y1) in pairwise(points):
        length, at = float(np.hypot(x1 - x0, y1 - y0)), 0.0
        while at < length:
            end = min(length, at + left)
            if place % 2 == 0:
                part = [(x0 + (x1 - x0) * s / length, y0 + (y1 - y0) * s / length)
                        for s in (at, end)]  # fmt: skip
                brush.line(part, fill=colour, width=width)
            left -= end - at
            at = end
            if left <= 0:
                place = (place + 1) % len(pattern)
                left = pattern[place]


def _words(image: Image.Image, brush: ImageDraw.ImageDraw, words: Words, scale: int) -> None:
    """A line of text, upright ones by way of a picture of their own."""
    chosen = font(round(words.size * scale))
    colour: Colour = LIGHT[words.paint]
    x, y = words.x * scale, words.y * scale
    if not words.upright:
        anchor = _ANCHORS[words.anchor]
        brush.text((x, y), words.text, colour, chosen, anchor)
        return
    width = max(1, round(brush.textlength(words.text, font=chosen)))
    height = round(words.size * scale * 1.4)
    strip = Image.new("L", (width, height), 0)
    ImageDraw.Draw(strip).text((0, height * 0.75), words.text, 255, chosen, "ls")
    turned = strip.rotate(90, expand=True)
    shift = {"start": width, "middle": width / 2, "end": 0}[words.anchor]
    image.paste(colour, (round(x - height * 0.75), round(y - shift)), turned)
