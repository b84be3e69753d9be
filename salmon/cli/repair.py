"""``salmon repair``: from a checkpoint and data to a patch that the rules accept."""

from pathlib import Path
from typing import Any

from salmon.cli.checkpoints import write_checkpoint
from salmon.cli.job import Job, load_job
from salmon.cli.settings import JobSettings
from salmon.cli.table import print_table
from salmon.errors import InputError
from salmon.files import check_new_folder, publish_folder
from salmon.filters import FilterIndex
from salmon.monitor import collect_samples
from salmon.progress import Progress
from salmon.repairs import (
    ACCEPTED,
    COLUMNS,
    NOTHING_TO_REPAIR,
    Outcome,
    RepairSettings,
    comparison_rows,
    repair,
    write_outcome,
)
from salmon.tails import load_fit

EXIT_CODES = {ACCEPTED: 0, NOTHING_TO_REPAIR: 0}
NOT_ACCEPTED_CODE = 1


def run_repair(job_settings: JobSettings, settings: RepairSettings, options: Any) -> int:
    """Load, repair, write, print.

    Args:
        job_settings: Model, data and checkpoint.
        settings: Of the repair.
        options: ``out``, ``force``, ``quiet``, ``fit``, ``dry_run``, ``write_checkpoint``.

    Returns:
        The exit code: 0 accepted or nothing to repair, 1 not accepted.

    Raises:
        InputError: If something does not fit.
    """
    check_new_folder(options.out, force=options.force)
    job = load_job(job_settings)
    if options.write_checkpoint and job.checkpoint is None:
        raise InputError("--write_checkpoint needs --ckpt_path, the checkpoint to be repaired.")
    most, seed = settings.max_samples, settings.seed
    new = collect_samples(job.new, "new", most=most, seed=seed)
    reference = None
    if job.reference is not None:
        reference = collect_samples(job.reference, "reference", most=most, seed=seed)
    index = FilterIndex.from_model(job.model)
    fit = None if options.fit is None else load_fit(options.fit, index)
    if options.dry_run:
        print(
            f"{job.name}: {len(index)} filters, {len(new)} new and "
            f"{'no' if reference is None else len(reference)} reference samples. Nothing was "
            "repaired or written (--dry-run)."
        )
        return 0
    with Progress(quiet=options.quiet) as progress:
        outcome = repair(
            job.model, new, reference, settings,
            index=index, fit=fit, batch_size=job_settings.batch_size, progress=progress,
        )  # fmt: skip
    publish_folder(
        options.out,
        lambda folder: _write(folder, outcome, job, write_whole=options.write_checkpoint),
        force=options.force,
    )
    if not options.quiet:
        print_outcome(outcome)
    print(f"Repair {outcome.status}: {outcome.reason}. Written: {options.out}")
    return EXIT_CODES.get(outcome.status, NOT_ACCEPTED_CODE)


def print_outcome(outcome: Outcome) -> None:
    """Print the repair beside its rivals, and the rules.

    Args:
        outcome: Of a repair.
    """
    if outcome.verdict is None:
        return
    print_table("On samples that nothing was chosen by:", COLUMNS, comparison_rows(outcome))
    for rule in outcome.verdict.rules:
        print(f"  {'passed' if rule.passed else 'FAILED'}  {rule.name}: {rule.text}")


def _write(folder: Path, outcome: Outcome, job: Job, *, write_whole: bool) -> None:
    """All files of the output folder."""
    write_outcome(folder, outcome, {"model": job.name})
    if write_whole and outcome.patch is not None and job.checkpoint is not None:
        outcome.patch.apply(job.checkpoint.state_dict)
        write_checkpoint(folder / "repaired.ckpt", job.checkpoint, repaired=True)
