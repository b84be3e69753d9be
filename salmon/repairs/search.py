"""Search on the guard splits: ranking, number of filters, step and rate.

Every trial is one forward over both guard splits. The winner is the trial with the largest gain on
the new data whose loss on the reference data lies within the margin.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from salmon.repairs.accept import broken_per_fixed, compare, loss_bound
from salmon.repairs.edit import Directions, Edit, edited
from salmon.repairs.evaluate import Predictions, predict
from salmon.repairs.plans import Plan, prefixes
from salmon.repairs.samples import Samples
from salmon.repairs.settings import RepairSettings


@dataclass(frozen=True, slots=True)
class Trial:
    """One edit that was tried, and what it did on the guard splits."""

    ranking: str
    filters: int
    step: str  # "normalised", "plain" or "prune"
    rate: float  # 0 of "prune"
    gain: float  # accuracy won on the new data
    lost: float  # accuracy lost on the reference data
    fixed: int  # new samples
    broken: int
    relative_change: float  # largest of a filter
    allowed: bool  # within the margin and the caps on broken samples and relative change


@dataclass(frozen=True, slots=True, eq=False)
class Guard:
    """The guard splits with the predictions of the original network."""

    new: Samples
    reference: Samples
    new_before: Predictions
    reference_before: Predictions


def search(
    model: nn.Module,
    plans: Sequence[Plan],
    directions: Mapping[str, Directions],
    guard: Guard,
    settings: RepairSettings,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> list[Trial]:
    """Try every combination; a rate is not raised further once it loses twice the margin.

    Args:
        model: The network; as before when this returns.
        progress: Gets the numbers of finished and of all combinations of plan, prefix and step.
    """
    lines = [
        (plan, filters, step)
        for plan in plans
        for filters in prefixes(plan, settings.shares)
        for step in settings.steps
    ]
    trials = []
    for number, (plan, filters, step) in enumerate(lines):
        for rate in sorted(settings.rates_of(step)):
            edit = directions[plan.ranking].edit(filters, step, rate)
            trials.append(_trial(model, plan, step, rate, edit, guard, settings, batch_size))
            # Larger steps lose more, so that the rest of this line cannot win.
            if trials[-1].lost > 2 * max(settings.margin, 0.01):
                break
        progress(number + 1, len(lines))
    return trials


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The winner.

    Returns:
        The allowed trial with the largest gain, then the smallest loss, then the fewest filters,
        then the smallest change; None where none gains.
    """
    winners = [trial for trial in trials if trial.allowed and trial.gain > 0]
    return min(
        winners,
        key=lambda t: (-t.gain, t.lost, t.filters, t.relative_change),
        default=None,
    )


def _trial(
    model: nn.Module,
    plan: Plan,
    step: str,
    rate: float,
    edit: Edit,
    guard: Guard,
    settings: RepairSettings,
    batch_size: int,
) -> Trial:
    """Try one edit."""
    with edited(model, edit):
        new = compare(guard.new_before, predict(model, guard.new, batch_size))
        reference = compare(guard.reference_before, predict(model, guard.reference, batch_size))
    bound = loss_bound(
        reference.fixed, reference.broken, reference.samples, settings.reference_confidence
    )
    change = edit.relative_change
    return Trial(
        ranking=plan.ranking,
        filters=edit.filters,
        step=step,
        rate=rate,
        gain=new.gain,
        lost=-reference.gain,
        fixed=new.fixed,
        broken=new.broken,
        relative_change=change,
        allowed=bound <= settings.margin + 1e-12
        and broken_per_fixed(new) <= settings.max_broken
        and change <= settings.max_relative_change
        and edit.finite,
    )
