"""What a comparison leaves behind, for people and programs; the same one gives the same bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from salmon.comparison.changed import Reversal
from salmon.comparison.engine import ModelComparison
from salmon.files import json_text, versions, write_atomically
from salmon.markdown import cell, literal, markdown_table
from salmon.repairs import Samples
from salmon.repairs.report import junit_of, limited, listed, rules_table

SCHEMA = "salmon.comparison/1"
_ROWS = 20
_TINY = 1e-300


def write_comparison(
    folder: Path,
    found: ModelComparison,
    context: Mapping[str, Any] | None = None,
    pictures: Samples | None = None,
) -> None:
    """Write ``report.md``, ``report.json`` and ``junit.xml``; makes the folder.

    Args:
        context: Names and values that the reports begin with, such as the checkpoints.
        pictures: The samples; the first fixed and broken images are drawn to ``samples.png``.
            Reports may be public, so None draws none.
    """
    from salmon.repairs.figure import samples_png  # matplotlib takes a second to load

    texts = {
        "report.json": json_text(report(found, context), indent=1) + "\n",
        "report.md": markdown(found, context),
        "junit.xml": junit_of("compare", found.rules),
    }
    files = {name: text.encode() for name, text in texts.items()}
    drawn = None if pictures is None else samples_png(pictures, found.samples)
    if drawn is not None:
        files["samples.png"] = drawn
    for name, data in files.items():
        write_atomically(folder / name, lambda file, data=data: file.write(data))  # type: ignore[misc]


def report(found: ModelComparison, context: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of report.json; numbers that are not finite become null there."""
    blame = found.blame
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
        "blame": None if blame is None else {
            "samples": blame.samples,
            "filters": [asdict(each) for each in blame.filters],
            "layers": blame.layers,
            "groups_before": blame.groups[0],
            "groups_after": blame.groups[1],
        },
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
    parts = [f"# Comparison: {found.status}", headline(found)]
    if context:
        parts.append("\n".join(f"- {cell(name)}: {cell(value)}" for name, value in context.items()))
    parts += ["## Gates", rules_table(found.rules)]
    old, new = found.losses
    low, high = found.loss_change
    parts.append(
        f"A mistake is: {found.mistake}. Mean loss {old:.4g} to {new:.4g} (95 % interval of the "
        f"change {low:+.3g} to {high:+.3g})."
    )
    rows = [
        [each.kind, literal(each.name), each.samples, f"{100 * each.before:.1f} %",
         f"{100 * each.after:.1f} %", each.fixed, each.broken, f"{each.p:.2g}"]
        for each in found.groups if each.fixed or each.broken
    ]  # fmt: skip
    parts += ["## Who gained and who lost"]
    if rows:
        parts += [
            _table(["", "which", "samples", "before", "after", "fixed", "broken", "p"], rows),
            "Those that lost most first. p: that no more turn wrong than right, exact, adjusted "
            "for all groups (Holm). Before and after of a confusion: the share that is not "
            "mistaken so.",
        ]
    parts.append(f"Fixed: {listed(found.samples.fixed)}.")
    parts.append(f"Broken: {listed(found.samples.broken)}.")
    parts += ["## Where", *_where(found)]
    return limited(parts)


def _where(found: ModelComparison) -> list[str]:
    if found.unlike:
        return [f"Layers and filters are not compared: {found.unlike}."]
    if not found.changed:
        return ["No weight differs."]
    parts = []
    blame = {} if found.blame is None else found.blame.layers
    if found.reversals:
        parts += [
            "By layer: *loss*, what its change added to the mean loss of the samples that turned "
            "wrong; with the layer's old weights in the new network, how many of these are "
            "*rescued*, how many others *lost*, and the *net* over all samples, beside that of "
            "random changes of equal norm; *blame*, in how many more of 100 samples that turned "
            "wrong each of its filters is among the first, in mean, than in the old network.",
            _reversals(found.reversals, found.loss_shares, blame),
        ]
    else:
        rows = [[literal(name), f"{100 * c:.1f} %"] for name, c in found.changed.items()]
        parts.append(_table(["layer", "relative change"], rows))
    if found.blame is not None:
        parts += [
            f"What {found.blame.samples} samples that turned wrong blame in the new network, by "
            "the tails of the old one, beside the same samples in the old network; p: that they "
            "name a filter as right samples do, adjusted for all filters:",
            _table(
                ["filter", "samples, new", "old", "expected", "p"],
                [
                    [literal(f.name), f.new, f.old, f"{f.expected:.1f}",
                     "" if f.p is None else f"{f.p:.2g}"]
                    for f in found.blame.filters
                ],
            ),
        ]  # fmt: skip
    if found.filter_reversals:
        parts += [
            "The filters whose change added most to the loss, taken back one at a time:",
            _reversals(found.filter_reversals, found.filter_loss_shares, {}),
        ]
    return parts


def _reversals(
    found: Sequence[Reversal], shares: Mapping[str, float], blame: Mapping[str, float]
) -> str:
    rows = [
        [literal(each.name), each.weights, f"{100 * each.relative_change:.1f} %",
         _known(shares, each.name, 1), each.rescued, each.lost, f"{each.net:+.0f}",
         f"{each.random:+.0f}", *([_known(blame, each.name, 100)] if blame else [])]
        for each in found
    ]  # fmt: skip
    names = ["", "weights", "relative change", "loss", "rescued", "lost", "net", "net, random"]
    return _table([*names, "blame"] if blame else names, rows)


def _known(values: Mapping[str, float], name: str, unit: int) -> str:
    return f"{unit * values[name]:+.2g}" if name in values else ""


def _table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    more = len(rows) - _ROWS
    table = markdown_table(names, [list(row) for row in rows[:_ROWS]])
    return table + (f"\n\nAnd {more} more, in report.json." if more > 0 else "")
