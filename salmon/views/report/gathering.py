"""Finding the files of runs and reading what a report needs of them."""

import heapq
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from salmon.diagnosis import SCHEMA as FLAG_SCHEMA
from salmon.errors import InputError, StateError
from salmon.records import Number, record_of
from salmon.views.files import StoredPicture, read_flags, read_pass, read_pictures
from salmon.views.history import History
from salmon.views.record import PassRecord

_PASS = re.compile(r"pass-(?P<scope>.+)-(?P<number>\d{6,})\.json")
_DEEP = 5  # folders below the one that is named
_FOLDERS = ("salmon_logs", "salmon")  # as the monitor names them, and as version 0.1 did

_LETTERS = 200  # of a name in the table

MOST_FLAGS = 200
"""Flagged samples in the table, as many as have a thumbnail; the page stays light for a phone."""
NAMED = 3
"""Top filters of each that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlame:
    """A top filter of a flagged sample."""

    label: str
    group: str
    p: float
    e: float
    strength: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFlag:
    """A flagged sample."""

    id: str
    sample: int
    batch: int
    target: int
    predicted: int
    confidence_target: Number
    confidence_predicted: Number
    loss: Number
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
    notes: list[str]  # on what is left out


def gather(
    folder: Path, progress: Callable[[str, int, int], None] = lambda _stage, _done, _all: None
) -> list[Section]:
    """Read the runs in a folder.

    Args:
        folder: A logger's folder, that of a diagnosis, or one with several of them below.
        progress: Gets the name of a stage and the numbers of finished and of all its steps.

    Returns:
        A section per run, stage and loader, by name.
    """
    sections = []
    try:
        found = list(_passes(folder))
        for number, (place, scope, paths) in enumerate(found, 1):
            sections.append(_section(folder, place, scope, paths))
            progress("reading runs", number, len(found))
    except OSError as error:
        raise StateError(f"{folder} cannot be read ({error}).") from error
    if not sections:
        raise InputError(
            f"{folder} holds no passes of the monitor (pass-*.json in a folder 'salmon_logs'); "
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
    """One stage and loader: the pass that was written last, and those of its run before it."""
    every = [read_pass(path) for path in paths]
    record = max(every, key=lambda one: (one.time, one.number))
    # Later numbers of the same run are of a branch that was given up for an earlier checkpoint.
    records = [one for one in every if one.run == record.run and one.number <= record.number]
    history = History.of(records)
    flagged = place / f"flagged-{scope}-{record.number:06d}.jsonl"
    shown = place / f"pictures-{scope}.jsonl"
    notes = []
    if len(records) < len(every):
        others = len(every) - len(records)
        notes.append(
            f"Left out: passes of earlier runs, or given up by this one, in its folder ({others})."
        )
    flags, pictures = (0, list[StoredFlag]()), list[StoredPicture]()
    try:
        if flagged.is_file():
            flags = _worst_flags(flagged)
    except StateError as error:
        notes.append(f"The flagged samples are left out: {error}")
    try:
        if shown.is_file():
            # Those of another pass show other samples.
            pictures = [one for one in read_pictures(shown) if one.number == record.number]
    except StateError as error:
        notes.append(f"The images are left out: {error}")
    return Section(
        name=_name(folder, place, scope),
        record=record,
        history=history,
        before=records[-2] if len(history.passes) > 1 else None,
        flagged=flags[0],
        flags=flags[1],
        pictures=pictures,
        notes=notes,
    )


def _name(folder: Path, place: Path, scope: str) -> str:
    """What a section is called."""
    run = place.parent if place.name in _FOLDERS else place
    inner = run.relative_to(folder) if run.is_relative_to(folder) else Path()
    name = f"{inner}: {scope}" if str(inner) != "." else scope
    return name.encode(errors="replace").decode()  # names of files need not be text


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
    stored = record_of(StoredFlag, flag | shown, where)
    return replace(
        stored,
        id=stored.id[:_LETTERS],
        top=[replace(t, label=t.label[:_LETTERS], group=t.group[:_LETTERS]) for t in stored.top],
    )


def _loss(flag: StoredFlag) -> float:
    """The loss of a flag; one that is not finite was left out of the file."""
    return math.inf if math.isnan(flag.loss) else flag.loss
