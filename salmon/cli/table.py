"""Tables and progress in a terminal: with rich where it is installed, plain text elsewhere."""

import importlib.util
import sys
from collections.abc import Sequence
from typing import Any


class Progress:
    """Progress of long work on standard error; silent where that is no terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        """Prepare.

        Args:
            quiet: Show nothing.
        """
        self._bars: _RichBars | _PlainBars | None = None
        if not quiet and sys.stderr.isatty():
            rich = importlib.util.find_spec("rich") is not None
            self._bars = _RichBars() if rich else _PlainBars()

    def __enter__(self) -> "Progress":
        """Start.

        Returns:
            Itself, to be called with a stage and the numbers of finished and of all steps.
        """
        return self

    def __exit__(self, *exception: object) -> None:
        """Take the bars away."""
        if self._bars is not None:
            self._bars.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show a stage.

        Args:
            stage: Its name.
            done: Finished steps.
            total: All steps.
        """
        if self._bars is not None:
            self._bars.show(stage, done, total)


class _RichBars:
    """A bar per stage, drawn by rich."""

    def __init__(self) -> None:
        """Start."""
        from rich.console import Console
        from rich.progress import Progress as Bars

        self._bars = Bars(console=Console(stderr=True), transient=True)
        self._tasks: dict[str, Any] = {}
        self._bars.start()

    def show(self, stage: str, done: int, total: int) -> None:
        """Move the bar of a stage."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def close(self) -> None:
        """Take the bars away."""
        self._bars.stop()


class _PlainBars:
    """One bar at a time, drawn by tqdm, which Lightning brings along."""

    def __init__(self) -> None:
        """Start without a bar."""
        self._bar: Any = None
        self._stage = ""

    def show(self, stage: str, done: int, total: int) -> None:
        """Move the bar, or begin that of another stage."""
        if stage != self._stage:
            from tqdm import tqdm

            self.close()
            self._bar, self._stage = tqdm(desc=stage, total=total, leave=False), stage
        self._bar.total, self._bar.n = total, done
        self._bar.refresh()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a left-aligned first column and right-aligned others.

    Args:
        title: Printed above it.
        columns: Their headings.
        rows: Their cells, as many per row as there are columns.
    """
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
    """Lay out a table in plain text.

    Args:
        title: Its first line.
        columns: Their headings.
        rows: Their cells.

    Returns:
        Lines of equal width, without a line break at the end.
    """
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

    Args:
        name: Any text.

    Returns:
        The same in one line, with a question mark for each letter that cannot be printed.
    """
    return "".join(letter if letter.isprintable() else "?" for letter in name)
