"""Acceptance: rules that a repair must pass on samples that nothing was chosen by."""

import math
from dataclasses import dataclass

from scipy import stats

from salmon.repairs.edit import Edit
from salmon.repairs.evaluate import Predictions
from salmon.repairs.settings import RepairSettings


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule and how it went."""

    name: str
    passed: bool
    value: float  # what was found
    bound: float  # what was allowed
    text: str  # in a sentence


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same samples before and after."""

    samples: int
    before: float  # accuracy
    after: float
    fixed: int  # wrong before, right after
    broken: int  # right before, wrong after
    p: float  # exact one-sided McNemar test that no more are fixed than broken
    ece_before: float  # expected calibration error
    ece_after: float

    @property
    def gain(self) -> float:
        """Accuracy won."""
        return self.after - self.before


def compare(before: Predictions, after: Predictions) -> Comparison:
    """Count what changed."""
    was, now = before.right, after.right
    fixed, broken = int((~was & now).sum()), int((was & ~now).sum())
    return Comparison(
        samples=len(was),
        before=before.accuracy,
        after=after.accuracy,
        fixed=fixed,
        broken=broken,
        p=mcnemar(fixed, broken),
        ece_before=before.calibration_error,
        ece_after=after.calibration_error,
    )


def mcnemar(fixed: int, broken: int) -> float:
    """Exact one-sided McNemar test (McNemar 1947, Psychometrika 12; binomial form).

    Returns:
        Probability of at least so many fixed among the changed ones if either were as likely; 1
        where nothing changed.
    """
    if fixed + broken == 0:
        return 1.0
    return float(stats.binomtest(fixed, fixed + broken, 0.5, alternative="greater").pvalue)


def loss_bound(fixed: int, broken: int, samples: int, confidence: float) -> float:
    """Upper bound of the accuracy lost, from paired counts (Wald, as for McNemar's test).

    Args:
        confidence: One-sided; 0.5 gives the observed loss.

    Returns:
        The bound; with nothing changed, that of one broken sample at a confidence above 0.5.
    """
    lost = (broken - fixed) / samples
    if confidence == 0.5:
        return lost
    changed = max(fixed + broken, 1)
    error = math.sqrt(max(changed - (broken - fixed) ** 2 / samples, 0.0)) / samples
    return lost + float(stats.norm.ppf(confidence)) * error


def judge(
    edit: Edit,
    new: tuple[Predictions, Predictions],
    reference: tuple[Predictions, Predictions],
    settings: RepairSettings,
) -> list[Rule]:
    """Apply every rule.

    Args:
        new: Predictions before and after, of the accept split of the new data.

    Returns:
        All rules; the repair is accepted if all passed.
    """
    on_new, on_reference = compare(*new), compare(*reference)
    rules = [
        _most("finite weights", 0.0 if edit.finite else 1.0, 0.0, "weights that are not finite"),
        _most(
            "relative change", edit.relative_change, settings.max_relative_change,
            "largest relative change of a filter",
        ),
        Rule(
            "fixes more than it breaks",
            on_new.p <= settings.alpha and on_new.fixed > on_new.broken,
            on_new.p,
            settings.alpha,
            f"{on_new.fixed} new samples fixed and {on_new.broken} broken: p = {on_new.p:.3g} by "
            f"McNemar's exact test, at most {settings.alpha:g} allowed",
        ),
        _reference_rule(on_reference, settings),
        _class_rule(*reference, settings),
        _broken_rule(on_new, settings.max_broken),
        _broken_reference_rule(*reference, settings.max_broken_reference),
    ]  # fmt: skip
    for name, found in (("new", on_new), ("reference", on_reference)):
        rules.append(
            _most(
                f"calibration on {name} data",
                found.ece_after - found.ece_before,
                settings.max_ece_increase,
                "increase of the expected calibration error",
            )
        )
    return rules


def _most(name: str, value: float, bound: float, what: str) -> Rule:
    """A value that must not exceed a bound; NaN does."""
    return Rule(
        name, value <= bound, value, bound, f"{what}: {value:.3g}, at most {bound:g} allowed"
    )


def _reference_rule(found: Comparison, settings: RepairSettings) -> Rule:
    """Non-inferiority on the reference data."""
    bound = loss_bound(found.fixed, found.broken, found.samples, settings.reference_confidence)
    strict = loss_bound(found.fixed, found.broken, found.samples, 0.95)
    kind = (
        "observed"
        if settings.reference_confidence == 0.5
        else f"upper bound at {settings.reference_confidence:.0%} confidence"
    )
    return Rule(
        "reference accuracy",
        bound <= settings.margin + 1e-12,  # 3 of 300 is 1 %, in floats too
        bound,
        settings.margin,
        f"reference accuracy lost ({kind}): {100 * bound:.2f} points, at most "
        f"{100 * settings.margin:g} allowed ({found.fixed} fixed, {found.broken} broken of "
        f"{found.samples}; upper bound at 95 % confidence {100 * strict:.2f})",
    )


def _class_rule(before: Predictions, after: Predictions, settings: RepairSettings) -> Rule:
    """No class of the reference data loses much."""
    worst, worst_class, judged = 0.0, "none", 0
    for label in before.targets.unique().tolist():
        of_class = before.targets == label
        if int(of_class.sum()) < settings.min_class:
            continue
        judged += 1
        lost = float((before.right[of_class].double() - after.right[of_class].double()).mean())
        if lost > worst:
            worst, worst_class = lost, str(label)
    return Rule(
        "every class",
        worst <= settings.class_margin + 1e-12,
        worst,
        settings.class_margin,
        f"largest loss of a class of the reference data: {100 * worst:.1f} points (class "
        f"{worst_class}; {judged} classes with {settings.min_class} samples or more judged), at "
        f"most {100 * settings.class_margin:g} allowed",
    )


def broken_per_fixed(found: Comparison) -> float:
    """Newly broken samples for each one that is fixed.

    Returns:
        The ratio; infinite where samples are broken and none is fixed.
    """
    if found.fixed:
        return found.broken / found.fixed
    return math.inf if found.broken else 0.0


def _broken_rule(found: Comparison, bound: float) -> Rule:
    """Few new samples turn wrong."""
    ratio = broken_per_fixed(found)
    return Rule(
        "broken new samples",
        ratio <= bound,
        ratio,
        bound,
        f"{found.broken} new samples turned wrong and {found.fixed} right: {ratio:.2f} broken per "
        f"fixed one, at most {bound:g} allowed",
    )


def _broken_reference_rule(before: Predictions, after: Predictions, bound: float) -> Rule:
    """Few right reference samples turn wrong, even where as many others turn right."""
    broken, right = int((before.right & ~after.right).sum()), int(before.right.sum())
    share = broken / right if right else 0.0
    return Rule(
        "broken reference samples",
        share <= bound,
        share,
        bound,
        f"{broken} of {right} right reference samples turned wrong: {100 * share:.1f} %, at most "
        f"{100 * bound:g} % allowed",
    )
