"""All views of a pass, put up on the boards of a trainer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from salmon.markdown import literal
from salmon.views.board import Board
from salmon.views.charts import (
    calibration_chart,
    fit_page,
    heat_map,
    overview_card,
    share_bars,
    share_lines,
)
from salmon.views.figures import Chart, pixels
from salmon.views.history import History
from salmon.views.pictures import Picture, Pixels, contact_sheet, response_sheet
from salmon.views.record import XI_EDGES, PassRecord
from salmon.views.summary import finding_text, overview
from salmon.views.tables import (
    FILTER_COLUMNS,
    FINDING_COLUMNS,
    PAIR_COLUMNS,
    Blamed,
    filter_rows,
    filter_table,
    finding_rows,
    finding_table,
    pair_rows,
    pair_table,
)

OVERVIEW = "0_overview"
"""Tag that comes first among images and texts."""


def publish(
    boards: Sequence[Board],
    scope: str,
    record: PassRecord,
    history: History,
    *,
    before: Blamed | None,
    pictures: Sequence[Picture] = (),
    confused: Sequence[Pixels] = (),
    figures: bool = True,
    shown: dict[str, str] | None = None,
    attempt: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Put up histograms, charts, tables and flagged images.

    Args:
        scope: First part of the tags, such as ``salmon``.
        before: The pass before, for the table of filters.
        confused: Images of the worst confusion, for the overview.
        shown: Texts that were put up last, by tag; the same text is not put up again. Updated.
        attempt: Makes a context around all that goes to one board, from a description of it; if the
            context swallows an exception, the rest is put up all the same.
    """
    summary = "\n".join(
        f"- **{name}.** {literal(' '.join(lines))}"
        for name, lines in overview(record, history).items()
    )
    tables = _tables(record, before, f"{scope}/", {} if shown is None else shown)
    for board in boards:
        with attempt(f"texts, tables and histograms in {board.name}"):
            board.text(f"{scope}/{OVERVIEW}", summary, record.step)
            _put_histograms(board, scope, record)
            for tag, columns, rows, markdown in tables:
                board.table(tag, columns, rows, record.step, markdown=markdown)
    images: list[tuple[str, Pixels, bool]] | None = None  # drawn for the first that takes them
    for board in boards:
        with attempt(f"images in {board.name}"):
            if not board.takes_images:
                continue
            if images is None:
                charts = _charts(record, history, confused) if figures else {}
                images = [(name, pixels(chart), False) for name, chart in charts.items()]
                images += [(name, sheet, True) for name, sheet in _sheets(record, pictures)]
            for name, image, photo in images:
                board.image(f"{scope}/{name}", image, record.step, photo=photo)


def _sheets(record: PassRecord, pictures: Sequence[Picture]) -> Iterator[tuple[str, Pixels]]:
    """Flagged images on one sheet, and what the filters that stand out respond to on another."""
    flagged = [one for one in pictures if one.kind == "flagged"]
    if flagged:
        yield "flagged", contact_sheet(flagged)
    seen = [one for one in pictures if one.kind in ("mistake", "right")]
    if seen:
        names = dict.fromkeys(one.filter for one in seen)
        yield "responses", response_sheet([
            (finding_text(record, name), [one for one in seen if one.filter == name])
            for name in names
        ])  # fmt: skip


def _put_histograms(board: Board, scope: str, record: PassRecord) -> None:
    """The spread over the layers, and the shapes of the tails."""
    for method, counts in record.counts.items():
        # Integer edges: bin i, from i to i + 1, is layer i and nothing else.
        board.histogram(f"{scope}/depth/{method}", range(len(counts) + 1), counts, record.step)
    for group, counts in record.xi.items():
        board.histogram(f"{scope}/xi/{group}", XI_EDGES, counts, record.step)


def _tables(
    record: PassRecord, before: Blamed | None, prefix: str, shown: dict[str, str]
) -> list[tuple[str, Sequence[str], list[list[str]], str]]:
    """Tag, columns, rows and markdown of the tables that are not those shown last."""
    tables = (
        ("findings", FINDING_COLUMNS, finding_rows(record), finding_table(record)),
        ("filters", FILTER_COLUMNS, filter_rows(record, before), filter_table(record, before)),
        ("confusions", PAIR_COLUMNS, pair_rows(record), pair_table(record)),
    )
    fresh: list[tuple[str, Sequence[str], list[list[str]], str]] = []
    for name, columns, rows, markdown in tables:
        if rows and shown.get(prefix + name) != markdown:
            shown[prefix + name] = markdown
            fresh.append((prefix + name, columns, rows, markdown))
    return fresh


def _charts(record: PassRecord, history: History, confused: Sequence[Pixels]) -> dict[str, Chart]:
    """All charts by the end of their tag."""
    several = len(history.passes) > 1
    return {
        OVERVIEW: overview_card(record, history, confused),
        "shares": share_bars(record),
        "fit_quality": fit_page(record),
        **({"calibration": calibration_chart(record)} if record.calibration else {}),
        **{f"heatmap/{method}": heat_map(history, method) for method in record.counts},
        **{
            f"trend/{name}": share_lines(history, name)
            for name in (*record.counts, "difference")
            if several
        },
    }
