"""What is written of an experiment: CSV files, figures, and one page of markdown tables."""

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import chain, product
from pathlib import Path

import numpy as np

from examples.paper.figures import Row, draw_curves, draw_shares
from examples.paper.options import Options
from examples.paper.study import METRICS, Study, Values, write_file
from salmon import InputError

RESAMPLES = 2000


def write_results(
    title: str, options: Options, studies: Mapping[str, Study],
    pictures: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> None:  # fmt: skip
    """Write all of an experiment, whose studies have the names of their seeds, splits, ...

    ``pictures`` are the studies that are shown together, a list per seed; else every study by
    itself.
    """
    folder, last = options.folder, options.counts[-1]
    pictures = pictures or {case: [[case]] for case in studies}
    cases = {case: [study.curves] for case, study in studies.items()}
    together = {
        name: [np.concatenate([studies[case].curves for case in seed]) for seed in seeds]
        for name, seeds in pictures.items()
    }
    shares = [
        {"case": case, "ranking": ranking, **groups}
        for case, study in studies.items()
        for ranking, groups in study.shares.items()
    ]
    write_csv(folder / "shares.csv", shares)
    draw_shares(folder / "shares", shares)
    files = [folder / "shares.png"]
    page = [
        f"# {title}",
        table([{"": case, **study.facts} for case, study in studies.items()]),
        "Share of each group among the 25 first filters, in percent:",
        table(_mean_shares(studies, pictures)),
    ]
    if options.edits:
        panels = {**cases, **together}
        rows = {panel: curve_rows(panel, own, options) for panel, own in panels.items()}
        write_csv(folder / "curves.csv", [row for own in rows.values() for row in own])
        shown = [row for name in pictures for row in rows[name] if row["filters"] == last]
        rivals = []
        if "pot" in options.rankings and len(options.rankings) > 1:
            rivals = [row for name in pictures for row in rival_rows(name, together[name], options)]
            write_csv(folder / "rivals.csv", rivals)
        page += [
            f"{last} filters; change of the confidence of the class predicted at first and of the "
            "true class, and share corrected, with 95 % intervals. *pot* wins or loses against a "
            "ranking where the 95 % interval of the difference, image by image, leaves out 0:",
            _pivot(shown, rivals),
        ]
        for name in pictures:
            stem = folder / f"curves-{name}"
            draw_curves(stem, rows[name], name)
            files.append(stem.with_suffix(".png"))
    write_page(options, page, files)


def write_page(options: Options, page: Sequence[str], pictures: Sequence[Path]) -> None:
    """Write the page of an experiment, and into the docs, between two marks, where asked for."""
    write_file(options.folder / "results.md", ("\n\n".join(page) + "\n").encode())
    print(f"Written: {options.folder / 'results.md'}, with CSV files and figures beside it.")
    docs, name = options.write, options.name
    if docs is None:
        return
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, found, rest = docs.read_text(encoding="utf-8").partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise InputError(f"--write {docs} has no part on {name}; {begin} and {end} are needed.")
    parts = [begin, *page[1:]]
    for picture in pictures:
        copy = docs.parent / "images" / f"{name}-{picture.name}"
        write_file(copy, picture.read_bytes())
        parts.append(f"![{name}: {picture.stem}](images/{copy.name})")
    write_file(docs, (head + "\n\n".join([*parts, end]) + tail).encode())


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write a table of at least one row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_file(path, text.getvalue().encode())


def table(rows: Sequence[Row]) -> str:
    """The same in markdown."""
    lines = [[f"{v:.4g}" if isinstance(v, float) else v for v in row.values()] for row in rows]
    table = [list(rows[0]), ["---"] * len(rows[0]), *lines]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in table)


def band(cases: Sequence[Values], seed: int) -> tuple[Values, Values]:
    """95 % percentile interval of the mean of values ``[M_i, ...]``, by bootstrap.

    With several cases (seeds) as many of them are drawn with replacement, then the images of each;
    with one its images.
    """
    draws = np.random.default_rng(seed)
    means = np.zeros((RESAMPLES, *cases[0].shape[1:]))
    for _ in cases:
        chosen = draws.integers(len(cases), size=RESAMPLES)
        for number, values in enumerate(cases):
            rows = np.flatnonzero(chosen == number)
            even = np.full(len(values), 1 / len(values))
            for start in range(0, len(rows), 100):  # at a time, for memory
                part = rows[start : start + 100]
                counts = draws.multinomial(len(values), even, size=len(part))
                means[part] += np.tensordot(counts, values, 1) / len(values) / len(cases)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def curve_rows(panel: str, cases: Sequence[Values], options: Options) -> list[Row]:
    """Means and bands of every curve."""
    low, high = band(cases, options.seed)
    each = np.stack([values.mean(0) for values in cases])
    keys = product(options.rankings, options.steps, METRICS, (0, *options.counts))
    return [
        {
            "panel": panel, "ranking": ranking, "edit": step.kind, "rate": step.rate,
            "metric": metric, "filters": count, "cases": len(cases),
            "images": sum(map(len, cases)), "mean": each.mean(0)[at], "low": low[at],
            "high": high[at], "least case": each.min(0)[at], "largest case": each.max(0)[at],
        }
        for (ranking, step, metric, count), at in zip(keys, np.ndindex(low.shape), strict=True)
    ]  # fmt: skip


def rival_rows(panel: str, cases: Sequence[Values], options: Options) -> list[Row]:
    """POT minus each rival after the last count, image by image."""
    pot = options.rankings.index("pot")
    ends = [values[..., -1] for values in cases]
    apart = [end[:, [pot]] - end for end in ends]
    low, high = band(apart, options.seed)
    mean = np.mean([values.mean(0) for values in apart], axis=0)
    rows = []
    keys = product(options.rankings, options.edits, METRICS)
    for (ranking, edit, metric), at in zip(keys, np.ndindex(mean.shape), strict=True):
        # Less confidence in the wrong class is better.
        worst, best = (-high[at], -low[at]) if metric == "predicted" else (low[at], high[at])
        rows.append({
            "panel": panel, "edit": edit, "rival": ranking, "metric": metric,
            "difference": mean[at], "low": low[at], "high": high[at],
            "POT": "wins" if worst > 0 else "loses" if best < 0 else "ties",
        })  # fmt: skip
    return [row for row in rows if row["rival"] != "pot"]


def _mean_shares(
    studies: Mapping[str, Study], pictures: Mapping[str, Sequence[Sequence[str]]]
) -> list[Row]:
    """Shares of the groups in percent, means over the studies of a picture."""
    rows = []
    for name, seeds in pictures.items():
        shown = [studies[case].shares for case in chain(*seeds)]
        for ranking, groups in shown[0].items():
            means = {g: np.mean([shares[ranking][g] for shares in shown]) for g in groups}
            percent = {group: f"{100 * mean:.1f}" for group, mean in means.items()}
            rows.append({"": name, "ranking": ranking, **percent})
    return rows


def _pivot(rows: Sequence[Row], rivals: Sequence[Row]) -> str:
    """A line per panel, edit and ranking, with a column per metric, in points."""
    verdicts = {(r["panel"], r["edit"], r["rival"], r["metric"]): r["POT"] for r in rivals}
    lines: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = (row["panel"], row["edit"], row["ranking"])
        named = dict(zip(("", "edit", "ranking"), key, strict=True))
        middle, low, high = (100 * row[name] for name in ("mean", "low", "high"))
        verdict = verdicts.get((*key, row["metric"]), "")
        cell = f"{middle:+.1f} [{low:+.1f}, {high:+.1f}] {verdict and f'pot {verdict}'}".rstrip()
        lines.setdefault(key, named)[METRICS[row["metric"]]] = cell
    return table(list(lines.values()))
