"""Progress of long work: a bar in a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import Any

SECONDS = 10.0
"""Between two lines."""


def _to_stderr(text: str) -> None:
    """Print a line where it does not mix with results."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class Progress:
    """A bar per stage, one at a time, on standard error; lines where that is no terminal."""

    def __init__(self, *, quiet: bool = False, say: Callable[[str], object] = _to_stderr) -> None:
        """Prepare."""
        self._quiet = quiet
        self._say = say
        self._bar: Any = None
        self._stage = ""
        self._last = time.monotonic()

    def __enter__(self) -> "Progress":
        """Start.

        Returns:
            Itself, to be called with a stage and the numbers of finished and of all steps.
        """
        return self

    def __exit__(self, *exception: object) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show a stage."""
        if self._quiet:
            return
        if sys.stderr.isatty():
            self._draw(stage, done, total)
        elif time.monotonic() - self._last >= SECONDS:
            self._last = time.monotonic()
            self._say(f"{stage}: {done} of {total}")

    def _draw(self, stage: str, done: int, total: int) -> None:
        """Move the bar, or begin that of another stage."""
        if self._bar is None or stage != self._stage:
            from tqdm import tqdm

            self.__exit__()
            self._bar, self._stage = tqdm(desc=stage, total=total, leave=False), stage
        self._bar.total, self._bar.n = total, done
        self._bar.refresh()
