"""Tables in a terminal: with rich where it is installed, plain text elsewhere."""

import importlib.util
import sys
from collections.abc import Sequence


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a left-aligned first column and right-aligned others."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text  # in which brackets are no markup

        table = Table(title=Text(title), title_justify="left")
        for i, column in enumerate(columns):
            table.add_column(Text(column), justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*(Text(visible(cell)) for cell in row))
        Console().print(table)
        return
    print(plain_table(title, columns, rows))


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table in plain text."""
    lines = [columns, *([visible(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    text = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([title, text[0], "-" * len(text[0]), *text[1:]])


def visible(name: str) -> str:
    """A name from data without what a terminal would obey.

    Returns:
        The same in one line, with a question mark for each letter that cannot be printed.
    """
    return "".join(letter if letter.isprintable() else "?" for letter in name)
