"""Kill a training at random moments, look at what it leaves, and resume it.

Run with ``python -m tests.tools.crashes [--kills 50] [--seed 0]``. Every kill is a SIGKILL at a
moment drawn from its own share of the duration of an unbroken run, so that they cover all of it.
After each, everything in the folder must be readable, and the run that is started again in that
folder must end like the unbroken one. The exit code is 1 if anything is not so.
"""

import argparse
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.tools.crash_run import (
    EPOCHS,
    PASSES,
    PHASES,
    Findings,
    differences,
    last_checkpoint,
    results,
    run,
)

PATIENCE = 120.0  # seconds that a run may take


@dataclass(slots=True, kw_only=True)
class Tally:
    """Over all kills."""

    kills: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    from_scratch: int = 0
    checkpoints: int = 0
    files: int = 0
    events: int = 0
    cut_off: int = 0
    parts: int = 0
    equal: int = 0
    troubles: list[str] = field(default_factory=list)


class Child:
    """The run in a process of its own, which has everything imported already."""

    def __init__(self, folder: Path) -> None:
        self._byte = mmap.mmap(-1, 1)  # shared with the child
        self._log = folder.with_suffix(".log")
        self.began = time.perf_counter()
        self._process = os.fork()
        if self._process == 0:
            os._exit(self._work(folder))
        self._status: int | None = None

    def _work(self, folder: Path) -> int:
        """What the child does, with its messages in a file."""
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            run(folder, self._byte)
        except Exception:  # noqa: BLE001  # told by the exit code, and in the file
            traceback.print_exc()
            return 1
        return 0

    @property
    def phase(self) -> str:
        """What it does, or did when it ended."""
        return PHASES[self._byte[0]]

    def ended(self) -> bool:
        """Whether it ended."""
        if self._status is None:
            process, status = os.waitpid(self._process, os.WNOHANG)
            self._status = status if process else None
        return self._status is not None

    def kill(self) -> bool:
        """End it at once; whether it had not ended by itself."""
        if self.ended():
            return False
        os.kill(self._process, signal.SIGKILL)
        _, self._status = os.waitpid(self._process, 0)
        return os.WIFSIGNALED(self._status)

    def wait(self) -> float:
        """Seconds it took to its end."""
        while not self.ended():
            if time.perf_counter() - self.began > PATIENCE:
                self.kill()
                raise RuntimeError(f"a run was not ready after {PATIENCE:.0f} s")
            time.sleep(0.002)
        if self._status:
            raise RuntimeError(f"a run failed:\n{self._log.read_text()[-2000:]}")
        return time.perf_counter() - self.began


def crash(place: Path, kills: int, seed: int) -> tuple[Tally, float]:
    """Kill so many runs in a folder; what was found, and the seconds of an unbroken run."""
    Child(place / "first").wait()  # the first one is slower
    seconds = Child(place / "unbroken").wait()
    expected = results(place / "unbroken")
    tally, chance = Tally(), random.Random(seed)
    tally.troubles += Findings(place / "unbroken").troubles
    tally.troubles += [
        f"two unbroken runs differ in {name}"
        for name in differences(expected, results(place / "first"))
    ]
    while tally.kills < kills and not tally.troubles:
        folder = place / f"killed-{tally.kills}"
        folder.mkdir()
        child = Child(folder)
        time.sleep(seconds * (tally.kills + chance.random()) / kills)
        if not child.kill():  # it was faster than the unbroken run: once more, and earlier
            shutil.rmtree(folder)
            seconds *= 0.9
            continue
        tally.kills += 1
        tally.phases[child.phase] += 1
        _look(tally, folder, child.phase, expected)
        if not tally.troubles:
            shutil.rmtree(folder)
    return tally, seconds


def _look(tally: Tally, folder: Path, phase: str, expected: dict[str, Any]) -> None:
    """Read what a killed run left, and resume it."""
    left = Findings(folder)
    tally.checkpoints += left.checkpoints
    tally.files += left.files
    tally.events += left.events
    tally.cut_off += left.cut_off
    tally.parts += left.parts
    troubles = left.troubles
    tally.from_scratch += last_checkpoint(folder) is None
    try:
        Child(folder).wait()
        troubles += Findings(folder).troubles
        odd = differences(expected, results(folder))
    except (RuntimeError, OSError) as error:
        odd, troubles = [], [*troubles, f"not resumed: {error}"]
    troubles += [f"{name} is not that of the unbroken run" for name in odd]
    tally.equal += not troubles
    tally.troubles += [f"{folder}, killed while {phase}: {trouble}" for trouble in troubles]


def table(tally: Tally, seconds: float, seed: int) -> str:
    """What is printed."""
    rows: list[tuple[str, object]] = [
        (f"kills of a run of {seconds:.1f} s, seed {seed}", tally.kills),
        *((f"  while {phase}", tally.phases[phase]) for phase in PHASES),
        ("  before the first checkpoint", tally.from_scratch),
        ("checkpoints loaded", tally.checkpoints),
        ("files of the monitor read", tally.files),
        ("event files read to their end", tally.events),
        ("  of these with the last record cut off", tally.cut_off),
        ("hidden .part files left behind", tally.parts),
        ("resumed runs equal to the unbroken one", f"{tally.equal} of {tally.kills}"),
        ("troubles", len(tally.troubles)),
    ]
    return "\n".join(f"{name:<46}{value!s:>9}" for name, value in rows)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # threads do not survive a fork
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="salmon-crashes-") as place:
        # Lightning writes checkpoints into the folder of temporary files and moves them, which is
        # one step only where both folders are on one disk.
        tempfile.tempdir = place
        tally, seconds = crash(Path(place), given.kills, given.seed)
        remains = sum(path.is_file() for path in Path(place).glob("tmp*"))
    sys.stdout.write(
        f"{EPOCHS} epochs with {PASSES - 1} validations, and one more after them\n"
        f"{table(tally, seconds, given.seed)}\n"
        f"{'temporary files of Lightning left behind':<46}{remains:>9}\n"
        f"{'seconds in all':<46}{time.perf_counter() - began:>9.0f}\n"
    )
    for trouble in tally.troubles:
        sys.stdout.write(f"FAILED: {trouble}\n")
    return 1 if tally.troubles else 0


if __name__ == "__main__":
    sys.exit(main())
