"""Drawings as vector graphics whose colours come from the page, so that they follow its theme.

The page defines the custom properties ``--ink``, ``--faint``, ``--grid`` and ``--series0`` ..
``--series7``; each has a colour for light paper to fall back on.
"""

import math
from itertools import groupby
from xml.sax.saxutils import escape, quoteattr

from salmon.views.drawing import DASHES, Box, Dot, Drawing, Grid, Line, Shape, Words
from salmon.views.palette import LIGHT

_SHADES = 16  # of a cell in a grid, beside none


def svg(drawing: Drawing, name: str) -> str:
    """Write a drawing as an inline vector graphic.

    Args:
        drawing: What to show.
        name: Distinguishes its title and description from those of others on the page.

    Returns:
        An ``<svg>`` element with a title and a description for screen readers.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(drawing.width)} '
        f'{_n(drawing.height)}" width="{_n(drawing.width)}" role="img" '
        f'aria-labelledby="{name}-title {name}-text" font-family="system-ui, sans-serif">',
        f'<title id="{name}-title">{escape(drawing.title)}</title>',
        f'<desc id="{name}-text">{escape(drawing.description)}</desc>',
        *(_element(shape) for shape in drawing.shapes),
        "</svg>",
    ]
    return "\n".join(parts)


def _element(shape: Shape) -> str:
    """One shape."""
    match shape:
        case Box():
            opacity = f";opacity:{shape.strength:.3g}" if shape.strength < 1 else ""
            inner = (
                f'<rect x="{_n(shape.x)}" y="{_n(shape.y)}" width="{_n(shape.width)}" '
                f'height="{_n(shape.height)}" style="fill:{_paint(shape.paint)}{opacity}"'
            )
            return _titled(inner, "rect", shape.title)
        case Dot():
            inner = (
                f'<circle cx="{_n(shape.x)}" cy="{_n(shape.y)}" r="{_n(shape.radius)}" '
                f'style="fill:{_paint(shape.paint)}"'
            )
            return _titled(inner, "circle", shape.title)
        case Line():
            points = " ".join(f"{_n(x)},{_n(y)}" for x, y in shape.points)
            pattern = " ".join(map(_n, DASHES[shape.dash]))
            dashes = f' stroke-dasharray="{pattern}"' if pattern else ""
            return (
                f'<polyline points="{points}" fill="none" stroke-width="{_n(shape.width)}"{dashes} '
                f'stroke-linejoin="round" style="stroke:{_paint(shape.paint)}"/>'
            )
        case Grid():
            return "\n".join(_row(shape, i) for i in range(len(shape.rows)))
        case Words():
            turn = f' transform="rotate(-90 {_n(shape.x)} {_n(shape.y)})"' if shape.upright else ""
            weight = ' font-weight="600"' if shape.bold else ""
            return (
                f'<text x="{_n(shape.x)}" y="{_n(shape.y)}" text-anchor={quoteattr(shape.anchor)} '
                f'font-size="{_n(shape.size)}"{weight}{turn} style="fill:{_paint(shape.paint)}">'
                f"{escape(shape.text)}</text>"
            )


def _row(grid: Grid, number: int) -> str:
    """A row of cells: one broken line per shade, since a rectangle per cell makes heavy pages."""
    strokes: dict[int, str] = {}
    ends: dict[int, int] = {}  # columns where the lines stand
    column, wide = 0, round(grid.width, 1)  # in steps that add up without rounding
    middle = _n(grid.y + (number + 0.5) * grid.height)
    for shade, cells in groupby(map(_shade, grid.rows[number])):
        end = column + len(list(cells))
        if shade:
            if shade not in strokes:
                strokes[shade], ends[shade] = f"M{_n(grid.x)} {middle}", 0
            gap = column - ends[shade]
            strokes[shade] += (
                f"m{_n(gap * wide)} 0" if gap else ""
            ) + f"h{_n((end - column) * wide)}"
            ends[shade] = end
        column = end
    lines = "".join(
        f'<path d="{line}" opacity="{shade / _SHADES:.3g}"/>'
        for shade, line in sorted(strokes.items())
    )
    whole = (
        f'<rect x="{_n(grid.x)}" y="{_n(grid.y + number * grid.height)}" '
        f'width="{_n(column * wide)}" height="{_n(grid.height)}" class="hint"/>'
    )
    title = f"<title>{escape(grid.titles[number])}</title>"
    style = f"stroke:{_paint(grid.paint)};stroke-width:{_n(grid.height - 0.5)}"
    return f'<g fill="none" style="{style}">{title}{lines}{whole}</g>'


def _shade(strength: float) -> int:
    """Which shade a cell has; 0 is that of the paper."""
    return 0 if math.isnan(strength) else math.ceil(strength * _SHADES - 1e-9)


def _titled(start: str, tag: str, title: str) -> str:
    """Close an element, with a title where there is one."""
    return f"{start}><title>{escape(title)}</title></{tag}>" if title else f"{start}/>"


def _paint(paint: str) -> str:
    """A colour of the page."""
    red, green, blue = LIGHT[paint]
    return f"var(--{paint},#{red:02x}{green:02x}{blue:02x})"


def _n(value: float) -> str:
    """A length without needless digits."""
    return f"{value:.1f}".removesuffix(".0")
