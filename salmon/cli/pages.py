"""``salmon report`` and ``salmon export``: the files of runs as one page, and as one table."""

import csv
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from torch import Tensor
from torch.utils import _pytree as pytree

from salmon.cli.checkpoints import check_new_file
from salmon.cli.options import ExportOptions, ReportOptions
from salmon.errors import InputError
from salmon.files import write_atomically
from salmon.progress import Progress
from salmon.repairs import Samples, SetChange
from salmon.views import (
    MOST_CHANGED,
    Picture,
    flagged_rows,
    gather,
    gather_beside,
    gather_outcomes,
    guess_normalisation,
    write_pictures,
    write_report,
)


def run_report(options: ReportOptions) -> int:
    """Read, draw, write."""
    check_new_file(options.out, force=options.force)
    with Progress(quiet=options.quiet) as progress:
        if options.other is None:
            sections, plain = gather(options.run, progress), gather_outcomes(options.run)
            title = options.run.resolve().name
        else:
            sections, plain = [], gather_beside(options.run, options.other)
            title = f"{options.run.name} beside {options.other.name}"
    write_report(options.out, sections, f"salmon: {title}", plain)
    noted = [(s.name, s.notes) for s in sections] + [(p.name, p.notes) for p in plain]
    for name, notes in noted:
        for note in notes:
            print(f"{name}: {note}", file=sys.stderr)
    if not options.quiet:
        names = [name for name, _ in noted]
        print(f"Sections: {', '.join(names)}.")
    print(f"Written: {options.out} ({options.out.stat().st_size / 1024:.0f} KiB)")
    return 0


def write_page(
    folder: Path,
    title: str,
    sets: Mapping[str, SetChange],
    pictures: Mapping[str, Samples] | None,
) -> None:
    """Write ``report.html`` beside the files of a repair or a comparison.

    Args:
        sets: What became of samples, by the name of their set.
        pictures: By the same names, samples among which those of the sets are found by their ids,
            so that the page has their images; it may be public, so None shows none.
    """
    for name, samples in (pictures or {}).items():
        drawn = _drawn(samples, sets[name]) if name in sets else []
        if drawn:
            write_pictures(folder / f"pictures-{name}.jsonl", 0, drawn)
    write_report(folder / "report.html", [], title, gather_outcomes(folder))


def _drawn(samples: Samples, change: SetChange) -> list[Picture]:
    """Small images of those that turned wrong and right; none if they are no images."""
    images = next((leaf for leaf in pytree.tree_leaves(samples.inputs) if _are_images(leaf)), None)
    if images is None or not len(images):
        return []
    colours = images.movedim(1, 0).flatten(1)
    scale = guess_normalisation(*(of(1).values.tolist() for of in (colours.min, colours.max)))
    row_of = {name: row for row, name in enumerate(samples.ids)}
    return [
        Picture(
            kind="thumbnail", sample=one.row, pixels=scale.pixels(images[row_of[one.id]]),
            caption=(one.what,),
        )
        for one in (*change.broken[:MOST_CHANGED], *change.fixed[:MOST_CHANGED])
    ]  # fmt: skip


def _are_images(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim == 4 and leaf.shape[1] in (1, 3)


def run_export(options: ExportOptions) -> int:
    """Read and write, a row at a time."""
    check_new_file(options.out, force=options.force)
    # Runs may differ in their columns, and a mistake without a filter has fewer.
    names = list(dict.fromkeys(name for row in flagged_rows(options.run) for name in row))
    if not names:
        raise InputError(
            f"{options.run} holds no flagged samples (flagged-*.jsonl); name the folder of a run "
            "of the monitor, or one that salmon diagnose wrote."
        )
    number = 0

    def write(file: IO[bytes]) -> None:
        nonlocal number
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        table = csv.DictWriter(text, names)
        table.writeheader()
        for row in flagged_rows(options.run):
            table.writerow(row)
            number += 1
        text.detach()

    write_atomically(options.out, write)
    print(f"Written: {options.out} ({number} rows)")
    return 0
