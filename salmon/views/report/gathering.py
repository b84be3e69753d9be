"""Finding the files of runs and reading what a report needs of them."""

import heapq
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from salmon.errors import InputError, StateError
from salmon.plain import from_plain
from salmon.ranking import SCHEMA as FLAG_SCHEMA
from salmon.views.files import StoredPicture, read_flags, read_pass, read_pictures
from salmon.views.history import History
from salmon.views.record import PassRecord

_PASS = re.compile(r"pass-(?P<scope>.+)-(?P<number>\d{6,})\.json")
_DEEP = 4  # folders below the one that is named

_LETTERS = 200  # of a name in the table

MOST_FLAGS = 500
"""Flagged samples in the table; the page stays light enough for a phone."""
NAMED = 3
"""Top filters of each that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlame:
    """A top filter of a flagged sample."""

    label: str
    group: str
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFlag:
    """A flagged sample."""

    id: str
    sample: int
    batch: int
    target: int
    predicted: int
    confidence_target: float
    confidence_predicted: float
    loss: float
    top: list[StoredBlame]  # the first of them


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Section:
    """All passes of one stage and loader of a run."""

    name: str  # such as "mnist: validation"
    record: PassRecord  # of the last pass
    history: History
    before: PassRecord | None
    flagged: int  # samples in the last pass
    flags: list[StoredFlag]  # the worst of them, worst first
    pictures: list[StoredPicture]  # of the last pass


def gather(folder: Path) -> list[Section]:
    """Read the runs in a folder.

    Args:
        folder: A logger's folder, that of a diagnosis, or one with several of them below.

    Returns:
        A section per run, stage and loader, by name.

    Raises:
        InputError: If there is no run.
        StateError: If a file cannot be read, or is something else.
    """
    sections = []
    try:
        for place, scope, paths in _passes(folder):
            sections.append(_section(folder, place, scope, paths))
    except OSError as error:
        raise StateError(f"{folder} cannot be read ({error}).") from error
    if not sections:
        raise InputError(
            f"{folder} holds no passes of the monitor (files pass-*.json in a folder 'salmon'); "
            "name the folder of a logger whose run had a SaliencyMonitor with write_files=True, or "
            "one that salmon diagnose wrote."
        )
    return sections


def _passes(folder: Path) -> Iterator[tuple[Path, str, list[Path]]]:
    """Folders with passes, and their files by scope, in order."""
    for place in _folders(folder, _DEEP):
        passes: dict[str, list[tuple[int, Path]]] = {}
        for path in place.iterdir():
            match = _PASS.fullmatch(path.name)
            if match is not None:
                passes.setdefault(match["scope"], []).append((int(match["number"]), path))
        for scope, found in sorted(passes.items()):
            yield place, scope, [path for _, path in sorted(found)]


def _folders(folder: Path, deep: int) -> Iterator[Path]:
    """A folder and those below, in order; links are not followed."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; that of a run is needed.")
    yield folder
    if deep:
        for below in sorted(folder.iterdir()):
            if below.is_dir() and not below.is_symlink() and not below.name.startswith("."):
                yield from _folders(below, deep - 1)


def _section(folder: Path, place: Path, scope: str, paths: list[Path]) -> Section:
    """One stage and loader."""
    records = [read_pass(path) for path in paths]
    record = records[-1]
    flagged = place / paths[-1].name.replace("pass-", "flagged-", 1).replace(".json", ".jsonl")
    pictures = place / f"pictures-{scope}.jsonl"
    run = place.parent if place.name == "salmon" else place
    inner = run.relative_to(folder) if run.is_relative_to(folder) else Path()
    name = f"{inner}: {scope}" if str(inner) != "." else scope
    name = name.encode(errors="replace").decode()  # names of files need not be text
    count, flags = _worst_flags(flagged) if flagged.is_file() else (0, [])
    return Section(
        name=name,
        record=record,
        history=History.of(records),
        before=records[-2] if len(records) > 1 else None,
        flagged=count,
        flags=flags,
        pictures=[
            picture
            for picture in (read_pictures(pictures) if pictures.is_file() else [])
            if picture.number == record.number  # those of another pass show other samples
        ],
    )


def _worst_flags(path: Path) -> tuple[int, list[StoredFlag]]:
    """Number of flagged samples, and those of the highest loss; a loss that is not finite leads."""
    number = 0

    def samples() -> Iterator[StoredFlag]:
        nonlocal number
        for flag in read_flags(path, FLAG_SCHEMA):
            if flag.get("kind") == "sample":
                number += 1
                yield _stored(flag, path.name)

    worst = heapq.nlargest(MOST_FLAGS, samples(), key=_loss)  # holds no more than these
    return number, worst


def _stored(flag: dict[str, Any], where: str) -> StoredFlag:
    """What the table shows of a flag."""
    top = flag.get("top")
    shown = {"id": str(flag.get("id")), "top": top[:NAMED] if isinstance(top, list) else top}
    stored = from_plain(StoredFlag, flag | shown, where)
    return replace(
        stored,
        id=stored.id[:_LETTERS],
        top=[replace(t, label=t.label[:_LETTERS], group=t.group[:_LETTERS]) for t in stored.top],
    )


def _loss(flag: StoredFlag) -> float:
    """The loss of a flag; one that is not finite was left out of the file."""
    return math.inf if math.isnan(flag.loss) else flag.loss
