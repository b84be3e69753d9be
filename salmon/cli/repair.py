"""``salmon repair``: from a checkpoint and data to a patch that the rules accept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from salmon.cli.checkpoints import read_checkpoint, write_checkpoint
from salmon.cli.options import RepairOptions
from salmon.cli.project import Project, chosen, run_pass
from salmon.cli.table import print_table
from salmon.errors import InputError
from salmon.files import check_new_folder, publish_folder
from salmon.filters import FilterIndex
from salmon.monitor.sampling import SampleCollector
from salmon.progress import Progress
from salmon.repairs import (
    ACCEPTED,
    COLUMNS,
    NOTHING_TO_REPAIR,
    Outcome,
    RepairSettings,
    Samples,
    comparison_rows,
    repair,
    write_outcome,
)
from salmon.tails import load_fit

EXIT_CODES = {ACCEPTED: 0, NOTHING_TO_REPAIR: 0}
NOT_ACCEPTED_CODE = 1


def run_repair(options: RepairOptions, explicit: Mapping[str, Any]) -> int:
    """Collect the samples in the project's own loops, repair, write, print.

    Args:
        explicit: Settings of the repair that were given on the command line; the config's section
            counts for the others.

    Returns:
        The exit code: 0 accepted or nothing to repair, 1 not accepted.
    """
    check_new_folder(options.out, force=options.force)
    if options.write_checkpoint and options.ckpt_path is None:
        raise InputError("--write_checkpoint needs --ckpt_path, the checkpoint to be repaired.")
    chosen_settings: list[RepairSettings] = []
    with Progress(quiet=options.quiet) as progress:
        sets: dict[str, Samples] = {}
        for what, name in (("reference", options.reference), ("new", options.new)):
            if name != "none":
                project, sets[what] = _collected(options, name, explicit, chosen_settings, progress)
        model, settings = project.module, chosen_settings[0]
        index = FilterIndex.from_model(model)
        fit = None if options.fit is None else load_fit(options.fit, index)
        new, reference = sets["new"], sets.get("reference")
        if options.dry_run:
            print(
                f"{project.name}: {len(index)} filters, {len(new)} new and "
                f"{'no' if reference is None else len(reference)} reference samples. Nothing was "
                "repaired or written (--dry-run)."
            )
            return 0
        outcome = repair(
            model, new, reference, settings,
            index=index, fit=fit, batch_size=options.batch_size, progress=progress,
        )  # fmt: skip
    publish_folder(
        options.out, lambda folder: _write(folder, outcome, project.name, options),
        force=options.force,
    )  # fmt: skip
    if not options.quiet:
        print_outcome(outcome)
    print(f"Repair {outcome.status}: {outcome.reason}. Written: {options.out}")
    return EXIT_CODES.get(outcome.status, NOT_ACCEPTED_CODE)


def _collected(
    options: RepairOptions, name: str, explicit: Mapping[str, Any],
    settings: list[RepairSettings], progress: Progress,
) -> tuple[Project, Samples]:  # fmt: skip
    """The samples of one pass of a trainer; the first one tells the settings."""
    collectors: list[SampleCollector] = []

    def watched(project: Project) -> Sequence[Any]:
        own = dict(project.repair) | dict(explicit)
        own |= {} if options.seed is None else {"seed": options.seed}
        settings.append(RepairSettings(**own))
        most, seed = settings[0].max_samples, settings[0].seed
        collectors.append(SampleCollector(project.settings, most=most, seed=seed))
        return collectors

    project = run_pass(
        options, name, watched,
        seed=options.seed or 0, folder=options.out.parent, progress=progress,
    )  # fmt: skip
    found = collectors[0].book.gathered
    return project, found[chosen(found, name)].samples()


def print_outcome(outcome: Outcome) -> None:
    """Print the repair beside its rivals, and the rules."""
    if outcome.verdict is None:
        return
    print_table("On samples that nothing was chosen by:", COLUMNS, comparison_rows(outcome))
    for rule in outcome.verdict.rules:
        print(f"  {'passed' if rule.passed else 'FAILED'}  {rule.name}: {rule.text}")


def _write(folder: Path, outcome: Outcome, name: str, options: RepairOptions) -> None:
    """All files of the output folder."""
    write_outcome(folder, outcome, {"model": name})
    if options.write_checkpoint and outcome.patch is not None and options.ckpt_path is not None:
        checkpoint = read_checkpoint(Path(options.ckpt_path), weights_only=options.weights_only)
        outcome.patch.apply(checkpoint.state_dict)
        write_checkpoint(folder / "repaired.ckpt", checkpoint, repaired=True)
