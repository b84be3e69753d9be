"""Timing side by side: medians and quartiles of interleaved runs, and peak memory."""

import ctypes
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch

Task = Callable[[], object]
MOST_ROUNDS = 25


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a task, and its ratio to the base task of the same round."""

    seconds: float  # median
    ratio: float  # median
    low: float  # quartiles of the ratio
    high: float

    def __str__(self) -> str:
        """The ratio, with its quartiles where there were several rounds."""
        spread = f" ({self.low:.2f}-{self.high:.2f})" if self.high > self.low else ""
        return f"{self.ratio:.2f}{spread}" if self.ratio < 10 else f"{self.ratio:.0f}"


def compare(
    tasks: dict[str, Task], *, budget: float, once: Collection[str] = ()
) -> dict[str, Timing]:
    """Run tasks in turn, so that all see the same disturbances; the first one is the base.

    Each runs once as a warm-up, then in rounds until ``budget`` seconds are spent, three rounds at
    least. Those named in ``once`` are slow: they run once, without a warm-up.
    """
    often = [name for name in tasks if name not in once]
    for name in often:
        tasks[name]()
    times: dict[str, list[float]] = {name: [] for name in tasks}
    start = time.perf_counter()
    rounds = 0
    while rounds < 3 or (time.perf_counter() - start < budget and rounds < MOST_ROUNDS):
        for name in often:
            times[name].append(seconds(tasks[name]))
        rounds += 1
    for name in once:
        if name in tasks:
            times[name].append(seconds(tasks[name]))
    base = times[often[0]]
    found = {}
    for name, values in times.items():
        own_base = base if len(values) == len(base) else [statistics.median(base)] * len(values)
        ratios = [value / other for value, other in zip(values, own_base, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        found[name] = Timing(statistics.median(values), statistics.median(ratios), low, high)
    return found


def seconds(task: Task) -> float:
    """One run."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def growth_in_own_process(module: str, *arguments: str) -> list[float]:
    """What ``python -m module`` prints on its last line."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=True
    )
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def growth(task: Task) -> float:
    """Growth of the process's memory at its peak during a task, in MB; Linux with glibc."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    task()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    """A line of this process's status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def machine() -> str:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{names[0] if names else platform.machine()}, {gpu}"
    )
