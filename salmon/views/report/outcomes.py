"""What the report shows of repairs and comparisons: who is right now, who is wrong, and where."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salmon.errors import StateError
from salmon.files import read_text
from salmon.records import Number, parsed, record_of
from salmon.views.files import StoredImage, read_pictures
from salmon.views.report.plain import LETTERS, Cell, PlainSection, Table
from salmon.views.tables import p_text

_REPAIR, _COMPARISON = "salmon.repair/2", "salmon.comparison/1"
_START = 100  # bytes that tell whose file it is
_ROWS = 20  # names of a tensor's rows
_TRADEOFF = "What was won on the new data against what was lost on the reference data"
_LAYERS_TEXT = (
    "loss: what the change added to the mean loss of the samples that turned wrong. With the "
    "layer's old weights in the new network so many of these are rescued, and so many others lost; "
    "net is over all samples, beside that of random changes of equal norm. blame: in how many more "
    "of 100 samples that turned wrong each of its filters is among the first, in mean, than in the "
    "old network."
)

MOST_CHANGED = 200
"""Samples that turned right or wrong, of each set."""


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
    name: str = ""
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    id: str | int
    row: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Set:
    classes: list[_Class]
    fixed: list[_Sample]
    broken: list[_Sample]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What repairs and comparisons both have."""

    status: str
    headline: str
    context: dict[str, str]
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Repair:
    parameters: int
    winner: _Judged | None
    layers: list[_Layer]
    accept: dict[str, _Set]
    remedies: list[_Judged]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group(_Side):
    kind: str
    name: str
    samples: int
    p: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reversal:
    name: str
    weights: int
    relative_change: Number
    rescued: int
    lost: int
    net: float
    random: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _FilterBlame:
    name: str
    new: int
    old: int
    expected: Number
    p: float | None
    changed: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blame:
    samples: int
    filters: list[_FilterBlame]
    layers: dict[str, float]
    beyond: int
    overlap: int
    overlap_expected: float
    overlap_p: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class _OwnBlame:
    groups: dict[str, Number]
    filters: dict[str, float]
    depth: Number
    filter_depth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    rules: list[_Rule]
    groups: list[_Group]
    fixed_samples: list[_Sample]
    broken_samples: list[_Sample]
    changed: dict[str, Number]
    blame: _Blame | None
    own: list[_OwnBlame] | None  # of the old and the new network
    loss_shares: dict[str, float]
    filter_loss_shares: dict[str, float]
    reversals: list[_Reversal]
    filter_reversals: list[_Reversal]


def is_outcome(path: Path) -> bool:
    """Whether a file is the report of a repair or comparison, and not something else so named."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(_START)
    return b'"salmon.repair/' in start or b'"salmon.comparison/' in start


def read_outcome(path: Path, name: str) -> PlainSection:
    """Read a repair or a comparison.

    Args:
        path: Of its ``report.json``.
        name: Of its folder; empty if it is the only one.
    """
    kind = "report"
    try:
        text = read_text(path)
        kind = "repair" if '"salmon.repair/' in text[:_START] else "comparison"
        images = {
            file.stem.partition("-")[2]: {one.sample: one.image for one in read_pictures(file)}
            for file in sorted(path.parent.glob("pictures-*.jsonl"))
        }
        if kind == "repair":
            value = parsed(text, _REPAIR, str(path))
            tables = _repair_tables(record_of(_Repair, value, path.name), images)
        else:
            value = parsed(text, _COMPARISON, str(path))
            tables = comparison_tables(value, path.name, images.get("samples", {}))
        found = record_of(_Outcome, value, path.name)
    except StateError as error:
        return PlainSection(name=_titled(kind, name), notes=[f"The {kind} is left out: {error}"])
    drawn = path.with_name("tradeoff.svg")
    return PlainSection(
        name=_titled(kind, name),
        status=found.status,
        headline=found.headline,
        origin={key: value.strip("`") for key, value in found.context.items()}
        | {"versions": ", ".join(map(" ".join, found.versions.items()))},
        tables=tables,
        pictures=[(_TRADEOFF, _vector_graphic(drawn))] if drawn.is_file() else [],
    )


def _titled(kind: str, name: str) -> str:
    return kind.capitalize() if name in ("", kind) else f"{kind.capitalize()}: {name}"


def _vector_graphic(path: Path) -> StoredImage:
    return StoredImage(media="image/svg+xml", data=base64.b64encode(path.read_bytes()).decode())


_Images = Mapping[int, StoredImage]
"""Small images of a set, by row."""


def _repair_tables(repair: _Repair, images: Mapping[str, _Images]) -> list[Table]:
    judged = [] if repair.winner is None else [repair.winner]
    tables = []
    if repair.winner is not None:
        columns = ["tensor", "rows", "which", "weights", "relative change, %"]
        rules = _rules("Rules, on samples that nothing was chosen by", repair.winner.rules)
        tables = [rules, Table("changed", "What was changed", columns, [
            [layer.name, f"{len(layer.rows)} of {layer.of}", _which(layer), str(layer.weights),
             f"{100 * layer.relative_change:.1f}"]
            for layer in repair.layers
        ])]  # fmt: skip
    for name, found in repair.accept.items():
        columns = ["class", "samples", "right before, %", "right after, %"]
        tables += [
            Table(f"classes-{name}", f"Classes of the {name} data", columns, [
                [c.name or str(c.label), str(c.samples), f"{100 * c.before:.1f}",
                 f"{100 * c.after:.1f}"]
                for c in found.classes
            ]),
            _samples(name, f"the {name} data", found.fixed, found.broken, images.get(name, {})),
        ]  # fmt: skip
    columns = ["remedy", "order", "how", "filters", "weights, %", "new, %", "reference, %", "fixed",
               "broken", "rules"]  # fmt: skip
    return [*tables, Table("remedies", "Beside other remedies", columns, [
        [
            each.trial.remedy, each.trial.order, each.trial.how, str(each.trial.filters),
            f"{100 * each.trial.weights / repair.parameters:.2f}", _way(each.new),
            _way(each.reference), str(each.new.fixed), str(each.new.broken), _passed(each.accepted),
        ]
        for each in [*judged, *repair.remedies]
    ])]  # fmt: skip


def comparison_tables(
    value: Mapping[str, Any], where: str, images: _Images | None = None
) -> list[Table]:
    """Lay out a comparison of two networks.

    Args:
        value: What its ``report.json`` holds.
        where: Its name in errors.
        images: Small images of samples, by row.
    """
    found = record_of(_Comparison, value, where)
    groups = Table(
        "groups", "Who gained and who lost",
        ["", "which", "samples", "before, %", "after, %", "fixed", "broken", "p"],
        [
            [each.kind, each.name, str(each.samples), f"{100 * each.before:.1f}",
             f"{100 * each.after:.1f}", str(each.fixed), str(each.broken), p_text(each.p)]
            for each in found.groups if each.fixed or each.broken
        ],
        "Those that lost most first. p: that no more turn wrong than right, exact, adjusted for "
        "all groups (Holm). Before and after are shares of right samples; of a confusion, those "
        "that are not mistaken so, where fixed and broken are who left and who joined it.",
    )  # fmt: skip
    tables = [
        _rules("Gates", found.rules), groups,
        _samples("samples", "the data", found.fixed_samples, found.broken_samples, images or {}),
    ]  # fmt: skip
    if found.reversals:
        gained = {} if found.blame is None else found.blame.layers
        tables += [
            _reversals("layers", "What each layer's change did", found.reversals, found.loss_shares,
                       gained, _LAYERS_TEXT),
            _reversals("filters", "What single filters' change did", found.filter_reversals,
                       found.filter_loss_shares, {}, "Those that added most to the loss."),
        ]  # fmt: skip
    else:
        changed = [[name, f"{100 * share:.1f}"] for name, share in found.changed.items()]
        columns = ["layer", "relative change, %"]
        tables.append(Table("layers", "Layers that changed", columns, changed))
    if found.blame is not None:
        tables.append(_blame_table(found.blame))
    if found.own is not None:
        tables.append(_own_table(*found.own))
    return tables


def _blame_table(blame: _Blame) -> Table:
    rows = [
        [f.name, str(f.new), str(f.old), f"{f.expected:.1f}", p_text(f.p), f"{100 * f.changed:.1f}"]
        for f in blame.filters
    ]
    return Table(
        "blame", "What the samples that turned wrong blame",
        ["filter", "samples, new", "old", "expected", "p", "relative change, %"], rows,
        f"{blame.samples} samples in the new network, by the tails of the old one, beside the same "
        "samples in the old network. p: that they name a filter as right samples do, adjusted for "
        f"all filters. {blame.beyond} filters are blamed beyond chance; {blame.overlap} of them "
        f"are among the {blame.beyond} that changed most, where chance would have "
        f"{blame.overlap_expected:.2g} (p {p_text(blame.overlap_p)}).",
    )  # fmt: skip


def _own_table(old: _OwnBlame, new: _OwnBlame) -> Table:
    columns = ["group", "of the old filters, %", "of its mistakes' first ones, %",
               "of the new filters, %", "of its mistakes' first ones, %"]  # fmt: skip
    sides = [old.filters, old.groups, new.filters, new.groups]
    rows = [
        [group, *(f"{100 * of[group]:.1f}" if group in of else "" for of in sides)]
        for group in dict.fromkeys((*old.groups, *new.groups))
    ]
    return Table(
        "own", "Where each network's mistakes lie", columns, rows,
        "The first filters of each network's own mistakes by its own tails, since filters cannot "
        "be matched one by one. Mean place, from 0 in the first layer to 1 in the last: "
        + ", ".join(
            f"{'none' if math.isnan(own.depth) else format(own.depth, '.2f')} in the {which} "
            f"network (all its filters: {own.filter_depth:.2f})"
            for which, own in (("old", old), ("new", new))
        )
        + ".",
    )  # fmt: skip


def _rules(heading: str, rules: Sequence[_Rule]) -> Table:
    rows = [[r.name, _passed(r.passed), r.text] for r in rules]
    return Table("rules", heading, ["rule", "", "what was found"], rows)


def _samples(
    name: str, of: str, fixed: Sequence[_Sample], broken: Sequence[_Sample], images: _Images
) -> Table:
    """Who turned wrong, then who turned right, with images where there are some."""
    rows: list[list[Cell]] = [
        [*([images.get(one.row, "")] if images else []), how, str(one.id)[:LETTERS], one.what]
        for how, samples in (("broken", broken), ("fixed", fixed))
        for one in samples[:MOST_CHANGED]
    ]
    more = len(broken) + len(fixed) - len(rows)
    return Table(
        f"samples-{name}", f"Samples of {of} that turned wrong or right",
        [*(["image"] if images else []), "", "id", "what changed"], rows,
        f"{len(broken)} turned wrong and {len(fixed)} right."
        + (f" {more} of them are only in report.json." if more else ""),
    )  # fmt: skip


def _reversals(
    name: str, heading: str, found: Sequence[_Reversal], shares: Mapping[str, float],
    blame: Mapping[str, float], text: str,
) -> Table:  # fmt: skip
    columns = ["", "weights", "relative change, %", "loss", "rescued", "lost", "net", "net, random"]
    rows = [
        [each.name, str(each.weights), f"{100 * each.relative_change:.1f}",
         _known(shares, each.name, 1), str(each.rescued), str(each.lost), f"{each.net:+.0f}",
         f"{each.random:+.0f}", *([_known(blame, each.name, 100)] if blame else [])]
        for each in found
    ]  # fmt: skip
    return Table(name, heading, [*columns, *(["blame"] if blame else [])], rows, text)


def _known(values: Mapping[str, float], name: str, unit: int) -> str:
    return f"{unit * values[name]:+.2g}" if name in values else ""


def _passed(passed: bool) -> str:  # noqa: FBT001
    return "passed" if passed else "failed"


def _way(side: _Side) -> str:
    return f"{100 * side.before:.1f} to {100 * side.after:.1f}"


def _which(layer: _Layer) -> str:
    if len(layer.rows) == layer.of:
        return "all"
    more = len(layer.rows) - _ROWS
    return ", ".join(layer.rows[:_ROWS]) + (f" and {more} more" if more > 0 else "")
