"""The verdict on a repair: rules to pass on the accept splits, by which nothing was chosen."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from salmon.repairs.edit import Edit
from salmon.repairs.predictions import Comparison, Predictions, compare
from salmon.repairs.settings import RepairSettings
from salmon.tasks import class_name

ROUNDING = 1e-12  # 3 of 300 is 1 %, in floats too


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule and how it went."""

    name: str
    passed: bool
    value: float  # what was found
    bound: float  # what was allowed
    text: str  # in a sentence

    @property
    def headroom(self) -> float:
        """By how much the value could grow; negative where the rule failed."""
        return self.bound - self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An edit on the accept splits."""

    new: Comparison
    reference: Comparison
    rules: tuple[Rule, ...]

    @property
    def accepted(self) -> bool:
        """Whether every rule passed."""
        return all(rule.passed for rule in self.rules)


def judge(
    edit: Edit,
    new: tuple[Predictions, Predictions],
    reference: tuple[Predictions, Predictions],
    settings: RepairSettings,
) -> Verdict:
    """Apply every rule to what the network said of both sets before and after the edit."""
    on_new = compare(*new)
    rules = (_gain_rule(on_new, settings.alpha), *safety_rules(edit, new, reference, settings))
    return Verdict(new=on_new, reference=compare(*reference), rules=rules)


def safety_rules(
    edit: Edit,
    new: tuple[Predictions, Predictions],
    reference: tuple[Predictions, Predictions],
    settings: RepairSettings,
) -> Iterator[Rule]:
    """Rules that every trial of the search has to keep, too, the quickest ones first."""
    yield _simple("finite weights", 0.0 if edit.finite else 1.0, 0.0, "weights not finite")
    on_reference = compare(*reference)
    yield _loss_rule(on_reference, settings)
    yield _broken_rule(compare(*new), settings.max_broken)
    yield _broken_reference_rule(on_reference, settings.max_broken_reference)
    if "target" in reference[0].columns:
        yield _class_rule(*reference, settings)
    for name, pair in (("new", new), ("reference", reference)):
        yield _confidence_rule(name, *pair, settings)


def _simple(name: str, value: float, bound: float, what: str) -> Rule:
    """A value that must not exceed a bound; NaN does."""
    text = f"{what}: {value:.3g}, at most {bound:g} allowed"
    return Rule(name, value <= bound, value, bound, text)


def _confidence_rule(
    name: str, before: Predictions, after: Predictions, settings: RepairSettings
) -> Rule:
    """Of the calibration, or of the mean loss where the task has no confidence."""
    old, new = before.calibration_error, after.calibration_error
    if old is not None and new is not None:
        return _simple(
            f"calibration on {name} data", new - old, settings.max_ece_increase,
            "increase of the expected calibration error",
        )  # fmt: skip
    counted = torch.isfinite(before.losses)
    was, now = (float(each.losses[counted].mean()) for each in (before, after))
    grown = (now / was if was else math.inf if now else 1.0) - 1.0
    return _simple(
        f"mean loss on {name} data", grown, settings.max_loss_increase,
        f"relative increase of the mean loss, {was:.3g} to {now:.3g}",
    )  # fmt: skip


def _gain_rule(found: Comparison, alpha: float) -> Rule:
    passed = found.p <= alpha and found.fixed > found.broken
    text = (
        f"{found.fixed} new samples fixed and {found.broken} broken: p = {found.p:.3g} by "
        f"McNemar's exact test, at most {alpha:g} allowed"
    )
    return Rule("fixes more than it breaks", passed, found.p, alpha, text)


def _loss_rule(found: Comparison, settings: RepairSettings) -> Rule:
    """Non-inferiority on the reference data."""
    confidence, margin = settings.reference_confidence, settings.margin
    bound = found.loss_bound(confidence)
    kind = "observed" if confidence == 0.5 else f"upper bound at {confidence:.0%} confidence"
    text = (
        f"reference accuracy lost ({kind}): {100 * bound:.2f} points, at most "
        f"{100 * margin:g} allowed ({found.fixed} fixed, {found.broken} broken of "
        f"{found.samples}; upper bound at 95 % confidence {100 * found.loss_bound(0.95):.2f})"
    )
    return Rule("reference accuracy", bound <= margin + ROUNDING, bound, margin, text)


def _class_rule(before: Predictions, after: Predictions, settings: RepairSettings) -> Rule:
    """No class of the reference data loses much."""
    worst, which, judged = 0.0, "", 0
    targets = before.columns["target"]
    for label in targets.unique().tolist():
        of_class = targets == label
        if int(of_class.sum()) < settings.min_class:
            continue
        judged += 1
        lost = float((before.right[of_class].double() - after.right[of_class].double()).mean())
        if lost > worst:
            worst, which = lost, f"class {class_name(label, before.classes)}"
    margin = settings.class_margin
    text = (
        f"largest loss of a class of the reference data: {100 * worst:.1f} points "
        f"({which or 'no class lost'}; {judged} classes with {settings.min_class} samples or more "
        f"judged), at most {100 * margin:g} allowed"
    )
    return Rule("every class", worst <= margin + ROUNDING, worst, margin, text)


def _broken_rule(found: Comparison, bound: float) -> Rule:
    ratio = found.broken_per_fixed
    text = (
        f"{found.broken} new samples turned wrong and {found.fixed} right: {ratio:.2f} broken per "
        f"fixed one, at most {bound:g} allowed"
    )
    return Rule("broken new samples", ratio <= bound, ratio, bound, text)


def _broken_reference_rule(found: Comparison, bound: float) -> Rule:
    """Few right reference samples turn wrong, even where as many others turn right."""
    right = round(found.before * found.samples)
    share = found.broken / right if right else 0.0
    text = (
        f"{found.broken} of {right} right reference samples turned wrong: {100 * share:.1f} %, at "
        f"most {100 * bound:g} % allowed"
    )
    return Rule("broken reference samples", share <= bound, share, bound, text)
