"""What a repair leaves behind: reports for people and programs, figures, and the patch.

The same outcome gives the same bytes; times are not in it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from salmon.files import json_text, versions, write_all
from salmon.markdown import cell, literal, markdown_table
from salmon.repairs.changes import LayerChange, SampleChange, SetChange
from salmon.repairs.engine import NOTHING_TO_REPAIR, Judged, Outcome
from salmon.repairs.judge import Rule
from salmon.repairs.trial import Trial

SCHEMA = "salmon.repair/2"
PATCH_NAME = "patch.safetensors"
MAX_MARKDOWN = 60_000  # bytes; GitHub's comments hold 65,536 characters
_TRIAL_ROWS, _LAYER_ROWS, _NAMED = 60, 40, 20


def write_outcome(folder: Path, outcome: Outcome, context: Mapping[str, Any] | None = None) -> None:
    """Write the reports, and the patch where the repair was accepted; makes the folder.

    Args:
        context: Names and values that the reports begin with, such as the model and the commands.
    """
    from salmon.repairs.figure import tradeoff_svg  # matplotlib takes a second to load

    if outcome.patch is not None:
        outcome.patch.save(folder / PATCH_NAME)
    write_all(folder, {
        "report.json": json_text(report(outcome, context), indent=1) + "\n",
        "report.md": markdown(outcome, context),
        "comment.md": comment(outcome, context),
        "junit.xml": junit(outcome),
        "tradeoff.svg": tradeoff_svg(outcome.trials, outcome.settings.margin),
    })  # fmt: skip


def report(outcome: Outcome, context: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of report.json; numbers that are not finite become null there."""
    return {
        "schema": SCHEMA,
        "status": outcome.status,
        "reason": outcome.reason,
        "headline": headline(outcome),
        "context": dict(context or {}),
        "versions": versions(),
        "settings": asdict(outcome.settings),
        "samples": outcome.sizes,
        "new_data_serves_as_reference": outcome.shared,
        "fit_was_given": outcome.given_fit,
        "accuracy_before": outcome.before,
        "mistake": outcome.mistake,
        "mistakes_in_repair": outcome.mistakes,
        "filters": outcome.filters,
        "parameters": outcome.weights,
        "winner": None if outcome.winner is None else _judged(outcome.winner),
        "layers": [asdict(layer) for layer in outcome.layers],
        "accept": {name: asdict(found) for name, found in outcome.sets.items()},
        "remedies": [_judged(each) for each in outcome.remedies],
        "orders": [_judged(each) for each in outcome.orders],
        "trials": [asdict(trial) for trial in outcome.trials],
    }


def _judged(found: Judged) -> dict[str, Any]:
    verdict = found.verdict
    sides = {"new": verdict.new, "reference": verdict.reference}
    return {
        "accepted": verdict.accepted,
        "trial": asdict(found.trial),
        **{name: asdict(s) | {"gain": s.gain, "p": s.p} for name, s in sides.items()},
        "rules": [asdict(rule) | {"headroom": rule.headroom} for rule in verdict.rules],
    }


def comment(outcome: Outcome, context: Mapping[str, Any] | None = None) -> str:
    """The report's first part, for the conversation of a pull request."""
    return limited(_summary(outcome, context))


def markdown(outcome: Outcome, context: Mapping[str, Any] | None = None) -> str:
    """The report for people, fit for a job summary: less than 60 kB."""
    parts = _summary(outcome, context)
    if outcome.winner is not None:
        parts += [
            "## What was changed",
            _layers_text(outcome),
            "## What became of the samples",
            *(_set_text(name, found) for name, found in outcome.sets.items()),
        ]
    if outcome.remedies or outcome.orders:
        parts += [
            "## Beside other remedies",
            markdown_table(COLUMNS, comparison_rows(outcome)),
            "Each at its own size, its best on the guard splits; accuracies on the accept splits; "
            "p is McNemar's exact one-sided test of fixed against broken new samples. Nothing was "
            "chosen by this table.",
        ]
    if outcome.trials:
        parts += ["## Search on the guard splits", _trials_text(outcome.trials)]
    parts.append(f"Data: {_data_text(outcome)}")
    made_with = ", ".join(f"{name} {number}" for name, number in versions().items())
    parts.append(f"Versions: {made_with}. Settings and all trials: report.json.")
    return limited(parts)


def limited(parts: Sequence[str]) -> str:
    """Paragraphs, cut off where they are too long for a comment."""
    whole = "\n\n".join(parts) + "\n"
    data = whole.encode()
    if len(data) < MAX_MARKDOWN:
        return whole
    return data[: MAX_MARKDOWN - 100].decode(errors="ignore") + "\n...\n"


def _summary(outcome: Outcome, context: Mapping[str, Any] | None) -> list[str]:
    """Status, what it means, the rules, and how to use it."""
    parts = [f"# Repair: {outcome.status}", headline(outcome)]
    details = dict(context or {})
    if details:
        parts.append("\n".join(f"- {cell(name)}: {cell(value)}" for name, value in details.items()))
    if outcome.winner is not None:
        parts += [
            "## Rules, on samples that nothing was chosen by",
            rules_table(outcome.winner.verdict.rules),
        ]
    return parts


def rules_table(rules: Sequence[Rule]) -> str:
    """How each went."""
    rows = [
        [r.name, "passed" if r.passed else "**failed**", f"{r.headroom:.3g}", literal(r.text)]
        for r in rules
    ]
    return markdown_table(["rule", "", "headroom", "what was found"], rows=rows)


def headline(outcome: Outcome) -> str:
    """What was found in a few sentences, beginning with a remedy that gains more, if one does."""
    winner = outcome.winner
    whole = f"{outcome.reason[:1].upper()}{outcome.reason[1:]}."
    if winner is None:
        best = max(_forbidden(outcome), key=lambda each: each.verdict.new.gain, default=None)
        return whole if best is None else f"{_advice(best)} {whole}"
    better = [
        each for each in _forbidden(outcome)
        if each.verdict.new.gain > winner.verdict.new.gain + _CLEARLY
    ]  # fmt: skip
    first = ""
    if better:
        first = _advice(max(better, key=lambda each: each.verdict.new.gain)) + " "
    trial, new, old = winner.trial, winner.verdict.new, winner.verdict.reference
    changed = f"{trial.filters} of {outcome.filters} filters"
    if not trial.filters:
        changed = f"{trial.weights} values and no filter"
    return (
        f"{first}{_named(trial)} changes {changed} "
        f"({100 * trial.weights / outcome.weights:.2f} % of the weights): new data "
        f"{100 * new.before:.1f} % to {100 * new.after:.1f} % right ({new.fixed} fixed, "
        f"{new.broken} broken), reference data {100 * old.before:.1f} % to {100 * old.after:.1f} % "
        f"({old.fixed} fixed, {old.broken} broken). {whole}{_worst_class(outcome)} Chosen among "
        f"{len(outcome.trials)} trials."
    )


def _worst_class(outcome: Outcome) -> str:
    """The class of the new data that lost most, which no rule looks at, if it lost much."""
    settings, found = outcome.settings, outcome.sets.get("new")
    lost = {
        each.before - each.after: each
        for each in (() if found is None else found.classes)
        if each.samples >= settings.min_class and each.before - each.after > settings.class_margin
    }
    if not lost:
        return ""
    worst = lost[max(lost)]
    return (
        f" But class {worst.name} of the new data fell from {100 * worst.before:.1f} % to "
        f"{100 * worst.after:.1f} % right."
    )


_CLEARLY = 0.01
"""Accuracy by which another remedy has to gain more, to be named first."""


def _forbidden(outcome: Outcome) -> list[Judged]:
    """Remedies that keep the rules but may not win."""
    lets_win = outcome.settings.lets_win
    return [
        each for each in outcome.remedies
        if each.verdict.accepted and not lets_win(each.trial.remedy, each.trial.order)
    ]  # fmt: skip


def _advice(better: Judged) -> str:
    new, old = better.verdict.new, better.verdict.reference
    return (
        f"{_named(better.trial)} gains more: {100 * new.gain:+.1f} points on the new data, "
        f"{100 * old.gain:+.1f} on the reference data, within the same rules, by "
        f"{better.trial.weights} weights; with prefer any (--repair.prefer any) such remedies may "
        "be chosen, if the whole network may change."
    )


def _named(trial: Trial) -> str:
    return f"{trial.remedy} ({trial.order}, {trial.how})"


COLUMNS = (
    "remedy", "order", "filters", "weights", "how", "new before", "new after", "fixed", "broken",
    "p", "reference before", "reference after", "rules",
)  # fmt: skip


def comparison_rows(outcome: Outcome) -> list[list[str]]:
    """The winner and what it is compared with, a row each, on the accept splits."""
    first = [outcome.winner] if outcome.winner is not None else []
    return [
        [
            each.trial.remedy,
            each.trial.order,
            f"{each.trial.filters}",
            f"{100 * each.trial.weights / outcome.weights:.2f} %",
            each.trial.how,
            f"{100 * each.verdict.new.before:.1f} %",
            f"{100 * each.verdict.new.after:.1f} %",
            f"{each.verdict.new.fixed}",
            f"{each.verdict.new.broken}",
            f"{each.verdict.new.p:.2g}",
            f"{100 * each.verdict.reference.before:.1f} %",
            f"{100 * each.verdict.reference.after:.1f} %",
            "kept" if each.verdict.accepted else "broken",
        ]
        for each in (*first, *outcome.remedies, *outcome.orders)
    ]


def junit(outcome: Outcome) -> str:
    """A test case per rule of acceptance with the measured value, for CI systems."""
    if outcome.winner is not None:
        return junit_of("repair", outcome.winner.verdict.rules)
    nothing = outcome.status == NOTHING_TO_REPAIR
    return junit_of("repair", [Rule("search", nothing, math.nan, math.nan, outcome.reason)])


def junit_of(name: str, rules: Sequence[Rule]) -> str:
    """A suite with a test case for each rule, in JUnit's XML.

    Args:
        name: Of the command.
    """
    suite = ElementTree.Element("testsuite", name=f"salmon {name}")
    for rule in rules:
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=rule.name)
        if not math.isnan(rule.bound):
            properties = ElementTree.SubElement(case, "properties")
            for key, value in (("value", rule.value), ("bound", rule.bound)):
                ElementTree.SubElement(properties, "property", name=key, value=f"{value:.6g}")
        if rule.passed:
            ElementTree.SubElement(case, "system-out").text = rule.text
        else:
            ElementTree.SubElement(case, "failure", message=rule.text)
    suite.set("tests", str(len(rules)))
    suite.set("failures", str(sum(not rule.passed for rule in rules)))
    ElementTree.indent(suite)
    text = ElementTree.tostring(suite, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _layers_text(outcome: Outcome) -> str:
    """Tensors and rows by name."""
    rows = [
        [literal(layer.name), f"{len(layer.rows)} of {layer.of}", _some(layer),
         f"{layer.weights}", f"{100 * layer.relative_change:.1f} %"]
        for layer in outcome.layers[:_LAYER_ROWS]
    ]  # fmt: skip
    more = len(outcome.layers) - _LAYER_ROWS
    table = markdown_table(["tensor", "rows", "which", "weights", "relative change"], rows)
    return table + (f"\n\nAnd {more} more tensors, in report.json." if more > 0 else "")


def _some(layer: LayerChange) -> str:
    if len(layer.rows) == layer.of:
        return "all"
    more = len(layer.rows) - _NAMED
    return ", ".join(layer.rows[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _set_text(name: str, found: SetChange) -> str:
    """Classes, if there are some, and who was fixed and broken."""
    rows = [
        [literal(c.name), c.samples, f"{100 * c.before:.1f} %", f"{100 * c.after:.1f} %"]
        for c in found.classes[:_TRIAL_ROWS]
    ]
    table = markdown_table([f"class of the {name} data", "samples", "before", "after"], rows)
    first = table if rows else f"The {name} data."
    fixed, broken = listed(found.fixed), listed(found.broken)
    return f"{first}\n\nFixed: {fixed}. Broken: {broken}."


def listed(samples: Sequence[SampleChange]) -> str:
    """The first of them, with what changed."""
    if not samples:
        return "none"
    more = len(samples) - _NAMED
    shown = [f"{literal(str(s.id))} ({literal(s.what)})" for s in samples[:_NAMED]]
    return "; ".join(shown) + (f" and {more} more, in report.json" if more > 0 else "")


def _data_text(outcome: Outcome) -> str:
    """Samples by split, and where the reference and the fits come from."""
    parts = list(outcome.sizes["new"])
    rows = [
        [name, *(str(sizes[part]) for part in parts), f"{100 * outcome.before[name]:.1f} %"]
        for name, sizes in outcome.sizes.items()
    ]
    notes = [
        f"A mistake is: {outcome.mistake}.",
        f"{outcome.mistakes} new samples in the repair split are mistakes.",
    ]
    if outcome.shared:
        notes.append(
            "No reference data were given: the new data served as both, so that nothing is known "
            "of what the network gives up elsewhere."
        )
    if outcome.given_fit:
        notes.append("The tails were given, not fitted to the repair split of the reference data.")
    notes.append(f"Splits by id, stratified, seed {outcome.settings.seed}.")
    table = markdown_table(["samples", *parts, "right before"], rows)
    return f"{' '.join(notes)}\n\n{table}"


def _trials_text(trials: tuple[Trial, ...]) -> str:
    """The best trial of every remedy, order and number of filters."""
    best: dict[tuple[str, str, int], Trial] = {}
    for trial in trials:
        known = best.get(trial.group)
        if known is None or (trial.allowed, trial.gain) > (known.allowed, known.gain):
            best[trial.group] = trial
    rows = [
        [t.remedy, t.order, str(t.filters), t.how, f"{100 * t.gain:+.1f}", f"{-100 * t.lost:+.1f}",
         "allowed" if t.allowed else t.failed or "given up"]
        for t in list(best.values())[:_TRIAL_ROWS]
    ]  # fmt: skip
    names = ["remedy", "order", "filters", "how", "new, points", "reference, points", ""]
    given_up = sum(not trial.complete for trial in trials)
    return (
        f"{len(trials)} trials, of which {given_up} were given up after a third of the samples; "
        f"the best of each size:\n\n{markdown_table(names, rows)}\n\nFigure: tradeoff.svg."
    )
