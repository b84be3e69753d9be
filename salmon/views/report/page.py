"""One HTML page out of sections; every name from data is escaped by the template engine."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from salmon.files import write_atomically
from salmon.views.charts import (
    calibration_chart,
    depth_bars,
    fit_page,
    heat_map,
    share_bars,
    share_lines,
    xi_chart,
)
from salmon.views.figures import DARK, LIGHT, Chart, svg
from salmon.views.files import StoredImage
from salmon.views.history import History
from salmon.views.record import PassRecord
from salmon.views.report.gathering import NAMED, Section, StoredFlag
from salmon.views.summary import overview
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
from salmon.views.wording import METHOD_NAMES

LAYER_COLUMNS = (
    "layer", "group", "filters",
    *(text for name in METHOD_NAMES.values() for text in (f"{name}, %", f"most by {name}, %")),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A flagged sample as the table shows it."""

    image: StoredImage | None
    flag: StoredFlag
    target: str
    predicted: str


def write_report(path: Path, sections: Sequence[Section], title: str) -> None:
    """Write the page."""
    data = render(sections, title).encode()
    write_atomically(path, lambda file: file.write(data))


def render(sections: Sequence[Section], title: str) -> str:
    """Make the page.

    Returns:
        HTML that loads nothing from elsewhere; the same sections give the same page. What is no
        text in a name is shown as question marks.
    """
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_asset),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _asset("table.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html").render(
        title=title,
        p_text=p_text,
        style=Markup(_asset("style.css").replace("/* paints */", _paints())),
        script=Markup(script),
        script_hash=digest,
        sections=[_section(number, section) for number, section in enumerate(sections)],
    )
    return page.encode(errors="replace").decode()  # JSON may hold halves of characters


def _section(number: int, section: Section) -> dict[str, object]:
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
    drawn, place = [], 0
    for heading, group in charts:
        graphics = []
        for chart in group:
            graphics.append(Markup(svg(chart, f"chart-{number}-{place}")))
            place += 1
        drawn.append((heading, graphics))
    images = {picture.sample: picture.image for picture in section.pictures}
    # Thumbnails come after the large pictures of the same samples, and win.
    rows = [
        Row(
            image=images.get(flag.sample),
            flag=flag,
            target=record.class_name(flag.target),
            predicted=record.class_name(flag.predicted),
        )
        for flag in section.flags
    ]
    return {
        "id": f"section-{number}",
        "name": section.name,
        "record": record,
        "when": _when(record),
        "notes": section.notes,
        "overview": overview(record, history),
        "charts": drawn,
        "standing_out": (FINDING_COLUMNS, finding_rows(record)),
        "filters": (FILTER_COLUMNS, filter_rows(record, before)),
        "pairs": (PAIR_COLUMNS, pair_rows(record)),
        "layers": (LAYER_COLUMNS, _layer_rows(section.history)),
        "pictures": [picture for picture in section.pictures if picture.caption],
        "rows": rows,
        "flags": section.flagged,
        "named": NAMED,
    }


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
    if record.share is None:  # a diagnosis, without a trainer
        return f"Diagnosis of {record.samples} samples."
    return (
        f"{record.stage.capitalize()} pass {record.number} of this run, counted from 0, at step "
        f"{record.step}."
    )


def _asset(name: str) -> str:
    """A file of this folder."""
    return (files("salmon.views.report") / name).read_text(encoding="utf-8")


def _paints() -> str:
    """Colours of charts and text for light and dark paper."""
    light, dark = _properties(LIGHT), _properties(DARK)
    return (
        f":root {{ {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ @media screen {{ :root {{ {dark} }} "
        "svg image { filter: brightness(1.4); } } }"
    )


def _properties(colours: dict[str, str]) -> str:
    """Custom properties of a palette."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
