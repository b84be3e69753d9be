"""``salmon report``: the files of runs as one page."""

import sys
from pathlib import Path
from typing import Any

from salmon.cli.checkpoints import check_new_file
from salmon.progress import Progress
from salmon.views import gather, write_report


def run_report(options: Any) -> int:
    """Read, draw, write.

    Args:
        options: ``run``, ``out``, ``force``, ``quiet``.

    Returns:
        0.

    Raises:
        InputError: If there is no run, or the output exists.
        StateError: If a file cannot be read.
    """
    folder, out = Path(options.run), Path(options.out)
    check_new_file(out, force=options.force)
    with Progress(quiet=options.quiet) as progress:
        sections = gather(folder, progress)
    write_report(out, sections, f"salmon: {folder.resolve().name}")
    for section in sections:
        for note in section.notes:
            print(f"{section.name}: {note}", file=sys.stderr)
    if not options.quiet:
        names = ", ".join(section.name for section in sections)
        print(f"{len(sections)} sections ({names}).")
    print(f"Written: {out} ({out.stat().st_size / 1024:.0f} KiB)")
    return 0
