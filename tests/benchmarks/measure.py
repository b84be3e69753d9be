"""Timing side by side: medians of interleaved runs, and peak memory in a process of its own."""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

Task = Callable[[], object]


def medians(tasks: dict[str, Task], rounds: int) -> dict[str, float]:
    """Run tasks in turn, so that all see the same disturbances; seconds, warm-up excluded."""
    for task in tasks.values():
        task()
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
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
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
