"""``salmon report`` and ``salmon export``: the files of runs as one page, and as one table."""

import csv
import io
import sys
from typing import IO

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
    left_out = [f"{each.name}: {note}" for each in sections for note in each.notes]
    left_out += [f"{each.name}: {note}" for each in repairs for note in each.notes]
    for text in left_out:
        print(text, file=sys.stderr)
    if not options.quiet:
        names = [*(each.name for each in sections), *(each.name for each in repairs)]
        print(f"{len(names)} sections ({', '.join(names)}).")
    print(f"Written: {options.out} ({options.out.stat().st_size / 1024:.0f} KiB)")
    return 0


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
