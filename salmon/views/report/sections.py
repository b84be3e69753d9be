"""What the template shows of a section: plain values, tables with links, charts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count

from markupsafe import Markup
from scipy.stats import binomtest

from salmon.files import json_text
from salmon.tasks import NO_CLASS
from salmon.views.charts import (
    calibration_chart,
    depth_bars,
    fit_page,
    heat_map,
    share_bars,
    share_lines,
    xi_chart,
)
from salmon.views.figures import Chart, svg
from salmon.views.files import StoredImage
from salmon.views.history import History
from salmon.views.record import PassRecord
from salmon.views.report.gathering import FilterCard, Section, StoredFlag
from salmon.views.report.plain import LETTERS, Cell, Link, PlainSection, Table
from salmon.views.summary import measured_text, overview, whose
from salmon.views.tables import (
    FILTER_COLUMNS,
    FINDING_COLUMNS,
    PAIR_COLUMNS,
    blamed,
    filter_rows,
    finding_rows,
    p_text,
    pair_rows,
)
from salmon.views.wording import METHOD_NAMES, detail_name

NAMED = 3
"""Top filters of a flagged sample that are shown before a click."""

_NAMED_CONFUSIONS = 5  # of a filter
_TRAIL = 12  # passes of a filter
_SAMPLES = 10  # small images of a filter
CLASS_COLUMNS = (
    "class", "samples", "mistakes", "right, %", "95 % interval", "most often taken for"
)  # fmt: skip
BATCH_COLUMNS = ("batch", "mistakes", "filters beyond chance", "first filters")
LAYER_COLUMNS = (
    "layer", "group", "filters",
    *(text for name in METHOD_NAMES.values() for text in (f"{name}, %", f"most by {name}, %")),
)  # fmt: skip


MOST_CLASSES = 20
"""Of a matrix of confusions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A flagged sample as the table shows it."""

    image: StoredImage | None
    flag: StoredFlag
    target: str
    predicted: str
    facts: str  # JSON: what links to it ask for, beside its filters


def plain_values(number: int, section: PlainSection) -> dict[str, object]:
    """What the template shows of a section of sentences, tables and pictures."""
    return {
        "id": f"section-{number}",
        "name": section.name,
        "notes": section.notes,
        "status": section.status,
        "headline": section.headline,
        "origin": section.origin,
        "tables": section.tables,
        "charts": _drawn(number, section.charts),
        "images": section.pictures,
    }


def section_values(number: int, section: Section) -> dict[str, object]:
    """What the template shows of a section."""
    record, history = section.record, section.history
    before = None if section.before is None else blamed(section.before)
    charts: list[tuple[str, list[Chart]]] = [
        ("Where are mistakes made?", [share_bars(record), depth_bars(record)]),
        (
            "Since when?",
            [
                *(share_lines(history, name) for name in ("pot", "zscore", "difference")),
                *(heat_map(history, method) for method in ("pot", "zscore")),
            ],
        ),
        (
            "Can the fits be trusted?",
            [
                fit_page(record),
                xi_chart(record),
                *([calibration_chart(record)] if record.calibration else []),
            ],
        ),
    ]
    images = {
        picture.sample: picture.image
        for picture in section.pictures
        if picture.kind in ("flagged", "thumbnail")  # which comes after, and wins
    }
    rows = [_row(record, flag, images.get(flag.sample)) for flag in section.flags]
    return {
        "id": f"section-{number}",
        "name": section.name,
        "record": record,
        "when": _when(record),
        "notes": section.notes,
        "overview": overview(record, history),
        "origin": {"date": _date(record.time), **record.origin},
        "findings": ("findings", "Filters beyond chance", FINDING_COLUMNS, [
            [those, _to_flags(section, label, label), *rest]
            for those, label, *rest in finding_rows(record)
        ]),
        "cards": [_card(record, section, label, card) for label, card in section.cards.items()],
        "matrix": _matrix(section),
        "classes": ("classes", "Every class", CLASS_COLUMNS, _class_rows(section)),
        "pairs": ("pairs", "Classes that are confused", PAIR_COLUMNS, [
            [
                _to_flags(section, true, f"{true} taken for {taken}"),
                _to_flags(section, taken, f"predicted class {taken}"), *rest,
            ]
            for true, taken, *rest in pair_rows(record)
        ]),
        "filters": ("filters", "Filters that most mistakes blame", FILTER_COLUMNS, [
            [_to_flags(section, label, label), Link(group, "filters", group), *rest]
            for label, group, *rest in filter_rows(record, before)
        ]),
        "batches": ("batches", "Batches with filters beyond chance", BATCH_COLUMNS, [
            [
                _to_flags(section, str(each.batch), f"batch {each.batch}"),
                str(len(each.samples)),
                str(each.beyond_chance),
                ", ".join(str(top.get("label"))[:LETTERS] for top in each.top[:NAMED]),
            ]
            for each in section.batches
        ]),
        "layers": (
            "layers", "Share of each layer among the top filters", LAYER_COLUMNS, [
                [layer, Link(group, "layers", group), *rest]
                for layer, group, *rest in _layer_rows(section.history)
            ],
        ),
        "charts": _drawn(number, charts),
        "pictures": [picture for picture in section.pictures if picture.kind == "flagged"],
        "rows": rows,
        "flags": section.flagged,
        "details": [detail_name(name) for name in record.details],
        "named": NAMED,
    }  # fmt: skip


def _drawn(
    number: int, charts: Sequence[tuple[str, Sequence[Chart]]]
) -> list[tuple[str, list[Markup]]]:
    """Charts by heading, each under a name of its own."""
    places = count()
    return [
        (heading, [Markup(svg(chart, f"chart-{number}-{next(places)}")) for chart in group])
        for heading, group in charts
    ]


def _row(record: PassRecord, flag: StoredFlag, image: StoredImage | None) -> Row:
    """A flagged sample, and by what it is found."""
    true, taken = record.class_name(flag.target), record.class_name(flag.predicted)
    facts = [f"batch {flag.batch}"]
    if record.has_classes:
        facts += [f"true class {true}", f"predicted class {taken}"]
        facts += [_taken_for(record, flag.target, flag.predicted)]
    return Row(image=image, flag=flag, target=true, predicted=taken, facts=json_text(facts))


def _card(record: PassRecord, section: Section, label: str, card: FilterCard) -> dict[str, object]:
    """A filter that stands out, with whom it fails and since when."""
    shown = [picture for picture in section.pictures if picture.filter == label]
    flagged = {flag.sample for flag in section.flags if label in {t.label for t in flag.top}}
    return {
        "link": _to_flags(section, label, label),
        "found": [
            f"{whose(record, row)}: {row.mistakes} mistakes, {row.expected:.3g} expected, "
            f"adjusted p {p_text(row.p)}"
            for row in card.found
        ],
        "confusions": [
            _to_flags(section, f"{pair}: {c.mistakes}", pair)
            for c in card.confusions[:_NAMED_CONFUSIONS]
            for pair in [_taken_for(record, c.target, c.predicted)]
        ],
        "trail": ", ".join(
            f"{'not listed' if mistakes is None else mistakes} in pass {number}"
            for number, mistakes in card.trail[-_TRAIL:]
        )
        if len(card.trail) > 1
        else "",
        "mistakes": [p for p in shown if p.kind == "mistake"],
        "right": [p for p in shown if p.kind == "right"],
        "samples": [p for p in section.pictures if p.kind == "thumbnail" and p.sample in flagged][
            :_SAMPLES
        ],
    }


def _to_flags(section: Section, text: str, query: str, weight: float = 0.0) -> Cell:
    """A link to the flagged samples, if they are on the page."""
    return Link(text, "flags", query, weight) if section.flags else text


def _taken_for(record: PassRecord, target: int, predicted: int) -> str:
    """As the table of flagged samples says it."""
    return f"{record.class_name(target)} taken for {record.class_name(predicted)}"


def _matrix(section: Section) -> Table | None:
    """True classes by rows and predicted ones by columns; None where they are too many."""
    record = section.record
    counts = {(pair.target, pair.predicted): pair.mistakes for pair in record.pairs}
    classes = sorted(
        {number for number, samples in enumerate(record.class_samples) if samples}
        | {predicted for _, predicted in counts}
    )
    if not counts or len(classes) > MOST_CLASSES:
        return None
    names, most = [record.class_name(number) for number in classes], max(counts.values())
    rows: list[list[Cell]] = []
    for true, name in zip(classes, names, strict=True):
        samples = record.class_samples[true] if true != NO_CLASS else 0
        if not samples:
            continue
        right = samples - record.class_mistakes[true]
        cells: list[Cell] = [name]
        for taken in classes:
            number = counts.get((true, taken), 0)
            whole = _taken_for(record, true, taken)
            link = _to_flags(section, str(number), whole, number / most) if number else ""
            cells.append(str(right) if true == taken else link)
        rows.append(cells)
    return Table("matrix", "True classes (rows) and what they are taken for", ["", *names], rows)


def _class_rows(section: Section) -> list[list[Cell]]:
    """Samples, mistakes and accuracy of every class, the worst first."""
    record = section.record
    if not record.has_classes:
        return []
    first = {pair.target: pair for pair in reversed(record.pairs)}
    rows: list[tuple[float, list[Cell]]] = []
    columns = zip(record.class_samples, record.class_mistakes, strict=True)
    for number, (samples, mistakes) in enumerate(columns):
        if not samples:
            continue
        name, right = record.class_name(number), samples - mistakes
        ends = binomtest(right, samples).proportion_ci(method="wilson")
        taken = record.class_name(first[number].predicted) if number in first else ""
        rows.append((right / samples, [
            _to_flags(section, name, f"true class {name}"), str(samples), str(mistakes),
            f"{100 * right / samples:.1f}", f"{100 * ends.low:.1f} to {100 * ends.high:.1f}", taken,
        ]))  # fmt: skip
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def _date(seconds: float) -> str:
    """In the time of Greenwich."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _layer_rows(history: History) -> list[list[str]]:
    """What the charts show of layers: shares in the last pass, and the largest in any."""
    rows = [[layer.layer, layer.group, str(layer.filters)] for layer in history.layers]
    for method in METHOD_NAMES:
        shares = 100 * history.layer_shares(method)
        for column in (shares[-1], shares.nan_to_num(-1).amax(0)):
            for row, share in zip(rows, column.tolist(), strict=True):
                row.append(f"{share:.1f}" if share >= 0 else "")
    return rows


def _when(record: PassRecord) -> str:
    """Which pass it was."""
    part = f" {measured_text(record)}" if record.measured < record.samples else ""
    if record.share is None:  # a diagnosis, without a trainer
        return f"Diagnosis of {record.samples} samples.{part}"
    return (
        f"{record.stage.capitalize()} pass {record.number} of this run, counted from 0, at step "
        f"{record.step}.{part}"
    )
