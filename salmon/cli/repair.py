"""``salmon repair``: from a checkpoint and data to a patch that the rules accept."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salmon.cli.checkpoints import hashed, read_checkpoint, write_checkpoint
from salmon.cli.options import RepairOptions
from salmon.cli.pages import write_page
from salmon.cli.project import Project, collected, load_project, remake
from salmon.cli.table import print_table
from salmon.cli.verdict import print_rules, tell_github
from salmon.errors import InputError
from salmon.files import check_new_folder, publish_folder
from salmon.filters import FilterIndex
from salmon.progress import Progress
from salmon.repairs import (
    ACCEPTED,
    COLUMNS,
    NOTHING_TO_REPAIR,
    PATCH_NAME,
    Outcome,
    RepairSettings,
    Samples,
    comparison_rows,
    headline,
    repair,
    write_outcome,
)
from salmon.tails import load_fit

REJECTED_CODE = 1


def run_repair(options: RepairOptions, explicit: Mapping[str, Any]) -> int:
    """Collect the samples in the project's own loops, repair, write, print.

    Args:
        explicit: Settings of the repair that were given on the command line; the config's section
            counts for the others.

    Returns:
        The exit code: 0 accepted or nothing to repair, 1 rejected.
    """
    check_new_folder(options.out, force=options.force)
    if options.write_checkpoint and options.checkpoint is None:
        raise InputError("--write_checkpoint needs --ckpt_path, the checkpoint to be repaired.")
    with Progress(quiet=options.quiet) as progress:
        reference = None
        if options.reference != "none":
            _, _, reference = _collected(options, options.reference, explicit, progress)
        project, settings, new = _collected(options, options.new, explicit, progress)
        model = project.module
        index = FilterIndex.from_model(model)
        fit = None if options.fit is None else load_fit(options.fit, index)
        if options.dry_run:
            print(
                f"{project.name}: {len(index)} filters, {len(new)} new and "
                f"{'no' if reference is None else len(reference)} reference samples. Nothing was "
                "repaired or written (--dry-run)."
            )
            return 0
        outcome = repair(
            model, new, reference, settings,
            task=options.task or project.settings.task, loss=project.settings.loss,
            index=index, fit=fit, batch_size=options.batch_size, progress=progress,
        )  # fmt: skip
    pictures = {"new": new} | ({} if reference is None else {"reference": reference})
    context = _context(options, explicit, project.name, patched=outcome.patch is not None)
    publish_folder(
        options.out,
        lambda folder: _write(
            folder, outcome, context, pictures if options.pictures else None, options
        ),
        force=options.force,
    )
    print_outcome(outcome, quiet=options.quiet)
    print(f"Repair: {outcome.status}. {headline(outcome)} Written: {options.out}")
    rules = () if outcome.winner is None else outcome.winner.verdict.rules
    tell_github(outcome.status, rules)
    codes: dict[str, int] = {ACCEPTED: 0, NOTHING_TO_REPAIR: options.exit_nothing}
    return codes.get(outcome.status, REJECTED_CODE)


def _context(
    options: RepairOptions, explicit: Mapping[str, Any], name: str, *, patched: bool
) -> dict[str, str]:
    """What a report begins with: the network, and how to use, undo and remake the repair."""
    found = {"model": name, "remake": f"`{remake('repair', options, explicit)}`"}
    path = options.checkpoint
    if path is None:
        return found
    found["checkpoint"] = hashed(path)
    if patched:
        place, old = str(options.out / PATCH_NAME), str(path)
        new, back = (
            str(path.with_name(f"{path.stem}-{word}{path.suffix}"))
            for word in ("repaired", "reverted")
        )
        for verb, given, out in (("apply", old, new), ("revert", new, back)):
            words = ["salmon", verb, "--patch", place, "--ckpt_path", given, "--out", out]
            found[verb] = f"`{shlex.join(words)}`"
    return found


def _collected(
    options: RepairOptions, name: str, explicit: Mapping[str, Any], progress: Progress
) -> tuple[Project, RepairSettings, Samples]:
    """A project, its settings, and the samples of one pass of its trainer."""
    project = load_project(options, options.seed or 0)
    own = {**project.repair, **explicit}
    settings = RepairSettings(**own if options.seed is None else own | {"seed": options.seed})
    samples, _ = collected(
        project, options, name, most=settings.max_samples, seed=settings.seed, progress=progress
    )
    return project, settings, samples


def print_outcome(outcome: Outcome, *, quiet: bool) -> None:
    """Print the repair beside the other remedies, and the rules; quietly, those that failed."""
    if outcome.winner is None:
        return
    if not quiet:
        print_table("On samples that nothing was chosen by:", COLUMNS, comparison_rows(outcome))
    print_rules(outcome.winner.verdict.rules, quiet=quiet)


def _write(
    folder: Path,
    outcome: Outcome,
    context: Mapping[str, str],
    pictures: Mapping[str, Samples] | None,
    options: RepairOptions,
) -> None:
    """All files of the output folder."""
    write_outcome(folder, outcome, context)
    write_page(folder, f"salmon: {context['model']}", outcome.sets, pictures)
    if options.write_checkpoint and outcome.patch is not None and options.checkpoint is not None:
        checkpoint = read_checkpoint(options.checkpoint, weights_only=options.weights_only)
        outcome.patch.apply(checkpoint.state_dict)
        write_checkpoint(folder / "repaired.ckpt", checkpoint, repaired=True)
