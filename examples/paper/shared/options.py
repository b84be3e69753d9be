"""Options that every experiment has, and how a script ends."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from salmon import InputError, SalmonError
from salmon.repairs import Step

COUNTS = (1, 2, 3, 5, 8, 12, 18, 25)
RANKINGS = ("pot", "zscore", "magnitude", "random", "last_group")
EDITS = ("prune", "plain", "normalised")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is common to all experiments."""

    data: Path | None
    weights: str
    limit: int | None  # misclassified images that are edited, drawn at random; None takes all
    statistics: int | None  # images that the tails are fitted to, drawn at random; None takes all
    device: torch.device
    seed: int
    out: Path
    batch_size: int
    workers: int
    size: int  # pixels of an image's side
    rankings: tuple[str, ...]
    edits: tuple[str, ...]
    counts: tuple[int, ...]
    rate: float
    normalised_rate: float
    shortcuts: bool  # whether the 1x1 convolutions of residual shortcuts are filters, too
    bootstrap: int  # resamples
    write: Path | None

    @property
    def steps(self) -> tuple[Step, ...]:
        """The edits, with their rates."""
        rates = {"prune": 0.0, "plain": self.rate, "normalised": self.normalised_rate}
        return tuple(Step(edit, rates[edit]) for edit in self.edits)

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on: two runs that differ in it must not share a folder."""
        free = {"out", "device", "batch_size", "workers", "write", "bootstrap"}
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in free}
        found["data"] = None if self.data is None else str(self.data.resolve())
        for name in ("rankings", "edits", "counts"):
            found[name] = list(found[name])
        return found


def make_parser(
    description: str,
    *,
    out: str,
    data: str | None,
    weights: str = "IMAGENET1K_V1",
    edits: Sequence[str] = EDITS,
    size: int | None = 224,
    workers: int = 1,
) -> argparse.ArgumentParser:
    """Prepare the options of a script.

    Args:
        description: Of the script.
        out: Default folder of the results.
        data: What --data is; None where the experiment can do without.
        weights: Default weights; empty where the networks are trained from scratch.
        edits: Default edits.
        size: Default pixels of an image's side; None where it is fixed.
        workers: Default number of threads.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=data is not None, help=data or "folder of data sets on disk")
    if weights:
        add("--weights", default=weights,
            help="name of torchvision weights, a file with a state dict, or random (stand-ins "
            "only)")  # fmt: skip
    add("--limit", type=_positive, help="misclassified images to edit, drawn at random; all if "
        "left out")  # fmt: skip
    add("--statistics", type=_positive, help="images to fit the tails to, drawn at random; all if "
        "left out")  # fmt: skip
    add("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu",
        help="where the network runs")  # fmt: skip
    add("--seed", type=int, default=0, help="of every random choice")
    add("--out", type=Path, default=Path(out), help="folder of results; finished parts in it are "
        "taken over")  # fmt: skip
    add("--batch-size", type=_positive, default=64, help="images, or edited networks, at a time")
    add("--workers", type=_positive, default=workers, help="threads that read, and edit, images "
        "side by side; each edits its own copy of the network")  # fmt: skip
    if size is not None:
        add("--size", type=_positive, default=size, help="pixels of an image's side")
    add("--rankings", nargs="+", default=RANKINGS, choices=RANKINGS, help="how filters are ranked")
    add("--edits", nargs="*", default=edits, choices=EDITS, help="what is done to filters; with "
        "none, filters are ranked and no more")  # fmt: skip
    add("--counts", nargs="+", type=_positive, default=COUNTS, help="numbers of edited filters")
    add("--rate", type=float, default=0.001, help="learning rate of the plain step")
    add("--normalised-rate", type=float, default=0.01, help="relative change of each filter by "
        "the normalised step")  # fmt: skip
    add("--shortcuts", action=argparse.BooleanOptionalAction, default=True, help="count the 1x1 "
        "convolutions of residual shortcuts as filters")  # fmt: skip
    add("--bootstrap", type=_positive, default=2000, help="resamples for the bands")
    add("--write", type=Path, help="a page of docs whose part on this experiment is replaced by "
        "the results")  # fmt: skip
    return parser


def read_options(found: argparse.Namespace) -> Options:
    """Check and freeze the common options.

    Args:
        found: What the parser read.

    Raises:
        InputError: If the counts do not rise.
    """
    absent = {"weights": "", "size": 0}
    values: dict[str, Any] = {
        f.name: getattr(found, f.name, absent.get(f.name)) for f in fields(Options)
    }
    for name in ("rankings", "edits", "counts"):
        values[name] = tuple(dict.fromkeys(values[name]))
    if list(values["counts"]) != sorted(values["counts"]):
        raise InputError(f"counts are {values['counts']}; rising numbers are needed.")
    return Options(**values)


def run_script(main: Callable[[], object]) -> None:
    """Run a script; a wrong input ends it with one line and exit code 2.

    Args:
        main: The script.
    """
    try:
        main()
    except SalmonError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _positive(text: str) -> int:
    """A number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} came, at least 1 is needed")
    return value
