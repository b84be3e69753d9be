"""Finding the files of runs and reading what a report needs of them."""

import heapq
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from salmon.diagnosis import SCHEMA as FLAG_SCHEMA
from salmon.diagnosis import Confusion, flat_rows
from salmon.errors import InputError, StateError
from salmon.records import Number, record_of
from salmon.views.files import StoredImage, StoredPicture, read_flags, read_pass, read_pictures
from salmon.views.history import History
from salmon.views.record import FindingRow, PassRecord
from salmon.views.report.outcomes import is_outcome, read_outcome
from salmon.views.report.plain import LETTERS, PlainSection

_PASS = re.compile(r"pass-(?P<scope>.+)-(?P<number>\d{6,})\.json")
_DEEP = 5  # folders below the one that is named
_FOLDERS = ("salmon_logs", "salmon")  # as the monitor names them, and as version 0.1 did

MOST_FLAGS = 200
"""Flagged samples in the table, as many as have a thumbnail; the page stays light for a phone."""
MOST_BATCHES = 20
MOST_FILTERS = 12
"""Filters with a card of their own."""


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
    target: int = 0  # 0 and 0 where there are no classes
    predicted: int = 0
    details: list[Number]  # what the task says of it
    loss: Number
    top: list[StoredBlame]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A batch with mistakes."""

    batch: int
    samples: list[int]  # its mistakes
    beyond_chance: int  # of its top filters
    top: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FilterCard:
    """A filter that stands out."""

    found: list[FindingRow]  # in which mistakes
    confusions: list[Confusion]  # of all mistakes that blame it, most frequent first
    trail: list[tuple[int, int | None]]  # passes, and how many mistakes blamed it, where known


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Section:
    """All passes of one stage and loader of a run."""

    name: str  # such as "mnist: validation"
    record: PassRecord  # of the last pass
    history: History
    before: PassRecord | None
    flagged: int  # samples in the last pass
    flags: list[StoredFlag]  # the worst of them, worst first
    batches: list[StoredBatch]  # with most filters beyond chance
    pictures: list[StoredPicture]  # of the last pass
    cards: dict[str, FilterCard]  # by label
    notes: list[str]  # on what is left out


def gather(
    folder: Path, progress: Callable[[str, int, int], None] = lambda _stage, _done, _all: None
) -> list[Section]:
    """Read the runs in a folder.

    Args:
        folder: A logger's folder, that of a diagnosis, or one with several of them below.
        progress: Gets the name of a stage and the numbers of finished and of all its steps.

    Returns:
        A section per run, stage and loader, by name; none where there are other reports only.
    """
    sections = []
    try:
        places = list(_folders(folder, _DEEP))
        found = [(place, *each) for place in places for each in _passes(place)]
        for number, (place, scope, paths) in enumerate(found, 1):
            sections.append(_section(folder, place, scope, paths))
            progress("reading runs", number, len(found))
    except OSError as error:
        raise StateError(f"{folder} cannot be read ({error}).") from error
    if not sections and not any(is_outcome(place / "report.json") for place in places):
        raise InputError(
            f"{folder} holds no passes of the monitor (pass-*.json in a folder 'salmon_logs') and "
            "no repair or comparison (report.json); name the folder of a logger whose run had a "
            "SaliencyMonitor with write_files=True, or one that salmon diagnose, salmon repair or "
            "salmon compare wrote."
        )
    return sections


def gather_outcomes(folder: Path) -> list[PlainSection]:
    """Read the repairs and comparisons in a folder and those below, by name."""
    return [
        read_outcome(place / "report.json", _text(place.relative_to(folder), ""))
        for place in _folders(folder, _DEEP)
        if is_outcome(place / "report.json")
    ]


def last_passes(path: Path) -> dict[str, Path]:
    """Find the last pass of every run, stage and loader.

    Args:
        path: A folder as for :func:`gather`, or the file of one pass, which is alone then.

    Returns:
        Files by name: the stage and loader, after that of the run where there are several.
    """
    match = _PASS.fullmatch(path.name)
    if path.is_file() and match is not None:
        return {match["scope"]: path}
    found = [(place, *each) for place in _folders(path, _DEEP) for each in _passes(place)]
    if not found:
        raise InputError(
            f"{path} holds no passes of the monitor (pass-*.json in a folder 'salmon_logs'); name "
            "the folder of a run, or the file of one of its passes."
        )
    single = len({place for place, _, _ in found}) == 1
    return {
        scope if single else _name(path, place, scope): _last(paths)[0]
        for place, scope, paths in found
    }


def flags_of(path: Path) -> Path:
    """The file of the flags that belong to a pass."""
    return path.with_name(f"flagged-{path.stem.removeprefix('pass-')}.jsonl")


def pictures_of(path: Path) -> dict[int, StoredImage]:
    """Small images of the flagged samples of a pass by their position, where there are some."""
    match = _PASS.fullmatch(path.name)
    assert match is not None
    stored = path.with_name(f"pictures-{match['scope']}.jsonl")
    return {
        one.sample: one.image
        for one in (read_pictures(stored) if stored.is_file() else ())
        if one.number == int(match["number"]) and one.kind in ("flagged", "thumbnail")
    }


def flagged_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Lay out the flagged samples of runs, as :func:`gather` finds them, for a table.

    Returns:
        A row for each top filter of each flagged sample of the last passes; ``run`` comes first.
    """
    for place in _folders(folder, _DEEP):
        for scope, paths in _passes(place):
            last, record = _last(paths)
            path = flags_of(last)
            for flag in read_flags(path, FLAG_SCHEMA) if path.is_file() else ():
                if flag.get("kind") == "sample":
                    stored_flag(flag, record.details, path.name)
                    for row in flat_rows(flag):
                        yield {"run": _name(folder, place, scope)} | row


def _last(paths: Sequence[Path]) -> tuple[Path, PassRecord]:
    """The pass that was written last."""
    read = ((path, read_pass(path)) for path in paths)
    return max(read, key=lambda pair: _order(pair[1]))


def _order(record: PassRecord) -> tuple[float, int]:
    return record.time, record.number


def _passes(place: Path) -> Iterator[tuple[str, list[Path]]]:
    """The passes in a folder: their files by scope, in order."""
    passes: dict[str, list[tuple[int, Path]]] = {}
    for path in place.iterdir():
        match = _PASS.fullmatch(path.name)
        if match is not None:
            passes.setdefault(match["scope"], []).append((int(match["number"]), path))
    for scope, found in sorted(passes.items()):
        yield scope, [path for _, path in sorted(found)]


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
    record = max(every, key=_order)
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
    flags, pictures = Flags(number=0, worst=[], batches=[], confusions={}), list[StoredPicture]()
    names = list(dict.fromkeys(row.label for row in record.findings))[:MOST_FILTERS]
    try:
        if flagged.is_file():
            flags = _read_flags(flagged, names, record.details)
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
        flagged=flags.number,
        flags=flags.worst,
        batches=flags.batches,
        pictures=pictures,
        cards={
            name: FilterCard(
                found=[row for row in record.findings if row.label == name],
                confusions=flags.confusions.get(name, []),
                trail=[(one.number, _blamed_in(one, name)) for one in records],
            )
            for name in names
        },
        notes=notes,
    )


def _name(folder: Path, place: Path, scope: str) -> str:
    """What a section is called."""
    run = place.parent if place.name in _FOLDERS else place
    inner = run.relative_to(folder) if run.is_relative_to(folder) else Path()
    return _text(inner, scope, f": {scope}")


def _text(inner: Path, alone: str, behind: str = "") -> str:
    """A folder's name, with something behind, or alone; names of files need not be text."""
    name = f"{inner}{behind}" if str(inner) != "." else alone
    return name.encode(errors="replace").decode()


def _blamed_in(record: PassRecord, label: str) -> int | None:
    """How many mistakes of a pass blame a filter; None where it is not in its table."""
    return next((row.mistakes for row in record.filters if row.label == label), None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flags:
    """What a file of flags held."""

    number: int  # of flagged samples
    worst: list[StoredFlag]  # those of the highest loss, one that is not finite first
    batches: list[StoredBatch]  # with most filters beyond chance
    confusions: dict[str, list[Confusion]]  # of the mistakes that blame a filter, by its label


def _read_flags(path: Path, names: Sequence[str], details: Sequence[str]) -> Flags:
    """Read the flags of samples, holding no more than the worst.

    Args:
        names: Labels of filters whose confusions are counted.
        details: Fields in which the task says something.
    """
    number, wanted, batches = 0, set(names), list[StoredBatch]()
    counts: dict[str, Counter[tuple[int, int]]] = {name: Counter() for name in names}

    def samples() -> Iterator[StoredFlag]:
        nonlocal number
        for flag in read_flags(path, FLAG_SCHEMA):
            if flag.get("kind") == "sample":
                number += 1
                stored = stored_flag(flag, details, path.name)
                blamed = {each.label for each in stored.top} if "target" in flag else set()
                for name in wanted & blamed:
                    counts[name][stored.target, stored.predicted] += 1
                yield stored
            elif flag.get("beyond_chance"):
                batches.append(record_of(StoredBatch, flag, path.name))

    worst = heapq.nlargest(MOST_FLAGS, samples(), key=_loss)
    return Flags(
        number=number,
        worst=worst,
        batches=heapq.nlargest(MOST_BATCHES, batches, key=lambda each: each.beyond_chance),
        confusions={
            name: [
                Confusion(target=target, predicted=predicted, mistakes=mistakes)
                for (target, predicted), mistakes in of.most_common()
            ]
            for name, of in counts.items()
        },
    )


def stored_flag(flag: dict[str, Any], details: Sequence[str], where: str) -> StoredFlag:
    """What the page shows of a flag; names of any length are cut."""
    own = {"id": str(flag.get("id"))[:LETTERS], "details": [flag.get(name) for name in details]}
    stored = record_of(StoredFlag, flag | own, where)
    top = [replace(t, label=t.label[:LETTERS], group=t.group[:LETTERS]) for t in stored.top]
    return replace(stored, top=top)


def _loss(flag: StoredFlag) -> float:
    """The loss of a flag; one that is not finite was left out of the file."""
    return math.inf if math.isnan(flag.loss) else flag.loss
