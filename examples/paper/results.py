"""What is written of an experiment: CSV files, figures, and one page of markdown tables."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from examples.paper.study import METRICS, TOP, Options, Study, Values
from salmon.files import write_all
from salmon.markdown import markdown_table

RESAMPLES = 2000

# Okabe and Ito's colours, told apart by most colour-blind people.
LINES = cycler(
    color=["#d55e00", "#e69f00", "#0072b2", "#009e73", "#56b4e9", "#777777", "#cc79a7"],
    ls=["-", ":", "--", "-.", "-", ":", "--"],
)

Row = dict[str, Any]


def write_results(options: Options, pictures: Mapping[str, Sequence[Mapping[str, Study]]]) -> None:
    """Write all of an experiment.

    Args:
        pictures: Studies by name that are shown together; some for each seed.
    """
    studies = {
        case: study for seeds in pictures.values() for of in seeds for case, study in of.items()
    }
    shares, curves = [], []
    alone = {case: [{case: study}] for case, study in studies.items()}
    for name, seeds in (alone | dict(pictures)).items():
        together = [study.shares for seed in seeds for study in seed.values()]
        for ranking, groups in together[0].items():
            means = {group: np.mean([own[ranking][group] for own in together]) for group in groups}
            shares.append({"case": name, "ranking": ranking, **means})
        if options.edits:
            cases = [np.concatenate([study.curves for study in seed.values()]) for seed in seeds]
            curves += curve_rows(name, cases, options)
    write_csv(options.folder / "shares.csv", shares)
    page = [
        f"# {options.folder.name}",
        table([{"": case, **study.facts} for case, study in studies.items()]),
        f"Share of each group among the {TOP} first filters, in percent:",
        table([
            {k: f"{100 * v:.1f}" if isinstance(v, float) else v for k, v in row.items()}
            for row in shares
            if row["case"] in pictures
        ]),
    ]  # fmt: skip
    if options.edits:
        write_csv(options.folder / "curves.csv", curves)
        first, last = options.rankings[0], options.counts[-1]
        ends = [row for row in curves if row["case"] in pictures and row["filters"] == last]
        page += [
            f"{last} filters; change of the confidence of the class predicted at first and of the "
            f"true class, and share corrected, with 95 % intervals. *{first}* wins or loses "
            "against a ranking where the 95 % interval of the difference, image by image, leaves "
            "out 0:",
            table([_at_the_end(row, first) for row in ends]),
        ]
        for name in pictures:
            draw_curves(name, curves, options)
    write_all(options.folder, {"results.md": "\n\n".join(page) + "\n"})


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write a table of at least one row, whose cells have no commas."""
    lines = [",".join(map(str, line)) for line in (rows[0], *(row.values() for row in rows))]
    write_all(path.parent, {path.name: "\n".join(lines) + "\n"})


def table(rows: Sequence[Row]) -> str:
    """The same in markdown."""
    cells = [[f"{v:.4g}" if isinstance(v, float) else v for v in row.values()] for row in rows]
    return markdown_table(list(rows[0]), cells)


def band(cases: Sequence[Values], seed: int) -> tuple[Values, Values]:
    """95 % percentile interval of the mean of values ``[M_i, ...]``, by bootstrap.

    As many cases (seeds) are drawn with replacement, and then the images of each.
    """
    draws = np.random.default_rng(seed)
    means = np.zeros((RESAMPLES, *cases[0].shape[1:]))
    for at in range(RESAMPLES):
        for number in draws.integers(len(cases), size=len(cases)):
            size = len(cases[number])
            times = draws.multinomial(size, np.full(size, 1 / size))
            means[at] += np.tensordot(times / size, cases[number], 1) / len(cases)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def curve_rows(case: str, seeds: Sequence[Values], options: Options) -> list[Row]:
    """Means and bands of every curve, and whether the first ranking is better, image by image.

    Args:
        seeds: ``[M_i, R, 3, 1 + C, E]`` curves of each.
    """
    better = np.array([-1, 1, 1])[:, None, None]  # less confidence in the wrong class
    least, most = band([better * (values[:, :1] - values) for values in seeds], options.seed)
    low, high = band(seeds, options.seed)
    columns = {
        "": np.mean([values.mean(0) for values in seeds], axis=0), " low": low, " high": high,
        " of the first": np.select([least > 0, most < 0], ["wins", "loses"], "ties"),
    }  # fmt: skip
    every = (options.rankings, options.edits, (0, *options.counts))
    return [
        {"case": case, "ranking": ranking, "edit": edit, "filters": count}
        | {"seeds": len(seeds), "images": sum(map(len, seeds))}
        | {
            metric + end: values[r, m, c, e]
            for m, metric in enumerate(METRICS)
            for end, values in columns.items()
        }
        for (r, ranking), (e, edit), (c, count) in product(*map(enumerate, every))
    ]


def _at_the_end(row: Row, first: str) -> Row:
    """A line of the page, in points."""
    line = {"": row["case"], "edit": row["edit"], "ranking": row["ranking"]}
    for metric, label in METRICS.items():
        mean, low, high = (100 * row[metric + end] for end in ("", " low", " high"))
        verdict = "" if row["ranking"] == first else f" {first} {row[f'{metric} of the first']}"
        line[label] = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]{verdict}"
    return line


def draw_curves(case: str, rows: Sequence[Row], options: Options) -> None:
    """One row of axes per kind of edit, one column per metric, one line per ranking."""
    figure = Figure(figsize=(10, 0.6 + 2.7 * len(options.edits)), layout="constrained")
    grid = figure.subplots(len(options.edits), len(METRICS), squeeze=False, sharex=True)
    for (e, edit), (m, metric) in product(enumerate(options.edits), enumerate(METRICS)):
        axes = grid[e, m]
        axes.set_prop_cycle(LINES)
        for ranking in options.rankings:
            key = {"case": case, "edit": edit, "ranking": ranking}
            own = [row for row in rows if key.items() <= row.items()]
            counts = [row["filters"] for row in own]
            mean, low, high = (
                [100 * row[metric + end] for row in own] for end in ("", " low", " high")
            )
            (line,) = axes.plot(counts, mean, label=ranking)
            axes.fill_between(counts, low, high, color=line.get_color(), alpha=0.15, lw=0)
        axes.axhline(0, color="#bbbbbb", lw=0.8, zorder=0)
        axes.set_title(f"{edit}: {METRICS[metric]}", loc="left", fontsize=10)
    grid[-1, 1].set_xlabel("edited filters")
    grid[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{case}; bands: 95 %, bootstrap", x=0.01, ha="left")
    figure.savefig(options.folder / f"curves-{case}.png", dpi=110)
