"""What is written of an experiment: CSV files, figures, and one page of markdown tables."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from examples.paper.shared.bands import Values, band, mean_of
from examples.paper.shared.editing import METRICS, Curves
from examples.paper.shared.figures import draw_curves, draw_shares
from examples.paper.shared.options import Options
from examples.paper.shared.pasting import paste
from salmon.files import write_atomically
from salmon.markdown import markdown_table

NAMES = {
    "pot": "POT", "zscore": "z-score", "magnitude": "magnitude", "random": "random",
    "last_group": "last group only", "all filters": "all filters",
}  # fmt: skip
TITLES = {
    "predicted": "wrong class, points", "target": "true class, points",
    "corrected": "corrected, %",
}  # fmt: skip
FACTS = {
    "panel": "", "statistics": "images for the tails", "images": "target images",
    "wrong": "misclassified", "edited": "of these edited", "short": "fewer than 25 ranked by POT",
}  # fmt: skip
STANDIN = (
    "**Stand-in: the network has random weights. These numbers show that the script runs, and "
    "nothing else.**"
)

Row = dict[str, Any]
Shares = Mapping[str, Mapping[str, float]]
"""By ranking (or ``all filters``) and group."""


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """Curves that belong into one picture."""

    name: str
    cases: Sequence[Curves]  # one, or one per seed
    drawn: bool = True  # else in the CSV only
    facts: Mapping[str, Any] = field(default_factory=dict)  # the same columns for all panels


def write_results(
    name: str,
    title: str,
    options: Options,
    panels: Sequence[Panel],
    shares: Mapping[str, Shares],
    *,
    notes: Sequence[str] = (),
    standin: bool = False,
) -> None:
    """Write everything that there is of an experiment.

    Args:
        name: Of the experiment, as in the page of docs.
        title: Of its page.
        options: Of it.
        panels: Curves; none where filters were ranked only.
        shares: Of the groups, by case (seed, split, ...).
        notes: Paragraphs above the tables.
        standin: Whether the network has random weights.
    """
    out = options.out
    page = [f"# {title}", *([STANDIN] if standin else []), *notes]
    facts = [{"panel": panel.name, **panel.facts} for panel in panels if panel.facts]
    if facts:
        page.append(_plain_table(facts))
    pictures = []
    if shares:
        write_csv(out / "shares.csv", _share_rows(shares))
        page += [
            "Share of each group among the 25 first filters, in percent:",
            _share_table(shares),
        ]
        draw_shares(out / "shares", _share_means(shares), NAMES)
        pictures.append(out / "shares.png")
    rows = [row for panel in panels for row in curve_rows(panel, options)]
    rivals = [row for panel in panels if panel.drawn for row in rival_rows(panel, options)]
    if rows:
        write_csv(out / "curves.csv", rows)
    if rivals:
        write_csv(out / "rivals.csv", rivals)
    for panel in panels:
        if panel.drawn and panel.cases and panel.cases[0]:
            own = [row for row in rows if row["panel"] == panel.name]
            page += _curve_tables(panel.name, own, max(options.counts))
            stem = out / f"curves-{_slug(panel.name)}"
            draw_curves(stem, own, panel.name, NAMES, TITLES)
            pictures.append(stem.with_suffix(".png"))
    if rivals:
        page += [
            f"POT against each rival at {max(options.counts)} filters: POT's mean minus the "
            "rival's, images and seeds paired. *Wins* and *loses* where the 95 % interval leaves "
            "out 0.",
            _rival_table(rivals),
        ]
    write_page(name, options, page, pictures)


def write_page(name: str, options: Options, page: Sequence[str], pictures: Sequence[Path]) -> None:
    """Write the page of an experiment, and its part of the docs where asked for.

    Args:
        name: Of the experiment, as in the page of docs.
        options: Of it.
        page: Heading and paragraphs.
        pictures: PNG files.
    """
    text = "\n\n".join(page) + "\n"
    write_atomically(options.out / "results.md", lambda file: file.write(text.encode()))
    print(f"Written: {options.out / 'results.md'}, with CSV files and figures beside it.")
    if options.write is not None:
        paste(options.write, name, "\n\n".join(page[1:]), pictures)


def curve_rows(panel: Panel, options: Options) -> list[Row]:
    """Means and bands of every curve.

    Args:
        panel: The curves.
        options: Of the experiment.
    """
    rows = []
    keys = list(panel.cases[0]) if panel.cases else []
    ends = _each(keys, panel.cases, lambda cases: band(cases, options.bootstrap, options.seed))
    for key, (low, high) in ends.items():
        ranking, kind, metric = key
        cases = [case[key] for case in panel.cases]
        mean = mean_of(cases)
        spread = [values.mean(0) for values in cases]
        rate = next(step.rate for step in options.steps if step.kind == kind)
        rows += [
            {
                "panel": panel.name, "ranking": ranking, "edit": kind, "rate": rate,
                "metric": metric, "filters": count, "cases": len(cases),
                "images": sum(map(len, cases)), "mean": mean[i], "low": low[i], "high": high[i],
                "least case": min(s[i] for s in spread), "largest case": max(s[i] for s in spread),
            }
            for i, count in enumerate((0, *options.counts))
        ]  # fmt: skip
    return rows


def rival_rows(panel: Panel, options: Options) -> list[Row]:
    """POT minus each rival after the last count, paired.

    Args:
        panel: The curves.
        options: Of the experiment.
    """
    keys = [
        key for key in (panel.cases[0] if panel.cases else ())
        if key[0] != "pot" and ("pot", *key[1:]) in panel.cases[0]
    ]  # fmt: skip
    apart = [
        {key: (case["pot", key[1], key[2]] - case[key])[:, -1:] for key in keys}
        for case in panel.cases
    ]
    ends = _each(keys, apart, lambda cases: band(cases, options.bootstrap, options.seed))
    rows = []
    for key, ends_of in ends.items():
        ranking, kind, metric = key
        low, high = (float(end[0]) for end in ends_of)
        good = (-high, -low) if metric == "predicted" else (low, high)  # less is better there
        verdict = "wins" if good[0] > 0 else "loses" if good[1] < 0 else "ties"
        rows.append({
            "panel": panel.name, "edit": kind, "rival": ranking, "metric": metric,
            "difference": float(mean_of([case[key] for case in apart])[0]), "low": low,
            "high": high, "POT": verdict,
        })  # fmt: skip
    return rows


def _each(
    keys: Sequence[tuple[str, str, str]],
    cases: Sequence[Curves],
    ends: Callable[[Sequence[Values]], tuple[Values, Values]],
) -> dict[tuple[str, str, str], tuple[Values, Values]]:
    """Lower and upper ends of many curves from the same resamples."""
    if not keys:
        return {}
    low, high = ends([np.concatenate([case[key] for key in keys], axis=1) for case in cases])
    parts = (np.split(end, len(keys)) for end in (low, high))
    return dict(zip(keys, zip(*parts, strict=True), strict=True))


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write a table.

    Args:
        path: The file.
        rows: At least one, with the same columns.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def _curve_tables(name: str, rows: Sequence[Row], count: int) -> list[str]:
    """A table per kind of edit."""
    parts = []
    for kind in dict.fromkeys(row["edit"] for row in rows):
        last = [row for row in rows if row["edit"] == kind and row["filters"] == count]
        lines = []
        for ranking in dict.fromkeys(row["ranking"] for row in last):
            own = {row["metric"]: row for row in last if row["ranking"] == ranking}
            lines.append([NAMES[ranking], *(_interval(own[metric], "mean") for metric in METRICS)])
        rate = f", rate {last[0]['rate']:g}" if last[0]["rate"] else ""
        parts += [
            f"{name}: {kind}{rate}, {count} filters; change of the confidence of the class "
            f"predicted at first and of the true class, and share corrected, with 95 % intervals "
            f"({last[0]['images']} images):",
            markdown_table(["ranking", *TITLES.values()], lines),
        ]
    return parts


def _rival_table(rows: Sequence[Row]) -> str:
    """Who wins."""
    lines = []
    for panel, kind, rival in dict.fromkeys((r["panel"], r["edit"], r["rival"]) for r in rows):
        own = {r["metric"]: r for r in rows
               if (r["panel"], r["edit"], r["rival"]) == (panel, kind, rival)}  # fmt: skip
        cells = [f"{_interval(own[m], 'difference')}: {own[m]['POT']}" for m in METRICS]
        lines.append([panel, kind, NAMES[rival], *cells])
    return markdown_table(["", "edit", "rival", *TITLES.values()], lines)


def _interval(row: Row, key: str) -> str:
    """Mean and band in points."""
    low, high = 100 * row["low"], 100 * row["high"]
    return f"{100 * row[key]:+.2f} [{low:+.2f}, {high:+.2f}]"


def _share_rows(shares: Mapping[str, Shares]) -> list[Row]:
    """Shares of every case, and their means."""
    return [
        {"case": case, "ranking": ranking, "group": group, "share": float(share)}
        for case, own in [*shares.items(), *([("mean", _share_means(shares))] * (len(shares) > 1))]
        for ranking, groups in own.items()
        for group, share in groups.items()
    ]


def _share_means(shares: Mapping[str, Shares]) -> dict[str, dict[str, float]]:
    """Means over cases."""
    first = next(iter(shares.values()))
    return {
        ranking: {g: float(np.mean([own[ranking][g] for own in shares.values()])) for g in groups}
        for ranking, groups in first.items()
    }


def _share_table(shares: Mapping[str, Shares]) -> str:
    """Groups by rankings; with several cases mean, least and largest."""
    means = _share_means(shares)
    lines = []
    for group in next(iter(means.values())):
        cells = []
        for ranking in means:
            values = [100 * own[ranking][group] for own in shares.values()]
            cell = f"{np.mean(values):.1f}"
            if len(values) > 1 and ranking != "all filters":
                deviation = np.std(values, ddof=1)
                cell += f" ± {deviation:.1f} ({min(values):.1f} to {max(values):.1f})"
            cells.append(cell)
        lines.append([group, *cells])
    note = ""
    if len(shares) > 1:
        note = (
            f"\n\n(Mean ± standard deviation over {len(shares)} cases, {', '.join(shares)}; least "
            "and largest in brackets.)"
        )
    return markdown_table(["group", *(NAMES[ranking] for ranking in means)], lines) + note


def _plain_table(rows: Sequence[Row]) -> str:
    """A table of facts."""
    cells = [
        [f"{value:.1%}" if isinstance(value, float) else value for value in row.values()]
        for row in rows
    ]
    return markdown_table([FACTS[name] for name in rows[0]], cells)


def _slug(name: str) -> str:
    """A name fit for a file."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")
