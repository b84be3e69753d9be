"""Colours of paints, for light and dark paper.

The series are those of Okabe and Ito (2008), "Color Universal Design", which most colour-blind
people can tell apart; for dark paper the darkest are lightened.
"""

Colour = tuple[int, int, int]

LIGHT: dict[str, Colour] = {
    "paper": (255, 255, 255),
    "ink": (26, 26, 26),
    "faint": (95, 95, 95),
    "grid": (224, 224, 224),
    "series0": (0, 114, 178),
    "series1": (213, 94, 0),
    "series2": (0, 158, 115),
    "series3": (204, 121, 167),
    "series4": (86, 180, 233),
    "series5": (230, 159, 0),
    "series6": (110, 110, 110),
    "series7": (150, 90, 20),
}

DARK: dict[str, Colour] = LIGHT | {
    "paper": (24, 26, 29),
    "ink": (235, 235, 235),
    "faint": (168, 168, 168),
    "grid": (62, 64, 68),
    "series0": (64, 160, 224),
    "series1": (240, 126, 40),
    "series2": (40, 190, 145),
    "series6": (160, 160, 160),
    "series7": (190, 130, 60),
}


def mixed(colour: Colour, paper: Colour, strength: float) -> Colour:
    """A colour laid over paper.

    Args:
        colour: On top.
        paper: Below.
        strength: 0 shows the paper, 1 the colour.

    Returns:
        The mixture.
    """
    red, green, blue = (round(p + (c - p) * strength) for c, p in zip(colour, paper, strict=True))
    return red, green, blue
