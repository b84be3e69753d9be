"""Figures of matplotlib in one style, as pixels for loggers and as vector graphics for a page.

pyplot is not used, and matplotlib's settings are the user's own again when a function returns.
Lengths are points; y counts from the top.
"""

import io
import math
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from xml.etree import ElementTree

import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from salmon.views.pictures import Pixels
from salmon.views.wording import clipped

LIGHT = {
    "paper": "#ffffff", "ink": "#1a1a1a", "faint": "#5f5f5f", "grid": "#e0e0e0",
    "series0": "#0072b2", "series1": "#d55e00", "series2": "#009e73", "series3": "#cc79a7",
    "series4": "#56b4e9", "series5": "#e69f00", "series6": "#6e6e6e", "series7": "#965a14",
}  # fmt: skip
"""Colours on light paper. The series are those of Okabe and Ito (2008), "Color Universal Design",
which most colour-blind people can tell apart."""

DARK = LIGHT | {
    "paper": "#181a1d", "ink": "#ebebeb", "faint": "#a8a8a8", "grid": "#3e4044",
    "series0": "#40a0e0", "series1": "#f07e28", "series2": "#28be91", "series6": "#a0a0a0",
    "series7": "#be823c",
}  # fmt: skip
"""The same on dark paper, the darkest lightened."""

SERIES = [LIGHT[f"series{i}"] for i in range(8)]
SMALL = 11.0  # font size
_WIDTH = 450.0  # of all figures; a card of TensorBoard shows it at 350 pixels
_DPI = 144  # two pixels a point
_EDGE = 3  # pixels around stored words
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 12.0,
    "text.parse_math": False,  # names may hold dollars
    "text.color": LIGHT["ink"],
    "axes.linewidth": 1.5,
    "axes.edgecolor": LIGHT["faint"],
    "figure.facecolor": LIGHT["paper"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_PROPERTIES = {colour: f"var(--{name},{colour})" for name, colour in LIGHT.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Chart:
    """A figure, with a title and a description for those who cannot see it."""

    title: str
    description: str
    figure: Figure


@contextmanager
def styled(**settings: Any) -> Iterator[None]:
    """Make matplotlib's settings ours, whatever the user's are, until the context ends."""
    # matplotlib warns of letters that its font lacks; they show as boxes.
    with warnings.catch_warnings(), matplotlib.style.context(["default", _STYLE | settings]):
        warnings.simplefilter("ignore", UserWarning)
        yield


def blank(heading: str, height: float) -> Figure:
    """A figure with nothing but its heading."""
    figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=_DPI)
    words(figure, 8, 19, heading, size=13, weight="bold")
    return figure


def words(figure: Figure, x: float, y: float, text: str, **look: Any) -> None:
    """Write on a figure; y is the base line."""
    figure.text(x / _WIDTH, 1 - y / (72 * figure.get_figheight()), text, **look)


def fitted(name: str, width: float, size: float = 12) -> str:
    """A name in one line of letters that can be shown, shortened in its middle to a width."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(name.split()))
    font = FontProperties(size=size)
    letters = min(len(text), int(4 * width / size))  # if all were narrow
    while letters > 1 and _points(_measured(clipped(text, letters), font)[0]) > width:
        letters -= 1
    return clipped(text, letters)


def line_at(figure: Figure, x: tuple[float, float], y: float, **look: Any) -> None:
    """Draw a level line on a figure."""
    height = 1 - y / (72 * figure.get_figheight())
    line = Line2D([each / _WIDTH for each in x], [height, height], solid_capstyle="butt", **look)
    line.set_transform(figure.transSubfigure)
    figure.add_artist(line)


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes that fill a rectangle."""
    whole = 72 * figure.get_figheight()
    box = (left / _WIDTH, 1 - (top + height) / whole, width / _WIDTH, height / whole)
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    axes.xaxis.set_visible(False)
    axes.yaxis.set_visible(False)
    return axes


def name_rows(axes: Axes, places: Iterable[float], names: Iterable[str], **look: Any) -> None:
    """Write left of axes, at the same height as data: a tenth of the time that ticks take."""
    at, left = axes.get_yaxis_transform(), -5 / _points(axes.bbox.width)
    for place, name in zip(places, names, strict=True):
        axes.text(left, place, name, ha="right", va="center", transform=at, **look)


def name_columns(axes: Axes, places: Iterable[float], names: Iterable[str], **look: Any) -> None:
    """Write below axes."""
    at, low = axes.get_xaxis_transform(), -5 / _points(axes.bbox.height)
    for place, name in zip(places, names, strict=True):
        axes.text(place, low, name, ha="center", va="top", transform=at, **look)


def numbers_between(limits: tuple[float, float], most: int, *, whole: bool = False) -> list[float]:
    """Round numbers for an axis."""
    locator = MaxNLocator(most, integer=whole, steps=[1, 2, 5, 10])
    found = map(float, locator.tick_values(*limits))
    return [value for value in found if limits[0] <= value <= limits[1]]


def _points(pixels: float) -> float:
    """A length in points."""
    return pixels * 72 / _DPI


def pixels(chart: Chart) -> Pixels:
    """Draw on white paper: ``[H, 900, 3]``."""
    width, height = (chart.figure.get_size_inches() * _DPI).round()
    size = (int(width), int(height))
    renderer: Any = _Renderer(*size, _DPI)  # type: ignore[no-untyped-call]
    with styled():
        chart.figure.draw(renderer)
    return np.asarray(Image.frombuffer("RGBA", size, renderer.buffer_rgba()).convert("RGB"))


class _Renderer(RendererAgg):
    """Agg, with words from a store: they take nine tenths of the time, and most come again."""

    def draw_text(self, gc: Any, x: float, y: float, s: str, prop: Any, *_: Any, **__: Any) -> None:
        """Put level words on the figure."""
        picture, below = _written(s, prop.copy(), gc.get_rgb()[:3])
        self.draw_image(gc, round(x) - _EDGE, int(self.height) - round(y) - below, picture)

    def get_text_width_height_descent(
        self, s: str, prop: Any, ismath: Any
    ) -> tuple[float, float, float]:
        """Measure words, in pixels."""
        return _measured(s, prop.copy())


@lru_cache(4096)
def _measured(text: str, font: FontProperties) -> tuple[float, float, float]:
    """Width, height and depth of words, in pixels."""
    plain: Any = RendererAgg(1, 1, _DPI)
    size: tuple[float, float, float] = plain.get_text_width_height_descent(text, font, ismath=False)
    return size


@lru_cache(512)
def _written(
    text: str, font: FontProperties, colour: tuple[float, float, float]
) -> tuple[npt.NDArray[np.uint8], int]:
    """Words in their colour, ``[H, W, 4]`` from below, and how far they reach below the line."""
    width, height, depth = map(math.ceil, _measured(text, font))
    below = depth + _EDGE
    renderer = RendererAgg(width + 2 * _EDGE, height + 2 * _EDGE, _DPI)
    gc = renderer.new_gc()
    gc.set_foreground(colour)
    renderer.draw_text(gc, _EDGE, height + 2 * _EDGE - below, text, font, 0)
    picture = np.asarray(renderer.buffer_rgba())[::-1].copy()
    picture[:, :, :3] = [round(255 * each) for each in colour]
    if font.get_weight() != "bold":
        for axis in (0, 1):  # cards of TensorBoard leave out three pixels of five: thin strokes
            picture[:, :, 3] = np.maximum(picture[:, :, 3], np.roll(picture[:, :, 3], 1, axis))
    return picture, below


def svg(chart: Chart, name: str) -> str:
    """Draw as an ``<svg>`` element for a page that defines :data:`LIGHT` as custom properties.

    Args:
        name: Part of all ids, to tell them from those of other charts on the page.

    Returns:
        The same text for the same chart, with a title and a description for screen readers.
    """
    buffer = io.StringIO()
    with styled(**{"svg.hashsalt": name}):
        chart.figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    drawn = ElementTree.fromstring(buffer.getvalue())
    for element in drawn.iter():
        element.tag, element.tail = _local(element.tag), None
        element.attrib = {
            _local(key): re.sub(r"(\.\d\d)\d+", r"\1", value)
            for key, value in element.attrib.items()
            if key != "clip-path"  # nothing reaches beyond its axes
        }
        if element.tag == "g":
            element.attrib.pop("id", None)  # the same in every figure
        if element.tag == "text":
            element.attrib.pop("transform", None)  # all are level
        else:
            element.text = None
        if style := element.get("style"):
            style = style.replace("font-family: 'DejaVu Sans'; ", "")
            style = style.replace("'DejaVu Sans'", "system-ui, sans-serif")  # matplotlib 3.8
            element.set("style", re.sub("#[0-9a-f]{6}", _property, style))
    root = ElementTree.Element("svg", {
        "xmlns": "http://www.w3.org/2000/svg", "viewBox": drawn.attrib["viewBox"],
        "width": f"{_WIDTH / 0.75:.0f}", "role": "img", "stroke-linejoin": "round",
        "font-family": "system-ui, sans-serif",
        "aria-labelledby": f"{name}-title {name}-text",
    })  # fmt: skip
    ElementTree.SubElement(root, "title", id=f"{name}-title").text = chart.title
    ElementTree.SubElement(root, "desc", id=f"{name}-text").text = chart.description
    root.extend(drawn.findall("g"))
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    """A name without its namespace."""
    return name.rpartition("}")[2]


def _property(colour: re.Match[str]) -> str:
    """A colour of the page, where it has one."""
    return _PROPERTIES.get(colour[0], colour[0])
