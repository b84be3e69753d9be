"""``salmon diagnose``: the monitor in a trainer that tests a checkpoint, and a summary."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from salmon.cli.checkpoints import hashed
from salmon.cli.options import DiagnoseOptions, DiagnosisGates
from salmon.cli.project import Project, chosen, load_project, remake, run_pass
from salmon.cli.table import print_table
from salmon.cli.verdict import print_rules, tell_github
from salmon.comparison.engine import FAILED, PASSED
from salmon.diagnosis import Diagnosis
from salmon.errors import InputError
from salmon.files import check_new_folder, json_text, publish_folder, write_atomically
from salmon.gpd import TailFit
from salmon.monitor import SaliencyMonitor
from salmon.monitor.output import LOGS
from salmon.progress import Progress
from salmon.ranking import Calibration, filter_shares, group_shares
from salmon.repairs.judge import ROUNDING, Rule
from salmon.repairs.report import junit_of
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
    if options.fit is not None and not Path(options.fit).is_file():
        raise InputError(
            f"--fit is {options.fit!r}, which is no file; fit-validation.safetensors of a training "
            "is one."
        )
    said: list[str] = []
    rules: list[Rule] = []

    def fill(folder: Path) -> None:
        with Progress(quiet=options.quiet) as progress:
            fit: TailFit | str | None = options.fit
            calibrated: Calibration | None = None
            if fit is None and options.reference != "none":
                reference = _measured(options, options.reference, None, None, progress)[1]
                fit, calibrated = reference.fit, reference.calibration
            project, diagnosis, scope = _measured(options, options.new, fit, folder, progress)
            calibrated = calibrated or diagnosis.calibration
        name = scope.replace("/", "-")
        path = folder / LOGS / f"pass-{name}-000000.json"
        record = read_pass(path)
        own = {"command": remake("diagnose", options)}
        if options.checkpoint is not None:
            own["checkpoint"] = hashed(options.checkpoint)
        record = replace(record, origin=record.origin | own)
        write_pass(path, record)
        rules.extend(_rules(diagnosis, calibrated, options.gate))
        summary = _summary(project.name, diagnosis, record, options)
        if rules:
            summary["gates"] = [asdict(rule) for rule in rules]
            junit = junit_of("diagnose", rules).encode()
            write_atomically(folder / "junit.xml", lambda file: file.write(junit))
        text = f"{json_text(summary, indent=1)}\n".encode()
        write_atomically(folder / "diagnosis.json", lambda file: file.write(text))
        for doubt in diagnosis.doubts:
            print(f"Not to be trusted: {doubt}", file=sys.stderr)
        if not options.quiet:
            print_shares(diagnosis)
            _print_findings(record)
        print_rules(rules, quiet=options.quiet)
        verdict = f"Diagnosis: {_verdict(rules)}. " if rules else ""
        said.append(
            f"{verdict}{diagnosis.misclassified} of {diagnosis.samples} new samples are "
            f"{'misclassified' if diagnosis.has_classes else 'mistakes'}. Written: {options.out}"
        )

    publish_folder(options.out, fill, force=options.force)
    print(said[0])
    if options.gate == DiagnosisGates():
        return 0
    tell_github(_verdict(rules), rules)
    return 0 if _verdict(rules) == PASSED else 1


def _verdict(rules: Sequence[Rule]) -> str:
    return PASSED if all(rule.passed for rule in rules) else FAILED


def _rules(
    diagnosis: Diagnosis, calibrated: Calibration | None, gates: DiagnosisGates
) -> Iterator[Rule]:
    """The gates that are set, and with them that the numbers can be trusted."""
    if gates == DiagnosisGates():
        return
    doubts = len(diagnosis.doubts)
    yield Rule("trusted", not doubts, doubts, 0, " ".join(diagnosis.doubts) or "no doubts")
    if gates.min_accuracy is not None:
        wrong = diagnosis.misclassified / max(1, diagnosis.samples)
        most = 1 - gates.min_accuracy
        text = f"{diagnosis.misclassified} of {diagnosis.samples} samples are mistakes: {wrong:.2%}"
        text += f", at most {most:.2%} allowed"
        yield Rule("accuracy", wrong <= most + ROUNDING, wrong, most, text)
    if gates.max_findings is not None:
        found = len(diagnosis.findings.filters)
        text = f"{found} filters are blamed beyond chance, {gates.max_findings} allowed"
        yield Rule("findings", found <= gates.max_findings, found, gates.max_findings, text)
    if gates.max_miscalibration is not None:
        off = math.nan if calibrated is None else _off(calibrated)
        text = (
            f"values are exceeded {off:.3g} times as often, or as seldom, as their p says, by the "
            f"end of the 90 % band that is nearer to 1; {gates.max_miscalibration:g} allowed"
        )
        most = gates.max_miscalibration
        yield Rule("calibration", off <= most, off, most, text)


def _off(held: Calibration) -> float:
    """Largest factor by which a band of observed by predicted exceedance misses 1."""
    low, high = held.low.double(), held.high.double()
    known = torch.isfinite(low) & (high > 0)
    if not bool(known.any()):  # too few samples, or too many to be kept
        return math.nan
    return float(torch.maximum(low, 1 / high)[known].clamp_min(1.0).max())


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
    if fit is None and options.gate.max_miscalibration is not None:
        own["calibrate"] = True
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
    if not int(rankings["pot"].ranked.sum()):
        return
    everyone = filter_shares(index)
    by_method = {method: group_shares(ranking, index) for method, ranking in rankings.items()}
    columns = [by_method["zscore"], by_method["pot"], everyone]
    rows = [[group, *(f"{100 * c[group]:.1f}" for c in columns)] for group in index.groups]
    top_k = rankings["pot"].filters.shape[1]
    print_table(
        f"Share of each group among the top-{top_k} filters of {len(diagnosis.mistakes.sample)} "
        f"{'misclassified samples' if diagnosis.has_classes else 'mistakes'}, in %",
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
        part = f", the first {len(rows)} of" if len(record.findings) > len(rows) else ":"
        title = f"\nFilters beyond chance{part} {len(record.findings)}"
        print_table(title, FINDING_COLUMNS, rows)
    pairs = pair_rows(record)[:_TOP_ROWS]
    if record.has_classes:
        print_table("\nClasses that are confused most", PAIR_COLUMNS, pairs)
