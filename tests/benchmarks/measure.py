"""Timing side by side: medians of interleaved runs, and peak memory in a process of its own."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

Task = Callable[[], object]


def medians(tasks: dict[str, Task], rounds: int, once: Collection[str] = ()) -> dict[str, float]:
    """Run tasks in turn, so that all see the same disturbances; seconds, warm-up excluded.

    Those named in ``once`` are slow: they run once, without a warm-up.
    """
    for name, task in tasks.items():
        if name not in once:
            task()
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds):
        for name, task in tasks.items():
            if name in once and turn > 0:
                continue
            start = time.perf_counter()
            task()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_megabytes(module: str, *arguments: str) -> float:
    """Growth of the peak memory while ``python -m module`` runs its task; it prints the figure."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def resident_peak() -> float:
    """Largest memory of this process so far, in MB; of Linux."""
    # Not getrusage, whose figure a child inherits from its parent.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
