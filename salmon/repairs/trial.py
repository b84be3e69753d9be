"""One trial on the guard splits: a proposed edit, and what it does there."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from salmon.repairs.edit import Edit, edited, state_of
from salmon.repairs.evidence import Part
from salmon.repairs.judge import safety_rules
from salmon.repairs.predictions import Objective, Predictions, compare
from salmon.repairs.settings import RepairSettings

FIRST_LOOK = 1 / 3
"""Share of the guard splits after which a hopeless trial ends."""

HOPELESS = 3.0
"""Standard errors by which it has to lie behind there."""


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A way to change a network."""

    remedy: str  # such as "tune"
    order: str  # of the filters, such as "pot"; "all" where there is no choice among them
    how: str  # in a few words, such as "normalised 0.03"
    edit: Edit


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A proposal that was tried, and what it did on the guard splits."""

    remedy: str
    order: str
    how: str
    filters: int
    weights: int
    relative_change: float  # largest of a filter
    samples: int  # of both sets; fewer than all of them where the trial was given up
    gain: float  # accuracy won on the new data
    lost: float  # accuracy lost on the reference data
    fixed: int  # new samples
    broken: int
    failed: str  # the first rule that the edit breaks here, or nothing
    complete: bool  # looked at every sample
    near: bool = True  # gains about as much as the best of its remedy so far, or there is none yet

    @property
    def allowed(self) -> bool:
        """Whether it breaks no rule."""
        return self.complete and not self.failed

    @property
    def group(self) -> tuple[str, str, int]:
        """Remedy, order and number of filters: of such trials the best one stays."""
        return self.remedy, self.order, self.filters


Proposals = Generator[Proposal, Trial, None]
"""What a remedy proposes; it gets the trial of each proposal before it makes the next one."""


def rising(proposals: Iterable[Proposal], margin: float) -> Generator[Proposal, Trial, bool]:
    """Propose the same change in rising sizes, until one is given up or loses twice the margin.

    Returns:
        Whether one of them gained about as much as the best of its remedy.
    """
    near = False
    for proposal in proposals:
        trial = yield proposal
        near = near or trial.near
        if not trial.complete or trial.lost > 2 * margin:
            break
    return near


class Guard:
    """Tries proposals on the guard splits of the new and of the reference data."""

    def __init__(
        self,
        model: nn.Module,
        new: Part,
        reference: Part,
        settings: RepairSettings,
        batch_size: int,
        objective: Objective | None = None,
    ) -> None:
        """Shuffle both splits, so that their first parts are like the whole."""
        self._model, self._settings, self._batch_size = model, settings, batch_size
        self._objective = objective
        self._state = state_of(model)
        random = torch.Generator().manual_seed(settings.seed)
        looks = []
        for part in (new, reference):
            order = torch.randperm(len(part.samples), generator=random)
            first = max(1, round(FIRST_LOOK * len(order)))
            looks.append([part.take(rows) for rows in (order[:first], order[first:])])
        whole = all(len(second.samples) for _, second in looks)
        self._looks = list(zip(*looks, strict=True)) if whole else [(new, reference)]

    def try_out(self, proposal: Proposal, rival: Tensor | None) -> tuple[Trial, Tensor]:
        """Try a proposal.

        Args:
            rival: ``[n]`` bool: which new samples are right after the best trial of its group so
                far; who lies far behind it after a part of the split is given up.

        Returns:
            The trial, and which of the new samples that it looked at are right.
        """
        edit, settings = proposal.edit, self._settings
        pairs: list[list[tuple[Predictions, Predictions]]] = [[], []]
        with edited(self._model, edit):
            for look in self._looks:
                for found, part in zip(pairs, look, strict=True):
                    found.append(
                        part.before_and_now(self._model, self._batch_size, self._objective)
                    )
                if len(pairs[0]) < len(self._looks) and self._hopeless(pairs, rival):
                    break
        new, reference = (_joined(found) for found in pairs)
        on_new, on_reference = compare(*new), compare(*reference)
        complete = len(pairs[0]) == len(self._looks)
        change = edit.relative_change(self._state)
        rules = safety_rules(edit, new, reference, settings) if complete else ()
        trial = Trial(
            remedy=proposal.remedy,
            order=proposal.order,
            how=proposal.how,
            filters=edit.filters,
            weights=edit.weights,
            relative_change=change,
            samples=on_new.samples + on_reference.samples,
            gain=on_new.gain,
            lost=-on_reference.gain,
            fixed=on_new.fixed,
            broken=on_new.broken,
            failed=next((rule.name for rule in rules if not rule.passed), ""),
            complete=complete,
        )
        return trial, new[1].right

    def _hopeless(
        self, pairs: list[list[tuple[Predictions, Predictions]]], rival: Tensor | None
    ) -> bool:
        """Whether a trial loses clearly more than allowed, or lies clearly behind a rival."""
        new, reference = (_joined(found) for found in pairs)
        if _beyond(reference[0].right, reference[1].right, self._settings.margin):
            return True
        return rival is not None and _beyond(rival[: len(new[1].right)], new[1].right, 0.0)


def _beyond(before: Tensor, after: Tensor, margin: float) -> bool:
    """Whether more than a share is lost, by a paired comparison and some standard errors."""
    mean, error = paired_difference(before, after)
    return mean - HOPELESS * error > margin


def paired_difference(first: Tensor, second: Tensor) -> tuple[float, float]:
    """How much more often ``[N]`` bool are true in the first than in the second; standard error."""
    difference = first.double() - second.double()
    return float(difference.mean()), float(difference.std(correction=0)) / len(difference) ** 0.5


def _joined(pairs: list[tuple[Predictions, Predictions]]) -> tuple[Predictions, Predictions]:
    """Before and after, of all samples looked at."""
    before, after = (reduce(Predictions.joined, side) for side in zip(*pairs, strict=True))
    return before, after
