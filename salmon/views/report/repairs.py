"""What the report shows of repairs: what was changed, for whom it is better, and for whom worse."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from salmon.errors import StateError
from salmon.files import read_text
from salmon.records import Number, parsed, record_of
from salmon.views.files import StoredImage

REPAIR_SCHEMA = "salmon.repair/2"
_MOST = 200  # samples that turned right or wrong, of each set
_START = 100  # bytes that tell whose file it is
_ROWS = 20  # names of a tensor's rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    remedy: str
    order: str
    how: str
    filters: int
    weights: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    before: float
    after: float
    fixed: int
    broken: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    name: str
    passed: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    accepted: bool
    trial: _Trial
    new: _Side
    reference: _Side
    rules: list[_Rule]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    name: str
    rows: list[str]
    of: int
    weights: int
    relative_change: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class _Class:
    label: int
    samples: int
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    id: str | int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Set:
    classes: list[_Class]
    fixed: list[_Sample]
    broken: list[_Sample]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRepair:
    """What a repair's ``report.json`` holds."""

    status: str
    headline: str
    context: dict[str, str]
    versions: dict[str, str]
    parameters: int
    winner: _Judged | None
    layers: list[_Layer]
    accept: dict[str, _Set]
    remedies: list[_Judged]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RepairSection:
    """A repair, and the pictures beside its report."""

    name: str
    repair: StoredRepair | None  # None where it cannot be read
    pictures: list[tuple[str, StoredImage]]  # with what they show
    notes: list[str]  # on what is left out


def is_repair(path: Path) -> bool:
    """Whether a file is the report of a repair, and not something else of that name."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b'"salmon.repair/' in file.read(_START)


def read_repair(path: Path, name: str) -> RepairSection:
    """Read a repair.

    Args:
        path: Of its ``report.json``.
    """
    try:
        value = parsed(read_text(path), REPAIR_SCHEMA, str(path))
        repair = record_of(StoredRepair, value, path.name)
    except StateError as error:
        notes = [f"The repair is left out: {error}"]
        return RepairSection(name=name, repair=None, pictures=[], notes=notes)
    found = {
        "What was won on the new data against what was lost on the reference data": (
            path.with_name("tradeoff.svg"), "image/svg+xml"
        ),
        "New samples that turned right or wrong": (path.with_name("new.png"), "image/png"),
        "Reference samples that turned right or wrong": (
            path.with_name("reference.png"), "image/png"
        ),
    }  # fmt: skip
    return RepairSection(
        name=name,
        repair=repair,
        notes=[],
        pictures=[
            (text, StoredImage(media=media, data=base64.b64encode(file.read_bytes()).decode()))
            for text, (file, media) in found.items()
            if file.is_file()
        ],
    )


def repair_tables(repair: StoredRepair) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Headings, columns and rows."""
    judged = [] if repair.winner is None else [repair.winner]
    if repair.winner is not None:
        yield (
            "Rules, on samples that nothing was chosen by",
            ["rule", "", "what was found"],
            [[r.name, _passed(r.passed), r.text] for r in repair.winner.rules],
        )
        yield (
            "What was changed",
            ["tensor", "rows", "which", "weights", "relative change, %"],
            [
                [layer.name, f"{len(layer.rows)} of {layer.of}", _which(layer), str(layer.weights),
                 f"{100 * layer.relative_change:.1f}"]
                for layer in repair.layers
            ],
        )  # fmt: skip
    for name, found in repair.accept.items():
        if found.classes:
            yield (
                f"Classes of the {name} data",
                ["class", "samples", "right before, %", "right after, %"],
                [
                    [str(c.label), str(c.samples), f"{100 * c.before:.1f}", f"{100 * c.after:.1f}"]
                    for c in found.classes
                ],
            )
        changed = [("broken", s) for s in found.broken] + [("fixed", s) for s in found.fixed]
        yield (
            f"Samples of the {name} data that turned right or wrong",
            ["", "id", "what changed"],
            [[how, str(s.id), s.what] for how, s in changed[:_MOST]],
        )
    yield (
        "Beside other remedies",
        ["remedy", "order", "how", "filters", "weights, %", "new, %", "reference, %", "fixed",
         "broken", "rules"],
        [
            [
                each.trial.remedy, each.trial.order, each.trial.how, str(each.trial.filters),
                f"{100 * each.trial.weights / repair.parameters:.2f}", _way(each.new),
                _way(each.reference), str(each.new.fixed), str(each.new.broken),
                _passed(each.accepted),
            ]
            for each in [*judged, *repair.remedies]
        ],
    )  # fmt: skip


def _passed(passed: bool) -> str:  # noqa: FBT001
    return "passed" if passed else "failed"


def _way(side: _Side) -> str:
    return f"{100 * side.before:.1f} to {100 * side.after:.1f}"


def _which(layer: _Layer) -> str:
    if len(layer.rows) == layer.of:
        return "all"
    more = len(layer.rows) - _ROWS
    return ", ".join(layer.rows[:_ROWS]) + (f" and {more} more" if more > 0 else "")
