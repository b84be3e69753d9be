"""Search on the guard splits: what the remedies propose, and which of it is taken."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from salmon.repairs.edit import Edit
from salmon.repairs.trial import Guard, Proposals, Trial, paired_difference


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """The best trial of a group so far, with what it takes to use it."""

    trial: Trial
    edit: Edit
    right: Tensor  # [N] bool: of the new samples of the guard split


@dataclass(slots=True)
class Search:
    """Trials in their order, and the best one of every group (:attr:`Trial.group`)."""

    guard: Guard
    trials: list[Trial] = field(default_factory=list)
    best: dict[tuple[str, str, int], Candidate] = field(default_factory=dict)

    def run(self, proposals: Proposals, say: Callable[[], None]) -> None:
        """Try all that a remedy proposes; it is told how each fared.

        Args:
            say: Called after every trial.
        """
        trial = None
        while True:
            try:
                proposal = proposals.send(trial)  # type: ignore[arg-type]  # None starts it
            except StopIteration:
                return
            groups = [c for c in self.best.values() if c.trial.remedy == proposal.remedy]
            own = [c for c in groups if c.trial.order == proposal.order and c.trial.allowed]
            leader = max(own, key=lambda c: c.trial.gain, default=None)
            trial, right = self.guard.try_out(proposal, None if leader is None else leader.right)
            if leader is not None and trial.gain < leader.trial.gain:
                near = trial.allowed and _is_near(right, leader.right)
                trial = replace(trial, near=near)
            self.trials.append(trial)
            known = self.best.get(trial.group)
            if known is None or _merit(trial) > _merit(known.trial):
                self.best[trial.group] = Candidate(trial, proposal.edit, right)
            say()

    def winner(self, eligible: Callable[[Trial], bool]) -> Candidate | None:
        """Of what may win and gains, the edit of fewest weights that is about as good as the best.

        That is: whose gain on the new data is within one standard error, of the paired
        difference, of the largest one. So a search of many trials does not take the luckiest.

        Returns:
            None where none is allowed, or none gains.
        """
        found = [
            c for c in self.best.values()
            if c.trial.allowed and c.trial.gain > 0 and eligible(c.trial)
        ]  # fmt: skip
        if not found:
            return None
        leader = max(found, key=lambda c: _merit(c.trial))
        near = [c for c in found if _is_near(c.right, leader.right)]
        return min(near, key=lambda c: (c.trial.weights, -c.trial.gain, c.trial.lost))

    def best_by_remedy(self) -> list[Candidate]:
        """The best of each remedy with each order, allowed or not, in the order they ran."""
        found: dict[tuple[str, str], Candidate] = {}
        for candidate in self.best.values():
            family = candidate.trial.remedy, candidate.trial.order
            known = found.get(family)
            if known is None or _merit(candidate.trial) > _merit(known.trial):
                found[family] = candidate
        return list(found.values())


def _merit(trial: Trial) -> tuple[bool, float, float, float]:
    """Larger is better."""
    if not trial.allowed:  # then the one that loses least
        return False, -trial.lost, trial.gain, 0.0
    return True, trial.gain, -trial.lost, -trial.relative_change


def _is_near(right: Tensor, best: Tensor) -> bool:
    behind, error = paired_difference(best, right)
    return behind <= error
