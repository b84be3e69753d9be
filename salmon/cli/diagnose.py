"""``salmon diagnose``: the monitor in a trainer that tests a checkpoint, and a summary."""

import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from salmon.cli.checkpoints import hashed
from salmon.cli.options import DiagnoseOptions
from salmon.cli.project import Project, chosen, load_project, remake, run_pass
from salmon.cli.table import print_table
from salmon.diagnosis import Diagnosis
from salmon.files import check_new_folder, json_text, publish_folder, write_atomically
from salmon.gpd import TailFit
from salmon.monitor import SaliencyMonitor
from salmon.monitor.output import LOGS
from salmon.progress import Progress
from salmon.ranking import filter_shares, group_shares
from salmon.views import (
    FINDING_COLUMNS,
    PAIR_COLUMNS,
    PassRecord,
    finding_rows,
    pair_rows,
    read_pass,
    standing_out,
    write_pass,
)

SCHEMA = "salmon.diagnosis/2"
_TOP_ROWS = 10


def run_diagnose(options: DiagnoseOptions) -> int:
    """Measure, rank, write, print."""
    check_new_folder(options.out, force=options.force)
    said: list[str] = []

    def fill(folder: Path) -> None:
        with Progress(quiet=options.quiet) as progress:
            fit: TailFit | str | None = options.fit
            if fit is None and options.reference != "none":
                fit = _measured(options, options.reference, None, None, progress)[1].fit
            project, diagnosis, scope = _measured(options, options.new, fit, folder, progress)
        name = scope.replace("/", "-")
        path = folder / LOGS / f"pass-{name}-000000.json"
        record = read_pass(path)
        own = {"command": remake("diagnose", options)}
        if options.ckpt_path is not None:
            own["checkpoint"] = hashed(Path(options.ckpt_path))
        record = replace(record, origin=record.origin | own)
        write_pass(path, record)
        summary = _summary(project.name, diagnosis, record, options)
        text = f"{json_text(summary, indent=1)}\n".encode()
        write_atomically(folder / "diagnosis.json", lambda file: file.write(text))
        for doubt in diagnosis.doubts:
            print(f"Not to be trusted: {doubt}", file=sys.stderr)
        if not options.quiet:
            print_shares(diagnosis)
            _print_findings(record)
        said.append(
            f"{diagnosis.misclassified} of {diagnosis.samples} new samples are "
            f"{'misclassified' if diagnosis.has_classes else 'mistakes'}. Written: {options.out}"
        )

    publish_folder(options.out, fill, force=options.force)
    print(said[0])
    return 0


def _measured(
    options: DiagnoseOptions, name: str, fit: TailFit | str | None, folder: Path | None,
    progress: Progress,
) -> tuple[Project, Diagnosis, str]:  # fmt: skip
    """One pass of a trainer with the monitor, what it found, and its scope; None: no files."""
    project = load_project(options, options.seed)
    own: dict[str, Any] = {
        "level": options.level,
        "top_k": options.top_k,
        "estimator": options.estimator,
        "task": options.task,
    }
    settings = replace(
        project.settings,
        reference=fit,
        write_files=folder is not None,
        every_n_validations=1,
        strict=False,
        **{name: value for name, value in own.items() if value is not None},
    )
    if folder is None:
        settings = replace(settings, views=replace(settings.views, pictures=0, thumbnails=0))
    monitor = SaliencyMonitor(**{f.name: getattr(settings, f.name) for f in fields(settings)})
    run_pass(
        project, options, name, monitor, folder=folder or options.out.parent, progress=progress
    )
    scope = chosen(monitor.results, name)
    return project, monitor.results[scope], scope


def print_shares(diagnosis: Diagnosis) -> None:
    """Print the shares of the groups among the top filters, as in the paper's table 1."""
    index, rankings = diagnosis.index, diagnosis.rankings
    everyone = filter_shares(index)
    by_method = {method: group_shares(ranking, index) for method, ranking in rankings.items()}
    columns = [by_method["zscore"], by_method["pot"], everyone]
    rows = [[group, *(f"{100 * c[group]:.1f}" for c in columns)] for group in index.groups]
    top_k = rankings["pot"].filters.shape[1]
    print_table(
        f"Share of each group among the top-{top_k} filters of {len(diagnosis.mistakes.sample)} "
        f"{'misclassified images' if diagnosis.has_classes else 'mistakes'}, in %",
        ["group", "z-score", "POT", "of all filters"],
        rows,
    )


def _summary(
    model: str, diagnosis: Diagnosis, record: PassRecord, options: DiagnoseOptions
) -> dict[str, Any]:
    """What diagnosis.json holds."""
    index = diagnosis.index
    tails = "given" if options.fit is not None else "reference data"
    return {
        "schema": SCHEMA,
        "model": model,
        "task": diagnosis.task,
        "samples": diagnosis.samples,
        "misclassified": diagnosis.misclassified,
        "dropped": diagnosis.dropped,
        "tails": "new data" if options.fit is None and options.reference == "none" else tails,
        "filters": len(index),
        "share_of_filters": filter_shares(index),
        "shares": {name: group_shares(r, index) for name, r in diagnosis.rankings.items()},
        "fits": {status.label: n for status, n in diagnosis.fit.counts().items()},
        "right": record.right,
        "beyond_chance": record.beyond,
        "findings": [asdict(row) for row in record.findings],
        "top": [asdict(row) for row in record.filters[:_TOP_ROWS]],
    }


def _print_findings(record: PassRecord) -> None:
    """Print what stands out, and the classes that are confused most."""
    print(f"\n{standing_out(record)[0]}")
    rows = finding_rows(record)[:_TOP_ROWS]
    if rows:
        print_table("\nFilters beyond chance", FINDING_COLUMNS, rows)
    pairs = pair_rows(record)[:_TOP_ROWS]
    if record.has_classes:
        print_table("\nClasses that are confused most", PAIR_COLUMNS, pairs)
