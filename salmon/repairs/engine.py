"""The repair from end to end: split, rank, search on guard, judge on accept.

The splits: *repair* gives ranking and gradient, *guard* the search, *accept* the verdict. Each
sample is in one of them.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from salmon.errors import InputError
from salmon.filters import FilterIndex
from salmon.gpd import TailFit
from salmon.repairs.edit import Edit, edited
from salmon.repairs.evidence import Evidence, Part, split_set
from salmon.repairs.judge import Verdict, judge
from salmon.repairs.patch import Patch
from salmon.repairs.remedies import proposals
from salmon.repairs.samples import Samples
from salmon.repairs.search import Trial, best_trial, rival_trials, search
from salmon.repairs.settings import RepairSettings

ACCEPTED = "accepted"
NOT_ACCEPTED = "not accepted"
NOTHING_TO_REPAIR = "nothing to repair"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """Everything a repair found; ``patch`` only where it was accepted."""

    status: str  # "accepted", "not accepted" or "nothing to repair"
    reason: str  # in a sentence
    settings: RepairSettings
    sizes: dict[str, dict[str, int]]  # "new" and "reference": samples by part
    shared: bool  # the new data served as reference, too
    given_fit: bool  # the tails were given, not fitted here
    before: dict[str, float]  # accuracy of the original network on all samples
    filters: int  # of the network
    weights: int  # parameters of the network
    misclassified: int  # new samples in the repair split
    trials: tuple[Trial, ...] = ()
    verdict: Verdict | None = None  # of the winner
    rivals: tuple[Verdict, ...] = ()  # others with the winner's number of filters
    patch: Patch | None = None


def repair(
    model: nn.Module,
    new: Samples,
    reference: Samples | None = None,
    settings: RepairSettings | None = None,
    *,
    index: FilterIndex | None = None,
    fit: TailFit | None = None,
    batch_size: int = 64,
    progress: Callable[[str, int, int], None] | None = None,
) -> Outcome:
    """Look for a one-step repair of what a network gets wrong, and judge it on other data.

    Args:
        model: The network; every bit of it is as before when this returns.
        new: Labelled samples, some of which it gets wrong.
        reference: Samples that it serves already and must go on serving; None takes ``new``.
        settings: All settings; None takes the defaults.
        index: The filters; None takes all convolutions.
        fit: Tails of the reference data; None fits them to the repair split of ``reference``.
        batch_size: Samples at a time.
        progress: Gets the name of a stage and the numbers of finished and of all its steps.

    Raises:
        InputError: If the data are too few, or do not fit the network or the settings.
        UnsupportedError: If the network cannot be measured exactly.
    """
    settings = settings or RepairSettings()
    say = progress or (lambda _stage, _done, _all: None)
    index = index or FilterIndex.from_model(model)
    if fit is not None and fit.threshold.numel() != len(index):
        raise InputError(
            f"fit has {fit.threshold.numel()} filters but this network has {len(index)}; use the "
            "network and the index it was made with."
        )
    on_new = split_set(model, new, settings, "new", batch_size)
    on_reference = on_new
    if reference is not None:
        on_reference = split_set(model, reference, settings, "reference", batch_size)
    evidence = Evidence(
        model=model, index=index, given_fit=fit,
        new=on_new["repair"], reference=on_reference["repair"],
        settings=settings, batch_size=batch_size, say=say,
    )  # fmt: skip
    sets = {"new": on_new, "reference": on_reference}
    outcome = Outcome(
        status=NOT_ACCEPTED,
        reason="no trial gained on the guard split of the new data within the margin",
        settings=settings,
        sizes={name: {p: len(part.samples) for p, part in s.items()} for name, s in sets.items()},
        shared=reference is None,
        given_fit=fit is not None,
        before={name: _accuracy(parts) for name, parts in sets.items()},
        filters=len(index),
        weights=sum(parameter.numel() for parameter in model.parameters()),
        misclassified=len(evidence.mistakes),
    )
    if outcome.before["new"] == 1:
        reason = "no new sample is misclassified"
        return replace(outcome, status=NOTHING_TO_REPAIR, reason=reason)
    if outcome.misclassified == 0:
        reason = "no sample of the repair split is misclassified; there is nothing to learn from"
        return replace(outcome, reason=reason)
    guard = (on_new["guard"], on_reference["guard"])
    found = search(model, list(proposals(evidence)), guard, settings, batch_size, say)
    proposal_of, trials = dict(found), tuple(trial for trial, _ in found)
    winner = best_trial(trials)
    if winner is None:
        return replace(outcome, trials=trials)

    def judged(trial: Trial) -> tuple[Verdict, Edit]:
        edit = proposal_of[trial].edit(trial.rate)
        with edited(model, edit):
            pair = on_new["accept"].before_and_now(model, batch_size)
            reference_pair = on_reference["accept"].before_and_now(model, batch_size)
        return judge(trial, edit, pair, reference_pair, settings), edit

    verdict, edit = judged(winner)
    failed = [rule.name for rule in verdict.rules if not rule.passed]
    patch = None
    if verdict.accepted:
        info = {
            "settings": asdict(settings),
            "trial": asdict(winner),
            "new": asdict(verdict.new),
            "reference": asdict(verdict.reference),
            "data": {
                "new": new.fingerprint(),
                "reference": None if reference is None else reference.fingerprint(),
            },
            "versions": {"torch": str(torch.__version__)},
        }
        patch = Patch.make(model, edit, info)
    return replace(
        outcome,
        status=ACCEPTED if verdict.accepted else NOT_ACCEPTED,
        reason="every rule passed" if verdict.accepted else f"failed: {', '.join(failed)}",
        trials=trials,
        verdict=verdict,
        rivals=tuple(judged(trial)[0] for trial in rival_trials(trials, winner)),
        patch=patch,
    )


def _accuracy(parts: dict[str, Part]) -> float:
    """Of the original network on all samples of a set."""
    return float(torch.cat([part.before.right for part in parts.values()]).double().mean())
