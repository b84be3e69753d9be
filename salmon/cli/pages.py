"""``salmon report`` and ``salmon export``: the files of runs as one page, and as one table."""

import csv
import io
import sys
from itertools import chain
from typing import IO, Any

from salmon.cli.checkpoints import check_new_file
from salmon.cli.options import ExportOptions, ReportOptions
from salmon.errors import InputError
from salmon.files import write_atomically
from salmon.progress import Progress
from salmon.views import flagged_rows, gather, gather_repairs, write_report


def run_report(options: ReportOptions) -> int:
    """Read, draw, write."""
    check_new_file(options.out, force=options.force)
    with Progress(quiet=options.quiet) as progress:
        sections = gather(options.run, progress)
        repairs = gather_repairs(options.run)
    write_report(options.out, sections, f"salmon: {options.run.resolve().name}", repairs)
    for section in sections:
        for note in section.notes:
            print(f"{section.name}: {note}", file=sys.stderr)
    if not options.quiet:
        names = [*(each.name for each in sections), *(each.name for each in repairs)]
        print(f"{len(names)} sections ({', '.join(names)}).")
    print(f"Written: {options.out} ({options.out.stat().st_size / 1024:.0f} KiB)")
    return 0


def run_export(options: ExportOptions) -> int:
    """Read and write, a row at a time."""
    check_new_file(options.out, force=options.force)
    rows, begun, number = flagged_rows(options.run), list[dict[str, Any]](), 0
    for row in rows:
        begun.append(row)
        if "filter" in row:  # a mistake without any has fewer columns
            break
    if not begun:
        raise InputError(
            f"{options.run} holds no flagged samples (flagged-*.jsonl); name the folder of a run "
            "of the monitor, or one that salmon diagnose wrote."
        )

    def write(file: IO[bytes]) -> None:
        nonlocal number
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        table = csv.DictWriter(text, list(begun[-1]), extrasaction="ignore")
        table.writeheader()
        for row in chain(begun, rows):
            table.writerow(row)
            number += 1
        text.detach()

    write_atomically(options.out, write)
    print(f"Written: {options.out} ({number} rows)")
    return 0
