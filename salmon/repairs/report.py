"""What a repair leaves behind: report.json, report.md, junit.xml, tradeoff.svg and the patch.

The same outcome gives the same bytes; times and paths are not in it.
"""

import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from salmon.files import json_text, write_atomically
from salmon.markdown import cell, markdown_table
from salmon.repairs.engine import NOTHING_TO_REPAIR, Outcome
from salmon.repairs.judge import Verdict
from salmon.repairs.search import Trial

SCHEMA = "salmon.repair/1"
PATCH_NAME = "patch.safetensors"
MAX_MARKDOWN = 60_000  # bytes; GitHub's comments hold 65,536 characters
_TRIAL_ROWS = 60


def write_outcome(folder: Path, outcome: Outcome, context: Mapping[str, Any] | None = None) -> None:
    """Write the reports, and the patch where the repair was accepted; makes the folder."""
    from salmon.repairs.figure import tradeoff_svg  # matplotlib takes a second to load

    texts = {
        "report.json": json_text(report(outcome, context), indent=1) + "\n",
        "report.md": markdown(outcome, context),
        "junit.xml": junit(outcome),
        "tradeoff.svg": tradeoff_svg(outcome.trials, outcome.settings.margin),
    }
    if outcome.patch is not None:
        outcome.patch.save(folder / PATCH_NAME)
    for name, text in texts.items():
        data = text.encode()
        write_atomically(folder / name, lambda file, data=data: file.write(data))  # type: ignore[misc]


def report(outcome: Outcome, context: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of report.json; numbers that are not finite become null there."""
    return {
        "schema": SCHEMA,
        "status": outcome.status,
        "reason": outcome.reason,
        "context": dict(context or {}),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "settings": asdict(outcome.settings),
        "samples": outcome.sizes,
        "new_data_serves_as_reference": outcome.shared,
        "fit_was_given": outcome.given_fit,
        "accuracy_before": outcome.before,
        "misclassified_in_repair": outcome.misclassified,
        "filters": outcome.filters,
        "parameters": outcome.weights,
        "verdict": _verdict(outcome.verdict),
        "rivals": [_verdict(rival) for rival in outcome.rivals],
        "trials": [asdict(trial) for trial in outcome.trials],
    }


def _verdict(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    return {
        "accepted": verdict.accepted,
        "trial": asdict(verdict.trial),
        "parameters": verdict.parameters,
        "new": asdict(verdict.new) | {"gain": verdict.new.gain},
        "reference": asdict(verdict.reference) | {"gain": verdict.reference.gain},
        "rules": [asdict(rule) for rule in verdict.rules],
    }


def markdown(outcome: Outcome, context: Mapping[str, Any] | None = None) -> str:
    """The report for people, fit for a job summary or a comment: less than 60 kB."""
    parts = [
        f"# Repair: {outcome.status}",
        f"{outcome.reason[:1].upper()}{outcome.reason[1:]}.",
        *(f"- {cell(name)}: {cell(value)}" for name, value in (context or {}).items()),
        _data_text(outcome),
    ]
    if outcome.verdict is not None:
        parts += [
            "## Rules, on samples that nothing was chosen by",
            markdown_table(
                ["rule", "", "what was found"],
                [[r.name, "passed" if r.passed else "**failed**", r.text]
                 for r in outcome.verdict.rules],
            ),
            "## The repair and its rivals at equal budget",
            markdown_table(COLUMNS, comparison_rows(outcome)),
            "Accuracy on the accept splits; p is McNemar's exact one-sided test of fixed against "
            "broken new samples. Each rival is its best trial on the guard splits with as many "
            f"filters (of {outcome.filters}), or with any number where it was not tried with as "
            'many; "all" and "last_linear" have sizes of their own.',
        ]  # fmt: skip
    if outcome.trials:
        parts += [
            "## Search on the guard splits",
            _trials_text(outcome.trials),
            "Figure: tradeoff.svg. All trials: report.json.",
        ]
    whole = "\n\n".join(parts) + "\n"
    return whole if len(whole.encode()) < MAX_MARKDOWN else whole[: MAX_MARKDOWN // 2] + "\n...\n"


COLUMNS = (
    "ranking", "filters", "weights", "step", "new before", "new after", "fixed", "broken", "p",
    "reference before", "reference after",
)  # fmt: skip


def comparison_rows(outcome: Outcome) -> list[list[str]]:
    """The winner and its rivals, a row each, on the accept splits."""
    verdicts = [v for v in (outcome.verdict, *outcome.rivals) if v is not None]
    return [
        [
            v.trial.ranking,
            f"{v.trial.filters}",
            f"{100 * v.parameters / outcome.weights:.2f} %",
            f"{v.trial.step} {v.trial.rate:g}",
            f"{100 * v.new.before:.1f} %",
            f"{100 * v.new.after:.1f} %",
            f"{v.new.fixed}",
            f"{v.new.broken}",
            f"{v.new.p:.2g}",
            f"{100 * v.reference.before:.1f} %",
            f"{100 * v.reference.after:.1f} %",
        ]
        for v in verdicts
    ]


def junit(outcome: Outcome) -> str:
    """A test case per rule of acceptance, for CI systems."""
    suite = ElementTree.Element("testsuite", name="salmon repair")
    cases = [("search", outcome.status == NOTHING_TO_REPAIR, outcome.reason)]
    if outcome.verdict is not None:
        cases = [(rule.name, rule.passed, rule.text) for rule in outcome.verdict.rules]
    for name, passed, text in cases:
        case = ElementTree.SubElement(suite, "testcase", classname="repair", name=name)
        if not passed:
            ElementTree.SubElement(case, "failure", message=text)
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(not passed for _, passed, _ in cases)))
    ElementTree.indent(suite)
    text = ElementTree.tostring(suite, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _data_text(outcome: Outcome) -> str:
    """Samples by split, and where the reference and the fits come from."""
    parts = list(outcome.sizes["new"])
    rows = [
        [name, *(str(sizes[part]) for part in parts), f"{100 * outcome.before[name]:.1f} %"]
        for name, sizes in outcome.sizes.items()
    ]
    notes = [f"{outcome.misclassified} new samples in the repair split are misclassified."]
    if outcome.shared:
        notes.append(
            "No reference data were given: the new data served as both, so that nothing is known "
            "of what the network gives up elsewhere."
        )
    if outcome.given_fit:
        notes.append("The tails were given, not fitted to the repair split of the reference data.")
    table = markdown_table(["samples", *parts, "right before"], rows)
    notes.append(f"Splits by id, stratified, seed {outcome.settings.seed}.")
    return f"{table}\n\n{' '.join(notes)}"


def _trials_text(trials: tuple[Trial, ...]) -> str:
    """The best trial of every ranking, number of filters and step."""
    best: dict[tuple[str, int, str], Trial] = {}
    for trial in trials:
        key = (trial.ranking, trial.filters, trial.step)
        if key not in best or (trial.allowed, trial.gain) > (best[key].allowed, best[key].gain):
            best[key] = trial
    rows = [
        [t.ranking, str(t.filters), t.step, f"{t.rate:g}", f"{100 * t.gain:+.1f}",
         f"{-100 * t.lost:+.1f}", "yes" if t.allowed else "no"]
        for t in list(best.values())[:_TRIAL_ROWS]
    ]  # fmt: skip
    names = ["ranking", "filters", "step", "rate", "new, points", "reference, points", "allowed"]
    return f"{len(trials)} trials; the best rate of each line:\n\n{markdown_table(names, rows)}"
