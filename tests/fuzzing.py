"""Every reader of the package on spoilt input: ``python -m tests.fuzzing [--cases N] [--seed S]``.

A case is known by reader, seed and number. What a reader takes is put to its use, since a value
that comes through and breaks something later is no better than a crash. Each reader runs in a
process of its own whose memory is limited; a case that takes longer than ``MOST_SECONDS``, leaves
the file behind that hostile input asks for, or ends in anything but one of the package's own errors
is a fault. Prints a table; exit code 1 if there is a fault.
"""

import argparse
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from salmon import SalmonError
from tests.readers import READERS, Reader, readers

MOST_SECONDS = 20.0
"""For one case."""

MOST_MEMORY = 2 << 30
"""Bytes that a process may have beyond those it began with."""


@dataclass(slots=True)
class Tally:
    """What a reader did."""

    tried: int = 0
    refused: int = 0  # with one of the package's own errors
    read: int = 0  # all the same
    faults: list[str] = field(default_factory=list)  # anything else

    @property
    def sound(self) -> bool:
        """Whether there is no fault, and every case is accounted for."""
        return not self.faults and self.tried == self.refused + self.read


class Stuck(BaseException):
    """A case took too long; no ``except Exception`` of a reader takes it for its own."""


def fuzz(reader: Reader, numbers: range, seed: int, canary: Path) -> Iterator[Tally]:
    """Try some cases; gives the same tally again before each of them and at the end."""
    tally = Tally()
    for number in numbers:
        yield tally
        tally.tried += 1
        trouble = ""
        try:
            case = reader.make(Random(f"{seed} {reader.name} {number}"))
            with time_limited():
                reader.read(case)
            tally.read += 1
        except SalmonError:
            tally.refused += 1
        except (Exception, Stuck) as error:  # noqa: BLE001 - whatever it is, it is a fault
            place = traceback.extract_tb(error.__traceback__)[-1]
            trouble = (
                f"{type(error).__name__}: {str(error)[:160]} ({place.filename}:{place.lineno})"
            )
        if canary.exists():
            canary.unlink()
            trouble = "code in the input was run"
        if trouble:
            tally.faults.append(f"{reader.name}, case {number}: {trouble}")
    yield tally


@contextmanager
def time_limited() -> Iterator[None]:
    """Interrupt what takes longer than ``MOST_SECONDS``."""

    def stop(_signal: int, _frame: Any) -> None:
        raise Stuck(f"took longer than {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def memory_limited(most: int = MOST_MEMORY) -> Iterator[None]:
    """Let the process have at most so many bytes more than now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _child(name: str, cases: int, seed: int, at: Any, pipe: Any) -> None:
    """Try the cases of one reader in a process of its own."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place, memory_limited():
        folder, canary = Path(place) / "cases", Path(place) / "canary"
        folder.mkdir()
        (reader,) = [each for each in readers(folder, canary) if each.name == name]
        for tally in fuzz(reader, range(cases), seed, canary):
            at.value = tally.tried
    pipe.send(asdict(tally))


def fuzz_apart(name: str, cases: int, seed: int) -> Tally:
    """Try the cases of one reader in a process of its own, whose end by a signal is a fault."""
    context = multiprocessing.get_context("spawn")
    at, (mine, theirs) = context.Value("q", 0), context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(name, cases, seed, at, theirs))
    process.start()
    theirs.close()
    try:
        tally = Tally(**mine.recv())
    except EOFError:
        process.join()
        fault = f"{name}, case {at.value}: the process ended with {process.exitcode}"
        return Tally(at.value, faults=[fault])
    process.join()
    return tally


def main() -> int:
    """Try all readers, print, judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing")
    parser.add_argument("--cases", type=int, default=20_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="READER", help="one reader, by a part of its name")
    options = parser.parse_args()
    names = [name for name in READERS if (options.only or "") in name]
    print("| reader | cases | refused | read all the same | anything else | seconds |")
    print("|---|---|---|---|---|---|")
    faults = []
    for name in names:
        start = time.perf_counter()
        tally = fuzz_apart(name, options.cases // len(names), options.seed)
        seconds = time.perf_counter() - start
        wrong = tally.tried - tally.refused - tally.read
        print(f"| {name} | {tally.tried} | {tally.refused} | {tally.read} | {wrong} "
              f"| {seconds:.0f} |", flush=True)  # fmt: skip
        faults += tally.faults
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
