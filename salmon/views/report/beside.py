"""Two runs, or two epochs of one, beside each other: what their last passes found, and who changed.

The first is A, the second B, on the whole page.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binomtest

from salmon.diagnosis import SCHEMA as FLAG_SCHEMA
from salmon.errors import InputError
from salmon.views.charts import bars_beside
from salmon.views.files import StoredImage, read_flags, read_pass
from salmon.views.history import History
from salmon.views.record import FindingRow, PassRecord
from salmon.views.report.gathering import (
    StoredFlag,
    flags_of,
    last_passes,
    pictures_of,
    stored_flag,
)
from salmon.views.report.outcomes import MOST_CHANGED
from salmon.views.report.plain import Cell, PlainSection, Table
from salmon.views.summary import whose
from salmon.views.tables import p_text
from salmon.views.wording import percent


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pass:
    """One of the two."""

    path: Path
    record: PassRecord
    flags: dict[str, StoredFlag] | None  # of all mistakes, by id; None where ids tell too little

    @property
    def told(self) -> str:
        """Which it is."""
        record = self.record
        return f"{self.path} ({record.stage} pass {record.number} at step {record.step})"


def gather_beside(first: Path, second: Path) -> list[PlainSection]:
    """Put the last passes of two runs beside each other.

    Args:
        first: A folder as for :func:`gather`, or the file of one pass.
        second: Likewise.

    Returns:
        A section for every run, stage and loader that both have, by name.

    Raises:
        InputError: If they have none in common.
        StateError: If a file is damaged.
    """
    a, b = last_passes(first), last_passes(second)
    if len(a) == len(b) == 1:  # whatever they are called
        a = dict(zip(b, a.values(), strict=True))
    pairs = {name: (a[name], b[name]) for name in a if name in b}
    if not pairs:
        raise InputError(
            f"{first} has {', '.join(a)} and {second} has {', '.join(b)}; nothing stands in both. "
            "Name folders of single runs, or files of single passes (pass-*.json)."
        )
    alone = [name for name in (*a, *b) if name not in pairs]
    sections = [_section(name, *map(_read, paths)) for name, paths in pairs.items()]
    if alone:
        sections[0].notes.append(f"Only in one of the two: {', '.join(alone)}.")
    return sections


def _read(path: Path) -> _Pass:
    record = read_pass(path)
    flags: dict[str, StoredFlag] = {}
    named, file = True, flags_of(path)
    for flag in read_flags(file, FLAG_SCHEMA) if file.is_file() else ():
        if flag.get("kind") == "sample":
            stored = stored_flag(flag, record.details, file.name)
            flags[stored.id] = stored
            named &= (
                flag.get("id_source") != "position"
            )  # which is another sample's in another pass
    complete = named and len(flags) == record.misclassified
    return _Pass(path=path, record=record, flags=flags if complete else None)


def _section(name: str, a: _Pass, b: _Pass) -> PlainSection:
    one, other = a.record, b.record
    notes = []
    same = one.samples == other.samples and one.class_samples == other.class_samples
    if not same:
        notes.append(
            "The passes saw different samples, so that numbers differ for that reason, too, and "
            "samples are not compared one by one."
        )
    elif a.flags is None or b.flags is None:
        notes.append(
            "Samples are not compared one by one, since not every mistake of both passes has a "
            "flag with an id of its own (not the position in a shuffled pass)."
        )
    tables = [_glance(one, other), _findings(one, other), _groups(one, other)]
    if one.has_classes and other.has_classes:
        tables += [_classes(one, other), _confusions(one, other)]
    changed = ""
    if same and a.flags is not None and b.flags is not None:
        fixed = [flag for key, flag in a.flags.items() if key not in b.flags]
        broken = [flag for key, flag in b.flags.items() if key not in a.flags]
        p = binomtest(len(fixed), len(fixed) + len(broken)).pvalue if fixed or broken else 1.0
        changed = (
            f" {len(fixed)} mistakes of A are right in B, and {len(broken)} of B are right in A (p "
            f"{p_text(p)} by McNemar's exact test)."
        )
        tables.append(_samples(a, b, fixed, broken))
    groups = [History.start(record).groups for record in (one, other)]
    return PlainSection(
        name=f"{name}: A beside B",
        headline=f"Right: {percent(_right(one))} in A, {percent(_right(other))} in B.{changed}",
        origin={"A": a.told, "B": b.told}
        | {f"{key}, {side}": text for side, record in (("A", one), ("B", other))
           for key, text in record.origin.items()},
        tables=[table for table in tables if table.rows],
        charts=[("Where are mistakes made?", [bars_beside(one, other)])]
        if groups[0] == groups[1] else [],
        notes=notes,
    )  # fmt: skip


def _right(record: PassRecord) -> float:
    return 1 - record.misclassified / max(1, record.samples)


def _glance(one: PassRecord, other: PassRecord) -> Table:
    """Numbers that stand for a pass."""

    def interval(record: PassRecord) -> str:
        if not record.samples:
            return ""
        right = record.samples - record.misclassified
        ends = binomtest(right, record.samples).proportion_ci(method="wilson")
        return f"{100 * ends.low:.1f} to {100 * ends.high:.1f}"

    def calibration(record: PassRecord) -> str:
        last = record.calibration[-1] if record.calibration else None
        return "" if last is None else f"{last.ratio:.2g} ({last.low:.2g} to {last.high:.2g})"

    lines: dict[str, Callable[[PassRecord], str]] = {
        "samples": lambda record: str(record.samples),
        "mistakes": lambda record: str(record.misclassified),
        "right, %": lambda record: f"{100 * _right(record):.1f}",
        "95 % interval": interval,
        "filters beyond chance": lambda r: "not tested" if r.beyond is None else str(r.beyond),
        "mean place of the top filters, 0 to 1": lambda r: f"{History.start(r).mean_depth():.2f}",
        "doubtful fits, %": lambda r: "" if r.doubtful is None else f"{100 * r.doubtful:.1f}",
        "held-out samples beyond the lowest p, times as many as predicted": calibration,
        "top filters of a sample": lambda record: str(record.top_k),
        "level of thresholds": lambda record: f"{record.level:.3g}",
    }
    rows = [[name, of(one), of(other)] for name, of in lines.items()]
    return Table("glance", "At a glance", ["", "A", "B"], [row for row in rows if any(row[1:])])


def _findings(one: PassRecord, other: PassRecord) -> Table:
    """Filters that stand out in one of them, by mistakes and filter."""

    def named(record: PassRecord) -> dict[tuple[str, str], FindingRow]:
        return {(whose(record, row), row.label): row for row in record.findings}

    sides = named(one), named(other)
    rows = [
        [*key, *(cell for side in sides for cell in _finding(side.get(key)))]
        for key in dict.fromkeys((*sides[0], *sides[1]))
    ]
    return Table(
        "findings", "Filters beyond chance",
        ["mistakes of", "filter", "A", "expected", "p", "B", "expected", "p"], rows,
        "Mistakes that blame a filter, where these are more than chance explains. Filter 3 of one "
        "network is filter 3 of the other where one was made from the other, as in two epochs of a "
        "run; after independent trainings only groups can be compared.",
    )  # fmt: skip


def _finding(row: FindingRow | None) -> tuple[str, str, str]:
    return (
        ("", "", "") if row is None else (str(row.mistakes), f"{row.expected:.3g}", p_text(row.p))
    )


def _groups(one: PassRecord, other: PassRecord) -> Table:
    """Shares of the top filters by POT, with their intervals."""
    sides = []
    for record in (one, other):
        history = History.start(record)
        cells = zip(
            history.groups, history.filter_shares(), history.group_shares("pot")[0].tolist(),
            record.group_intervals, strict=True,
        )  # fmt: skip
        sides.append({
            group: [f"{100 * size:.1f}", f"{100 * share:.1f}",
                    " to ".join(f"{100 * end:.1f}" for end in ends if end == end)]
            for group, size, share, ends in cells
        })  # fmt: skip
    rows = [
        [group, *(cell for side in sides for cell in side.get(group, [""] * 3))]
        for group in dict.fromkeys((*sides[0], *sides[1]))
    ]
    kinds = "filters", "top filters", "interval"
    columns = ["group", *(f"{side}: {kind}, %" for side in "AB" for kind in kinds)]
    return Table("groups", "Share of each group among the top filters by POT", columns, rows)


def _classes(one: PassRecord, other: PassRecord) -> Table:
    """Accuracies, those that fell most first."""

    def right(record: PassRecord) -> dict[str, tuple[int, float]]:
        counts = zip(record.class_samples, record.class_mistakes, strict=True)
        return {
            record.class_name(number): (samples, 100 * (1 - wrong / samples))
            for number, (samples, wrong) in enumerate(counts)
            if samples
        }

    was, now = right(one), right(other)
    rows = [
        [name, *(text for n, share in (was[name], now[name]) for text in (str(n), f"{share:.1f}")),
         f"{change:+.1f}"]
        for change, name in sorted((now[n][1] - was[n][1], n) for n in was if n in now)
    ]  # fmt: skip
    columns = ["class", "A: samples", "A: right, %", "B: samples", "B: right, %", "change, points"]
    return Table("classes", "Classes", columns, rows)


def _confusions(one: PassRecord, other: PassRecord) -> Table:
    """How often a class is taken for another, those that grew most first."""
    sides = [
        {(r.class_name(p.target), r.class_name(p.predicted)): p.mistakes for p in r.pairs}
        for r in (one, other)
    ]
    found = sorted(
        (sides[0].get(pair, 0) - sides[1].get(pair, 0), pair) for pair in sides[0] | sides[1]
    )
    rows = [
        [*pair, str(sides[0].get(pair, 0)), str(sides[1].get(pair, 0)), f"{-fewer:+d}"]
        for fewer, pair in found
    ]
    return Table("pairs", "Confusions", ["true", "taken for", "A", "B", "change"], rows)


def _samples(a: _Pass, b: _Pass, fixed: list[StoredFlag], broken: list[StoredFlag]) -> Table:
    """Those that are wrong in one of them only."""
    images = pictures_of(a.path), pictures_of(b.path)
    shown = any(images)
    rows = [
        row
        for side, how, flags, known in (
            (b, "wrong in B", broken, images[1]), (a, "wrong in A", fixed, images[0])
        )
        for row in _rows(side.record, how, flags[:MOST_CHANGED], known if shown else None)
    ]  # fmt: skip
    more = len(fixed) + len(broken) - len(rows)
    said = ["true", "taken for"] if a.record.has_classes else []
    return Table(
        "samples", "Samples that are wrong in one of them",
        [*(["image"] if shown else []), "", "id", *said, "loss", "first filter", "p"], rows,
        f"{more} more are in the files of flags." if more else "",
    )  # fmt: skip


def _rows(
    record: PassRecord, how: str, flags: list[StoredFlag],
    images: Mapping[int, StoredImage] | None,
) -> Iterator[list[Cell]]:  # fmt: skip
    for flag in flags:
        image: list[Cell] = [] if images is None else [images.get(flag.sample, "")]
        classes = [record.class_name(flag.target), record.class_name(flag.predicted)]
        top = flag.top[0] if flag.top else None
        yield [
            *image, how, flag.id, *(classes if record.has_classes else []), f"{flag.loss:.3f}",
            "" if top is None else top.label, "" if top is None else p_text(top.p),
        ]  # fmt: skip
