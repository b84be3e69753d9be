"""``salmon report``: the files of runs as one page."""

import sys

from salmon.cli.checkpoints import check_new_file
from salmon.cli.options import ReportOptions
from salmon.progress import Progress
from salmon.views import gather, write_report


def run_report(options: ReportOptions) -> int:
    """Read, draw, write."""
    check_new_file(options.out, force=options.force)
    with Progress(quiet=options.quiet) as progress:
        sections = gather(options.run, progress)
    write_report(options.out, sections, f"salmon: {options.run.resolve().name}")
    for section in sections:
        for note in section.notes:
            print(f"{section.name}: {note}", file=sys.stderr)
    if not options.quiet:
        names = ", ".join(section.name for section in sections)
        print(f"{len(sections)} sections ({names}).")
    print(f"Written: {options.out} ({options.out.stat().st_size / 1024:.0f} KiB)")
    return 0
