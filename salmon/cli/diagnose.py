"""``salmon diagnose``: flags, fits and a summary for a checkpoint, without a trainer."""

import sys
from typing import Any

from salmon.cli.job import Job, load_job
from salmon.cli.settings import JobSettings
from salmon.cli.table import print_table
from salmon.files import check_new_folder, json_text, publish_folder, write_atomically
from salmon.filters import FilterIndex
from salmon.gpd import TailFit
from salmon.monitor import (
    Clock,
    Diagnosis,
    Run,
    Settings,
    batch_ids,
    class_names,
    flagged_images,
    new_run,
    normalisation,
    unpack_batch,
    write_diagnosis,
)
from salmon.progress import Progress
from salmon.ranking import filter_shares, group_shares, most_blamed
from salmon.repairs import to_device
from salmon.saliency import check_samples, measure, nan_where_unlabelled
from salmon.tails import load_fit
from salmon.views import PAIR_COLUMNS, PassRecord, pair_rows, record_pass

SCHEMA = "salmon.diagnosis/1"
_TOP_ROWS = 10


def run_diagnose(job_settings: JobSettings, options: Any) -> int:
    """Load, measure, rank, write, print.

    Args:
        job_settings: Model, data and checkpoint.
        options: ``out``, ``force``, ``quiet``, ``fit``, ``level``, ``top_k``, ``seed``.

    Returns:
        0.

    Raises:
        InputError: If something does not fit.
    """
    check_new_folder(options.out, force=options.force)
    settings = Settings(level=options.level, top_k=options.top_k, seed=options.seed)
    job = load_job(job_settings)
    index = FilterIndex.from_model(job.model)
    fit = None if options.fit is None else load_fit(options.fit, index)
    clock = Clock()
    with Progress(quiet=options.quiet) as progress, clock:
        if fit is None and job.reference is not None:
            known = _measured(job, "reference", job.reference, index, settings, None, progress)
            fit = known.finish().fit
        run = _measured(job, "new", job.new, index, settings, fit, progress)
        diagnosis = run.finish()
    classes = class_names(job.new, settings.views)
    images = flagged_images(
        job.model, diagnosis, run.worst, settings,
        classes=classes, normalisation=normalisation(job.new, settings.views),
    )  # fmt: skip
    record = record_pass(
        diagnosis, run=new_run(), stage="diagnose", given_fit=fit is not None,
        seconds=clock.busy, classes=classes,
    )  # fmt: skip
    summary = _summary(job, diagnosis, given=options.fit is not None)

    def fill(folder: Any) -> None:
        write_diagnosis(folder, "new", diagnosis, record, images)
        text = f"{json_text(summary, indent=1)}\n".encode()
        write_atomically(folder / "diagnosis.json", lambda file: file.write(text))

    publish_folder(options.out, fill, force=options.force)
    for doubt in diagnosis.doubts:
        print(f"Not to be trusted: {doubt}", file=sys.stderr)
    if not options.quiet:
        print_shares(diagnosis)
        _print_top(record)
    print(
        f"{diagnosis.misclassified} of {diagnosis.samples} new samples are misclassified. "
        f"Written: {options.out}"
    )
    return 0


def print_shares(diagnosis: Diagnosis) -> None:
    """Print the shares of the groups among the top filters, as in the paper's table 1.

    Args:
        diagnosis: With the rankings of both methods.
    """
    index, rankings = diagnosis.index, diagnosis.rankings
    everyone = filter_shares(index)
    by_method = {method: group_shares(ranking, index) for method, ranking in rankings.items()}
    columns = [by_method["zscore"], by_method["pot"], everyone]
    rows = [[group, *(f"{100 * c[group]:.1f}" for c in columns)] for group in index.groups]
    top_k = rankings["pot"].filters.shape[1]
    print_table(
        f"Share of each group among the top-{top_k} filters of {len(diagnosis.mistakes.sample)} "
        "misclassified images, in %",
        ["group", "z-score", "POT", "of all filters"],
        rows,
    )


def _measured(
    job: Job, what: str, loader: Any, index: FilterIndex, settings: Settings,
    fit: TailFit | None, progress: Progress,
) -> Run:  # fmt: skip
    """One pass over a loader."""
    ids_of = batch_ids(loader, what)
    run = Run(index, settings, reference=fit)
    run.id_source = "position" if ids_of is None else "batch"
    total = len(loader) if hasattr(loader, "__len__") else 0
    for number, batch in enumerate(loader):
        inputs, targets = to_device(unpack_batch(batch), job.model)
        samples = check_samples(inputs, targets)
        rows = run.choose(samples)
        measurement = measure(
            job.model, inputs, targets, index=index, loss=nan_where_unlabelled(None)
        )
        ids = None if ids_of is None else ids_of(batch)
        run.add(measurement, targets, rows, samples, number, ids, inputs)
        progress(f"measuring {what} data", number + 1, max(total, number + 1))
    return run


def _summary(job: Job, diagnosis: Diagnosis, *, given: bool) -> dict[str, Any]:
    """What diagnosis.json holds."""
    index = diagnosis.index
    tails = "reference data" if job.reference is not None else "new data"
    tails = "given" if given else tails
    return {
        "schema": SCHEMA,
        "model": job.name,
        "samples": diagnosis.samples,
        "misclassified": diagnosis.misclassified,
        "dropped": diagnosis.dropped,
        "tails": tails,
        "filters": len(index),
        "share_of_filters": filter_shares(index),
        "shares": {name: group_shares(r, index) for name, r in diagnosis.rankings.items()},
        "fits": {status.label: n for status, n in diagnosis.fit.counts().items()},
        "top": _top(diagnosis),
    }


def _top(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """The filters among the top-k of most mistakes."""
    index, blame = diagnosis.index, most_blamed(diagnosis.rankings["pot"], _TOP_ROWS)
    return [
        {"filter": index.label(k), "group": index.locate(k)[0].group, "mistakes": mistakes}
        for k, mistakes in zip(blame.filters.tolist(), blame.mistakes.tolist(), strict=True)
    ]


def _print_top(record: PassRecord) -> None:
    """Print the filters that are blamed most, and the classes that are confused most."""
    filters = [[row.label, row.group, str(row.mistakes)] for row in record.filters[:_TOP_ROWS]]
    print_table("\nFilters that most mistakes blame", ["filter", "group", "mistakes"], filters)
    pairs = pair_rows(record)[:_TOP_ROWS]
    print_table("\nClasses that are confused most", PAIR_COLUMNS, pairs)
