"""Drawings as data: shapes in paint that a renderer turns into a vector graphic or pixels.

Lengths are pixels of a screen of usual density, y grows downwards. Paints are names, so that each
renderer chooses the colours that suit its background.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

INK, FAINT, GRID = "ink", "faint", "grid"
SERIES = 8
"""Number of paints ``series0`` .. ``series7`` that most colour-blind people can tell apart."""
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 4), (2, 3), (10, 3, 2, 3))
"""Lengths of stroke and gap in turn; repeated."""

Point = tuple[float, float]


def series(number: int) -> str:
    """Paint of a line or bar.

    Args:
        number: Counted from 0; paints repeat after :data:`SERIES`.

    Returns:
        The name of the paint.
    """
    return f"series{number % SERIES}"


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    paint: str
    strength: float = 1.0  # opacity, 0 to 1
    title: str = ""  # shown when pointed at


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points."""

    points: tuple[Point, ...]
    paint: str = INK
    width: float = 1.0
    dash: int = 0  # 0 is unbroken; each number has a pattern of its own, up to that of DASHES


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows of cells, each as strong as its number; NaN leaves a cell out."""

    x: float
    y: float
    width: float  # of a cell
    height: float
    paint: str
    rows: tuple[tuple[float, ...], ...]  # strengths, 0 to 1
    titles: tuple[str, ...]  # one per row, shown when pointed at


@dataclass(frozen=True, slots=True)
class Dot:
    """A filled circle."""

    x: float
    y: float
    paint: str
    radius: float = 2.5
    title: str = ""


@dataclass(frozen=True, slots=True)
class Words:
    """A line of text; ``y`` is its base line."""

    x: float
    y: float
    text: str
    anchor: str = "start"  # "middle", "end"
    size: float = 12.0
    paint: str = INK
    bold: bool = False
    upright: bool = False  # turned by a quarter, read from below


Shape = Box | Line | Grid | Dot | Words


@dataclass(slots=True)
class Drawing:
    """Shapes on a page, with a title and a description for those who cannot see them."""

    width: float
    height: float
    title: str
    description: str
    shapes: list[Shape] = field(default_factory=list)

    def add(self, *shapes: Shape) -> None:
        """Put shapes above those that are there.

        Args:
            shapes: In order.
        """
        self.shapes.extend(shapes)


@dataclass(frozen=True, slots=True)
class Frame:
    """A rectangle of the page in which data have coordinates."""

    left: float
    top: float
    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """Page coordinate of a value.

        Args:
            value: In the unit of ``x_range``.

        Returns:
            Pixels from the left.
        """
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * self.width

    def y(self, value: float) -> float:
        """Page coordinate of a value.

        Args:
            value: In the unit of ``y_range``.

        Returns:
            Pixels from the top.
        """
        low, high = self.y_range
        return self.top + self.height - (value - low) / (high - low) * self.height

    def axes(self, x_label: str, y_label: str, *, x_whole: bool = False) -> list[Shape]:
        """Grid, numbers and names of both axes.

        Args:
            x_label: Name under the horizontal axis.
            y_label: Name left of the vertical axis.
            x_whole: Whether only whole numbers make sense on the horizontal axis.

        Returns:
            Shapes to be put under the data.
        """
        bottom, right = self.top + self.height, self.left + self.width
        shapes: list[Shape] = []
        for value in ticks(*self.y_range):
            at = self.y(value)
            shapes += [
                Line(((self.left, at), (right, at)), GRID),
                Words(self.left - 6, at + 4, short(value), "end", 11, FAINT),
            ]
        for value in ticks(*self.x_range, whole=x_whole):
            at = self.x(value)
            shapes += [
                Line(((at, bottom), (at, bottom + 4)), FAINT),
                Words(at, bottom + 17, short(value), "middle", 11, FAINT),
            ]
        return [
            *shapes,
            Line(((self.left, bottom), (right, bottom)), FAINT),
            Words(self.left + self.width / 2, bottom + 34, x_label, "middle", 12, FAINT),
            Words(
                self.left - 46, self.top + self.height / 2, y_label, "middle", 12, FAINT,
                upright=True,
            ),
        ]  # fmt: skip


def ticks(low: float, high: float, most: int = 6, *, whole: bool = False) -> list[float]:
    """Round numbers between two values.

    Args:
        low: The smaller value.
        high: The larger value.
        most: How many at most, about.
        whole: Whether to keep to whole numbers.

    Returns:
        Multiples of 1, 2 or 5 times a power of ten.
    """
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= most)
    if whole:
        step = max(1.0, step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * i for i in range(first, last + 1)]


def short(value: float) -> str:
    """Write a number in few characters.

    Args:
        value: Any.

    Returns:
        Up to four digits.
    """
    return f"{value:.4g}"


def percent(share: float) -> str:
    """Write a share.

    Args:
        share: In [0, 1].

    Returns:
        Such as ``61.0 %``.
    """
    return f"{100 * share:.1f} %"


def legend(x: float, y: float, names: Sequence[str]) -> list[Shape]:
    """Names of lines, under each other.

    Args:
        x: Left edge.
        y: Top.
        names: Of consecutive series.

    Returns:
        Shapes.
    """
    shapes: list[Shape] = []
    for i, name in enumerate(names):
        level = y + 18 * i
        shapes += [
            Line(((x, level + 6), (x + 24, level + 6)), series(i), 3, dash_of(i)),
            Words(x + 30, level + 10, clipped(name, 18)),
        ]
    return shapes


def dash_of(number: int) -> int:
    """Dashes of a line, so that lines of one paint can be told apart.

    Args:
        number: Of the series, counted from 0.

    Returns:
        A place in :data:`DASHES`.
    """
    return number // SERIES % len(DASHES)


def heading(text: str) -> Words:
    """The title of a drawing.

    Args:
        text: In one line.

    Returns:
        Words in the upper left corner.
    """
    return Words(14, 19, text, size=14, bold=True)


def clipped(text: str, most: int) -> str:
    """Shorten a text in its middle, where module paths differ least.

    Args:
        text: Any.
        most: Characters at most.

    Returns:
        The text, with an ellipsis where something was left out.
    """
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}\u2026{text[len(text) - (most - 1 - head) :]}"
