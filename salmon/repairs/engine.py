"""The repair from end to end: split, gather evidence, search on guard, judge on accept.

The splits: *repair* gives what remedies are made from, *guard* the search, *accept* the verdict.
Each sample is in one of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import torch
from torch import nn

from salmon.diagnosis import PassSettings
from salmon.errors import InputError
from salmon.filters import FilterIndex
from salmon.gpd import TailFit
from salmon.repairs.changes import LayerChange, SetChange, layer_changes, set_change
from salmon.repairs.edit import edited, state_of
from salmon.repairs.evidence import Evidence, Part, split_set
from salmon.repairs.judge import Verdict, judge
from salmon.repairs.patch import Patch
from salmon.repairs.predictions import Predictions, bound_of, objective_of
from salmon.repairs.remedies import ALL, ON_FIRST_FILTERS, ON_MORE, combine, step, tune
from salmon.repairs.samples import Samples
from salmon.repairs.search import Candidate, Search
from salmon.repairs.settings import RepairSettings
from salmon.repairs.trial import Guard, Proposals, Trial
from salmon.saliency import Loss
from salmon.tasks import AnyTask

ACCEPTED = "accepted"
REJECTED = "rejected"
NOTHING_TO_REPAIR = "nothing"

RANDOM_DRAWS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A trial and its verdict on the accept splits."""

    trial: Trial
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """Everything a repair found; ``patch`` only where it was accepted."""

    status: str  # "accepted", "rejected" or "nothing" (to repair)
    reason: str  # in a sentence
    settings: RepairSettings
    sizes: dict[str, dict[str, int]]  # "new" and "reference": samples by part
    shared: bool  # the new data served as reference, too
    given_fit: bool  # the tails were given, not fitted here
    before: dict[str, float]  # accuracy of the original network on all samples
    filters: int  # of the network
    weights: int  # numbers in its state, statistics among them
    mistake: str  # what one is, in words
    mistakes: int  # new samples in the repair split
    trials: tuple[Trial, ...] = ()
    winner: Judged | None = None
    layers: tuple[LayerChange, ...] = ()  # what the winner changes
    sets: dict[str, SetChange] = field(default_factory=dict)  # what it does to the accept splits
    remedies: tuple[Judged, ...] = ()  # the best of every other remedy, at its own size
    orders: tuple[Judged, ...] = ()  # the winner's remedy and size under other orders
    patch: Patch | None = None


def repair(
    model: nn.Module,
    new: Samples,
    reference: Samples | None = None,
    settings: RepairSettings | None = None,
    *,
    task: AnyTask | str | None = None,
    loss: nn.Module | Loss | None = None,
    index: FilterIndex | None = None,
    fit: TailFit | None = None,
    batch_size: int = 64,
    progress: Callable[[str, int, int], None] | None = None,
) -> Outcome:
    """Look for a repair of what a network gets wrong, and judge it on other data.

    Args:
        model: The network; every bit of it is as before when this returns.
        new: Labelled samples, some of which it gets wrong.
        reference: Samples that it serves already and must go on serving; None takes ``new``.
        settings: All settings; None takes the defaults.
        task: What a mistake is, as in :class:`~salmon.PassSettings`; None tells by some of ``new``.
            Where a task takes the worst samples of a pass, the bound is that of the reference
            samples by the original network.
        loss: What is measured and lowered, as in :class:`~salmon.PassSettings`.
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
    for what, given in (("new", new), ("reference", reference)):
        if given is not None and len(given) == 0:
            raise InputError(f"there is no {what} sample; at least a few hundred are needed.")
    objective = objective_of(model, new, PassSettings(task=task, loss=loss), batch_size)
    on_new = split_set(model, new, settings, "new", batch_size, objective)
    on_reference = on_new
    if reference is not None:
        on_reference = split_set(model, reference, settings, "reference", batch_size, objective)
    if objective.task.worst is not None:
        before = [part.before for part in on_reference.values()]
        bound = bound_of(before, objective.task.worst)
        objective = replace(objective, bound=bound)
        on_new, on_reference = (
            {name: part.by(bound) for name, part in parts.items()}
            for parts in (on_new, on_reference)
        )
    evidence = Evidence(
        model=model, objective=objective, index=index, given_fit=fit,
        new=_usable(on_new["repair"], "new"),
        reference=_usable(on_reference["repair"], "reference"),
        settings=settings, batch_size=batch_size, say=say,
    )  # fmt: skip
    sets = {"new": on_new, "reference": on_reference}
    outcome = Outcome(
        status=REJECTED,
        reason=f"nothing that may win (prefer={settings.prefer!r}) gained on the guard split of "
        "the new data within the rules",
        settings=settings,
        sizes={name: {p: len(part.samples) for p, part in s.items()} for name, s in sets.items()},
        shared=reference is None,
        given_fit=fit is not None,
        before={name: _accuracy(parts) for name, parts in sets.items()},
        filters=len(index),
        weights=sum(value.numel() for value in state_of(model).values()),
        mistake=objective.task.rule(objective.bound),
        mistakes=len(evidence.mistakes),
    )
    if not any(bool((~p.before.right & p.before.known).any()) for p in on_new.values()):
        reason = "no new sample is a mistake"
        return replace(outcome, status=NOTHING_TO_REPAIR, reason=reason)
    if outcome.mistakes == 0:
        reason = "no sample of the repair split is a mistake; there is nothing to learn from"
        return replace(outcome, reason=reason)
    guard = Guard(model, on_new["guard"], on_reference["guard"], settings, batch_size, objective)
    search = _searched(evidence, Search(guard))
    outcome = replace(outcome, trials=tuple(search.trials))
    winner = search.winner(lambda trial: settings.lets_win(trial.remedy, trial.order))
    others = [found for found in search.best_by_remedy() if found is not winner]
    if winner is None:
        return replace(outcome, remedies=tuple(_judged(evidence, sets, each) for each in others))
    pairs = _on_accept(evidence, sets, winner)
    verdict = judge(winner.edit, pairs["new"], pairs["reference"], settings)
    orders = _under_other_orders(evidence, guard, winner) if settings.rivals else []
    return replace(
        outcome,
        status=ACCEPTED if verdict.accepted else REJECTED,
        reason=_reason(verdict),
        winner=Judged(trial=winner.trial, verdict=verdict),
        layers=layer_changes(winner.edit, evidence.state),
        sets={
            name: set_change(*pairs[name], parts["accept"].samples.ids)
            for name, parts in sets.items()
        },
        remedies=tuple(_judged(evidence, sets, each) for each in others),
        orders=tuple(_judged(evidence, sets, each) for each in orders),
        patch=_patch(evidence, winner, verdict, new, reference) if verdict.accepted else None,
    )


def _usable(part: Part, what: str) -> Part:
    """Without the samples for which the network gives no loss, such as those with NaN."""
    rows = part.before.known.nonzero().squeeze(1)
    if not len(rows):
        raise InputError(
            f"the network gives no loss for any of the {len(part.samples)} {what} samples in the "
            "repair split, only NaN; look at the inputs and the weights."
        )
    return part.take(rows)


def _reason(verdict: Verdict) -> str:
    failed = [rule.name for rule in verdict.rules if not rule.passed]
    return f"failed: {', '.join(failed)}" if failed else "every rule passed"


def _patch(
    evidence: Evidence,
    winner: Candidate,
    verdict: Verdict,
    new: Samples,
    reference: Samples | None,
) -> Patch:
    """The winner, and what it was made with."""
    info = {
        "settings": asdict(evidence.settings),
        "trial": asdict(winner.trial),
        "new": asdict(verdict.new),
        "reference": asdict(verdict.reference),
        "data": {
            "new": new.fingerprint(),
            "reference": None if reference is None else reference.fingerprint(),
        },
        "versions": {"torch": str(torch.__version__)},
    }
    return Patch.make(evidence.model, winner.edit, info)


def _searched(evidence: Evidence, search: Search) -> Search:
    """Run the remedies, and then mixtures of the two best ones."""
    settings = evidence.settings
    plan = list(_plan(evidence))
    for done, (name, proposals) in enumerate(plan):
        search.run(proposals, partial(evidence.say, f"search: {name}", done, len(plan)))
    best = [
        c
        for c in search.best_by_remedy()
        if c.trial.allowed and settings.lets_win(*c.trial.group[:2])
    ]
    best.sort(key=lambda c: -c.trial.gain)
    names = list(dict.fromkeys(candidate.trial.remedy for candidate in best))
    if len(names) > 1:
        pair = [next(c for c in best if c.trial.remedy == name) for name in names[:2]]
        search.run(combine(evidence, pair), partial(evidence.say, "search: both", 1, 1))
    return search


def _plan(evidence: Evidence) -> Iterator[tuple[str, Proposals]]:
    """Every remedy that is asked for, under a name to be shown."""
    settings = evidence.settings
    if settings.prefer == "step":
        yield "step", step(evidence, settings.order, evidence.shares)
        return
    for name in dict.fromkeys(settings.remedies):
        if name in ON_FIRST_FILTERS:
            yield name, ON_FIRST_FILTERS[name](evidence, settings.order, evidence.shares)
    for name, remedy in ON_MORE.items():
        if name in settings.remedies:
            yield name, remedy(evidence)
    if "tune" in settings.remedies:
        yield "tune all", tune(evidence, ALL, (1.0,))


def _under_other_orders(evidence: Evidence, guard: Guard, winner: Candidate) -> list[Candidate]:
    """The best of the winner's remedy on as many filters that other orders put first."""
    settings, trial = evidence.settings, winner.trial
    remedy = ON_FIRST_FILTERS.get(trial.remedy.split(" + ")[0])
    if remedy is None or trial.order == ALL:
        return []
    names = ["pot", "spread:pot", "pot-ml", "zscore", "magnitude", "gradient", "group"]
    names += [f"random:{draw}" for draw in range(1, RANDOM_DRAWS + 1)]
    names = [name for name in names if name != settings.order]
    found = []
    for done, name in enumerate(names):
        search = Search(guard)
        proposals = remedy(evidence, name, (trial.filters / len(evidence.index),))
        search.run(proposals, partial(evidence.say, f"rivals: {name}", done, len(names)))
        found += search.best_by_remedy()
    return found


def _on_accept(
    evidence: Evidence, sets: dict[str, dict[str, Part]], found: Candidate
) -> dict[str, tuple[Predictions, Predictions]]:
    """What the network said of the accept splits, and what it says with an edit."""
    with edited(evidence.model, found.edit):
        return {
            name: parts["accept"].before_and_now(
                evidence.model, evidence.batch_size, evidence.objective
            )
            for name, parts in sets.items()
        }


def _judged(evidence: Evidence, sets: dict[str, dict[str, Part]], found: Candidate) -> Judged:
    """A candidate that is not the winner; nothing is chosen by its verdict."""
    pairs = _on_accept(evidence, sets, found)
    verdict = judge(found.edit, pairs["new"], pairs["reference"], evidence.settings)
    return Judged(trial=found.trial, verdict=verdict)


def _accuracy(parts: dict[str, Part]) -> float:
    """Of the original network on all samples of a set."""
    return float(torch.cat([part.before.right for part in parts.values()]).double().mean())
