"""Sections that are made of sentences, tables and pictures: repairs and comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from salmon.views.figures import Chart
from salmon.views.files import StoredImage

LETTERS = 200
"""Of a name in a table."""


@dataclass(frozen=True, slots=True)
class Link:
    """A cell that leads to a table of its section, filtered by a text."""

    text: str
    table: str
    query: str
    weight: float = 0.0  # in [0, 1], how dark it is


Cell = str | Link | StoredImage


class Table(NamedTuple):
    """Rows under a heading."""

    name: str  # in addresses
    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text: str = ""  # how to read it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlainSection:
    """What the page shows."""

    name: str
    status: str = ""  # in a word; empty where nothing was judged
    headline: str = ""
    origin: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    charts: list[tuple[str, list[Chart]]] = field(default_factory=list)
    pictures: list[tuple[str, StoredImage]] = field(default_factory=list)  # with what they show
    notes: list[str] = field(default_factory=list)  # on what is left out
