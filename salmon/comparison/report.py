"""What a comparison leaves behind, for people and programs; the same one gives the same bytes."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from salmon.comparison.engine import ModelComparison
from salmon.files import json_text, versions, write_all
from salmon.markdown import cell, literal, markdown_table
from salmon.repairs.report import junit_of, limited, listed, rules_table

SCHEMA = "salmon.comparison/1"
_ROWS = 20
_TINY = 1e-300


def write_comparison(
    folder: Path, found: ModelComparison, context: Mapping[str, Any] | None = None
) -> None:
    """Write ``report.md``, ``report.json`` and ``junit.xml``; makes the folder.

    Args:
        context: Names and values that the reports begin with, such as the checkpoints.
    """
    write_all(folder, {
        "report.json": json_text(report(found, context), indent=1) + "\n",
        "report.md": markdown(found, context),
        "junit.xml": junit_of("compare", found.rules),
    })  # fmt: skip


def report(found: ModelComparison, context: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of report.json; numbers that are not finite become null there."""
    return {
        "schema": SCHEMA,
        "status": found.status,
        "headline": headline(found),
        "context": dict(context or {}),
        "versions": versions(),
        "gates": asdict(found.gates),
        "settings": asdict(found.settings),
        "mistake": found.mistake,
        **asdict(found.counts),
        "p_fixed": found.counts.p,
        "p_broken": found.regressed,
        "accuracy_change_interval": found.accuracy_change,
        "mean_loss": found.losses,
        "loss_change_interval": found.loss_change,
        "rules": [asdict(rule) | {"headroom": rule.headroom} for rule in found.rules],
        "groups": [asdict(each) for each in found.groups],
        "fixed_samples": [asdict(each) for each in found.samples.fixed],
        "broken_samples": [asdict(each) for each in found.samples.broken],
        "filters": found.filters,
        "changed": found.changed,
        "unlike": found.unlike,
        "blame": None if found.blame is None else asdict(found.blame),
        "own": None if found.own is None else [asdict(each) for each in found.own],
        "loss_shares": found.loss_shares,
        "filter_loss_shares": found.filter_loss_shares,
        "reversals": [asdict(each) for each in found.reversals],
        "filter_reversals": [asdict(each) for each in found.filter_reversals],
    }  # fmt: skip


def headline(found: ModelComparison) -> str:
    """What was found in a few sentences."""
    counts = found.counts
    low, high = (100 * bound for bound in found.accuracy_change)
    text = (
        f"{100 * counts.before:.1f} % to {100 * counts.after:.1f} % of {counts.samples} samples "
        f"right ({100 * counts.gain:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}): "
        f"{counts.fixed} fixed, {counts.broken} broken (p {_two_sided(found)} by McNemar's exact "
        "test)."
    )
    if found.flattered:
        text += " The patch was made with these samples, so that others would say more."
    worse = [each for each in found.groups if each.p <= 0.05]
    if worse:
        names = "; ".join(f"{each.kind} {each.name}" for each in worse[:3])
        text += f" Worse beyond chance: {names}."
    best = found.reversals[0] if found.reversals else None
    if best is not None and best.net > max(0.0, best.random):
        text += (
            f" To take back the change of {best.name} makes {best.net:.0f} more samples right than "
            f"wrong (a random change of that size: {best.random:+.0f})."
        )
    return text


def _two_sided(found: ModelComparison) -> str:
    p = min(1.0, 2 * min(found.counts.p, found.regressed))
    return f"= {p:.2g}" if p > _TINY else f"< {_TINY:g}"


def markdown(found: ModelComparison, context: Mapping[str, Any] | None = None) -> str:
    """The report for people, fit for a comment: less than 60 kB."""
    from salmon.views import comparison_tables  # takes a second to load

    parts = [f"# Comparison: {found.status}", literal(headline(found))]
    if context:
        parts.append("\n".join(f"- {cell(name)}: {cell(value)}" for name, value in context.items()))
    old, new = found.losses
    low, high = found.loss_change
    parts += [
        "## Gates",
        rules_table(found.rules),
        f"A mistake is: {found.mistake}. Mean loss {old:.4g} to {new:.4g} (95 % interval of the "
        f"change {low:+.3g} to {high:+.3g}).",
    ]
    for table in comparison_tables(report(found), "the comparison"):
        if table.name == "samples-samples":
            fixed, broken = listed(found.samples.fixed), listed(found.samples.broken)
            parts.append(f"Fixed: {fixed}.\n\nBroken: {broken}.")
        elif table.rows and table.name != "rules":
            rows = [[literal(str(value)) for value in row] for row in table.rows[:_ROWS]]
            more = len(table.rows) - len(rows)
            parts += [f"## {table.heading}", table.text, markdown_table(table.columns, rows)]
            parts += [f"And {more} more, in report.json."] if more else []
    if found.unlike:
        parts.append(f"Filters are not compared one by one: {found.unlike}.")
    elif not found.changed:
        parts.append("No weight differs.")
    return limited([part for part in parts if part])
