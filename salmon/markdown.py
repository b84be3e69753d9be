"""Markdown tables, as GitHub and TensorBoard show them, with names from data kept literal."""

import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!-])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "~": "&#126;", "\n": " "}


def markdown_table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a table."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cell(each) for each in line)} |" for line in lines)


def cell(value: object) -> str:
    """Text that cannot break out of its cell.

    Args:
        value: Shown as its string; markdown in it is left as it is.
    """
    text = str(value).replace("\n", " ").replace("|", "\\|")
    return text.replace("<", "&lt;")


def literal(name: str) -> str:
    """A name from data, shown to the letter whatever is in it."""
    plain = _SPECIAL.sub(r"\\\1", name)
    return "".join(_ENTITIES.get(letter, letter) for letter in plain)
