"""What the monitor costs: one clock for a pass and its parts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds since it was made, and those spent in named parts; parts may lie in each other."""

    def __init__(self) -> None:
        """Start."""
        self._born = time.perf_counter()
        self._spent: dict[str, float] = {}
        self._running: dict[str, float] = {}
        self._busy = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside as spent on a part, which does not lie in itself."""
        outermost, began = not self._running, time.perf_counter()
        self._running[name] = began
        try:
            yield
        finally:
            took = time.perf_counter() - began
            del self._running[name]
            self._spent[name] = self._spent.get(name, 0.0) + took
            self._busy += took if outermost else 0.0

    def seconds(self, name: str) -> float:
        """Seconds spent on a part, the running ones too."""
        now = time.perf_counter()
        return self._spent.get(name, 0.0) + now - self._running.get(name, now)

    @property
    def busy(self) -> float:
        """Seconds spent on all parts."""
        now = time.perf_counter()
        return self._busy + now - min(self._running.values(), default=now)

    @property
    def total(self) -> float:
        """Seconds since the start, more than 0."""
        return max(time.perf_counter() - self._born, 1e-9)
