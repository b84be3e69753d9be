"""``salmon compare``: two checkpoints, or one and a patch, on the same samples, and the gates."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from salmon.cli.checkpoints import hashed
from salmon.cli.options import CompareOptions
from salmon.cli.pages import write_page
from salmon.cli.project import Project, collected, load_project, remake
from salmon.cli.verdict import print_rules, tell_github
from salmon.comparison import CompareSettings, compare, headline, write_comparison
from salmon.comparison.engine import PASSED
from salmon.errors import InputError
from salmon.files import check_new_folder, publish_folder
from salmon.filters import FilterIndex
from salmon.progress import Progress
from salmon.repairs import Patch, Samples, is_patch
from salmon.tails import load_fit

_Columns = dict[str, list[object]]


def run_compare(options: CompareOptions) -> int:
    """Collect the samples in the project's own loop, compare, write, print.

    Returns:
        The exit code: 0 every gate passed, 1 one failed.
    """
    check_new_folder(options.out, force=options.force)
    path = Path(options.candidate)
    with Progress(quiet=options.quiet) as progress:

        def taken(given: CompareOptions, name: str) -> tuple[Project, Samples, _Columns]:
            project, columns = load_project(given, given.seed), []
            if name == given.new:
                columns = given.slices
            samples, slices = collected(
                project, given, name, most=given.max_samples, seed=given.seed, columns=columns,
                progress=progress,
            )  # fmt: skip
            return project, samples, slices

        reference = None
        if options.reference != "none":
            _, reference, _ = taken(options, options.reference)
        project, samples, slices = taken(options, options.new)
        candidate: Patch | nn.Module
        if is_patch(path):
            candidate = Patch.load(path)
        else:
            other, again, _ = taken(replace(options, ckpt_path=str(path)), options.new)
            candidate = other.module
            if samples.fingerprint() != again.fingerprint():
                raise InputError(
                    f"the {options.new} data gave other samples in the second pass; both networks "
                    "need the same ones, so shuffle=False, no random augmentation, and a "
                    "seed_everything in the config are needed."
                )
        index = FilterIndex.from_model(project.module)
        found = compare(
            project.module, candidate, samples, options.gate,
            settings=CompareSettings(seed=options.seed), reference=reference, slices=slices,
            task=options.task or project.settings.task, loss=project.settings.loss, index=index,
            fit=None if options.fit is None else load_fit(options.fit, index),
            batch_size=options.batch_size, progress=progress,
        )  # fmt: skip
    context = {
        "model": project.name,
        "old": "as built" if options.checkpoint is None else hashed(options.checkpoint),
        "new": hashed(path),
        "remake": f"`{remake('compare', options)}`",
    }

    def write(folder: Path) -> None:
        write_comparison(folder, found, context)
        pictures = {"samples": samples} if options.pictures else None
        write_page(folder, f"salmon: {project.name}", {"samples": found.samples}, pictures)

    publish_folder(options.out, write, force=options.force)
    print_rules(found.rules, quiet=options.quiet)
    print(f"Comparison: {found.status}. {headline(found)} Written: {options.out}")
    tell_github(found.status, found.rules)
    return 0 if found.status == PASSED else 1
