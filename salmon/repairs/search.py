"""Search on the guard splits: which proposal, at which rate.

Every trial is one forward over both guard splits. The winner is the trial with the largest gain on
the new data whose loss on the reference data lies within the margin.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from salmon.repairs.edit import edited
from salmon.repairs.evidence import Part
from salmon.repairs.predictions import compare
from salmon.repairs.remedies import Proposal
from salmon.repairs.settings import RepairSettings

ROUNDING = 1e-12  # 3 of 300 is 1 %, in floats too


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


def search(
    model: nn.Module,
    proposals: Sequence[Proposal],
    guard: tuple[Part, Part],
    settings: RepairSettings,
    batch_size: int,
    say: Callable[[str, int, int], None],
) -> list[tuple[Trial, Proposal]]:
    """Try every proposal; a rate is not raised further once it loses twice the margin.

    Args:
        guard: Of the new and of the reference data.
        say: Gets ``"search"`` and the numbers of finished and of all proposals.
    """
    trials, confidence = [], settings.reference_confidence
    for number, proposal in enumerate(proposals):
        for rate in proposal.rates:
            edit = proposal.edit(rate)
            with edited(model, edit):
                new, reference = (
                    compare(*part.before_and_now(model, batch_size)) for part in guard
                )
            most_lost, change = reference.loss_bound(confidence), edit.relative_change
            trial = Trial(
                ranking=proposal.ranking,
                filters=proposal.filters,
                step=proposal.step,
                rate=rate,
                gain=new.gain,
                lost=-reference.gain,
                fixed=new.fixed,
                broken=new.broken,
                relative_change=change,
                allowed=most_lost <= settings.margin + ROUNDING
                and new.broken_per_fixed <= settings.max_broken
                and change <= settings.max_relative_change
                and edit.finite,
            )
            trials.append((trial, proposal))
            # Larger steps lose more, so that the rest of these rates cannot win.
            if trial.lost > 2 * max(settings.margin, 0.01):
                break
        say("search", number + 1, len(proposals))
    return trials


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The winner.

    Returns:
        The allowed trial with the largest gain, then the smallest loss, then the fewest filters,
        then the smallest change; None where none gains.
    """
    winners = [trial for trial in trials if trial.allowed and trial.gain > 0]
    return min(winners, key=lambda t: (-t.gain, t.lost, t.filters, t.relative_change), default=None)


def rival_trials(trials: Sequence[Trial], winner: Trial) -> list[Trial]:
    """Of every other ranking the best trial with the winner's number of filters."""
    rivals = []
    for ranking in dict.fromkeys(trial.ranking for trial in trials):
        if ranking == winner.ranking:
            continue
        own = [trial for trial in trials if trial.ranking == ranking]
        equal = [trial for trial in own if trial.filters == winner.filters] or own
        allowed = [trial for trial in equal if trial.allowed]
        rivals.append(
            min(allowed, key=lambda t: (-t.gain, t.lost))
            if allowed
            else min(equal, key=lambda t: (t.lost, -t.gain))
        )
    return rivals
