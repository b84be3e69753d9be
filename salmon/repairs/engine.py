"""The repair from end to end: split, rank, search on guard, judge on accept.

The splits: *repair* gives ranking and gradient, *guard* the search, *accept* the verdict. Each
sample is in one of them.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from salmon.errors import InputError
from salmon.filters import FilterIndex
from salmon.forward import eval_mode
from salmon.gpd import MIN_COUNT, TailFit
from salmon.repairs.accept import Comparison, Rule, compare, judge
from salmon.repairs.edit import Directions, Edit, edited
from salmon.repairs.evaluate import Predictions, predict, to_device
from salmon.repairs.gradient import mean_gradients, without_conflict
from salmon.repairs.patch import Patch
from salmon.repairs.plans import LAST_LINEAR, Plan, last_linear_index, make_plan
from salmon.repairs.samples import PARTS, Samples, check_sizes
from salmon.repairs.search import Guard, Trial, best_trial, search
from salmon.repairs.settings import RepairSettings
from salmon.saliency import are_probabilities, filter_saliency
from salmon.tails import Tails, fit_tails

ACCEPTED = "accepted"
NOT_ACCEPTED = "not accepted"
NOTHING_TO_REPAIR = "nothing to repair"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verdict:
    """A trial on the accept splits."""

    trial: Trial
    new: Comparison
    reference: Comparison
    rules: tuple[Rule, ...]
    parameters: int  # touched weights

    @property
    def accepted(self) -> bool:
        """Whether every rule passed."""
        return all(rule.passed for rule in self.rules)


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
    trials: tuple[Trial, ...]
    verdict: Verdict | None  # of the winner
    rivals: tuple[Verdict, ...]  # best trial of every ranking, and others with the winner's budget
    patch: Patch | None


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """One set, split, with what the original network says of it."""

    parts: dict[str, Samples]
    before: dict[str, Predictions]

    @property
    def accuracy(self) -> float:
        """Of the original network on all samples."""
        return float(torch.cat([self.before[part].right for part in PARTS]).double().mean())


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
    shared = reference is None
    on_new = _split(model, new, settings, "new", batch_size)
    on_reference = on_new if reference is None else _split(
        model, reference, settings, "reference", batch_size
    )  # fmt: skip
    wrong = on_new.parts["repair"].take((~on_new.before["repair"].right).nonzero().squeeze(1))
    found: dict[str, Any] = {
        "settings": settings,
        "sizes": {
            name: {part: len(data.parts[part]) for part in PARTS}
            for name, data in (("new", on_new), ("reference", on_reference))
        },
        "shared": shared,
        "given_fit": fit is not None,
        "before": {"new": on_new.accuracy, "reference": on_reference.accuracy},
        "filters": len(index),
        "weights": sum(parameter.numel() for parameter in model.parameters()),
        "misclassified": len(wrong),
    }
    if len(wrong) == 0:
        every = torch.cat([on_new.before[part].right for part in PARTS])
        clean = bool(every.all())
        return Outcome(
            status=NOTHING_TO_REPAIR if clean else NOT_ACCEPTED,
            reason="no new sample is misclassified" if clean
            else "no sample of the repair split is misclassified; there is nothing to learn from",
            trials=(), verdict=None, rivals=(), patch=None, **found,
        )  # fmt: skip
    fit = fit or _fit(model, on_reference.parts["repair"], index, settings, batch_size, say)
    plans, directions = _prepare(
        model, wrong, on_new, on_reference, index, fit, settings, batch_size, say
    )
    guard = Guard(
        on_new.parts["guard"], on_reference.parts["guard"],
        on_new.before["guard"], on_reference.before["guard"],
    )  # fmt: skip
    trials = search(
        model, plans, directions, guard, settings, batch_size,
        lambda done, of: say("search", done, of),
    )  # fmt: skip

    def verdict_of(trial: Trial) -> tuple[Verdict, Edit]:
        plan = next(plan for plan in plans if plan.ranking == trial.ranking)
        filters = plan.order[: trial.filters]
        edit = directions[trial.ranking].edit(filters, trial.step, trial.rate)
        return _verdict(model, trial, edit, on_new, on_reference, settings, batch_size), edit

    winner = best_trial(trials)
    if winner is None:
        return Outcome(
            status=NOT_ACCEPTED,
            reason="no trial gained on the guard split of the new data within the margin",
            trials=tuple(trials), verdict=None, rivals=(), patch=None, **found,
        )  # fmt: skip
    verdict, edit = verdict_of(winner)
    rivals = [verdict_of(trial)[0] for trial in _rivals(trials, winner)]
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
    return Outcome(
        status=ACCEPTED if verdict.accepted else NOT_ACCEPTED,
        reason="every rule passed" if verdict.accepted else f"failed: {', '.join(failed)}",
        trials=tuple(trials), verdict=verdict, rivals=tuple(rivals), patch=patch, **found,
    )  # fmt: skip


def _split(
    model: nn.Module, samples: Samples, settings: RepairSettings, what: str, batch_size: int
) -> _Data:
    """Split a set and run the original network on it."""
    parts = samples.split(settings.split, settings.seed)
    check_sizes(parts, settings.min_split, what)
    before = {name: predict(model, part, batch_size) for name, part in parts.items()}
    if all(bool(are_probabilities(found.logits).all()) for found in before.values()):
        raise InputError(
            "the network gives probabilities where logits are needed, so that its gradients would "
            "be those of a softmax of a softmax; let forward return logits."
        )
    return _Data(parts, before)


def _fit(
    model: nn.Module, samples: Samples, index: FilterIndex, settings: RepairSettings,
    batch_size: int, say: Callable[[str, int, int], None],
) -> TailFit:  # fmt: skip
    """Fit the tails of reference samples."""
    tails = Tails(len(index))
    for profile in _profiles(model, samples, index, batch_size, "fit", say):
        tails.update(profile)
    fit = fit_tails(tails, settings.level)
    if "pot" in settings.rankings and not bool(fit.usable.any()):
        need = math.ceil(MIN_COUNT / (1 - settings.level) - 1e-9)  # 100 at level 0.9
        raise InputError(
            f"no filter could be fitted to {len(samples)} reference samples in the repair split; "
            f"at least about {need} are needed there. Bring more, or give fit=."
        )
    return fit


def _profiles(
    model: nn.Module, samples: Samples, index: FilterIndex, batch_size: int, stage: str,
    say: Callable[[str, int, int], None],
) -> list[Tensor]:  # fmt: skip
    """Saliency of samples, batch by batch."""
    found = []
    for batch in samples.batches(batch_size):
        inputs, targets = to_device(batch, model)
        with eval_mode(model):
            found.append(filter_saliency(model, inputs, targets, index).cpu())
        say(stage, min(len(found) * batch_size, len(samples)), len(samples))
    return found


def _prepare(
    model: nn.Module, wrong: Samples, on_new: _Data, on_reference: _Data, index: FilterIndex,
    fit: TailFit, settings: RepairSettings, batch_size: int, say: Callable[[str, int, int], None],
) -> tuple[list[Plan], dict[str, Directions]]:  # fmt: skip
    """Plans of all rankings, and for each the steps of its filters."""
    profile = torch.cat(_profiles(model, wrong, index, batch_size, "rank", say))
    indices = dict.fromkeys(settings.rankings, index)
    last = last_linear_index(model) if LAST_LINEAR in settings.rankings else None
    if last is not None:
        indices[LAST_LINEAR] = last
    plans, steps = [], {}
    names = sorted({layer.weight for own in indices.values() for layer in own.layers})
    followed = wrong if settings.gradient == "wrong" else on_new.parts["repair"]
    step = mean_gradients(model, followed, names, batch_size)
    keep = (
        mean_gradients(model, on_reference.parts["repair"], names, batch_size)
        if settings.keep_reference
        else None
    )
    for ranking, own in indices.items():
        if ranking == LAST_LINEAR and last is None:
            continue
        if own not in steps:
            steps[own] = Directions(
                model, own, step if keep is None else without_conflict(own, step, keep)
            )
        if ranking == LAST_LINEAR:
            plans.append(Plan(ranking, own, torch.arange(len(own))))
        else:
            plans.append(make_plan(ranking, own, profile, fit, seed=settings.seed))
    return plans, {plan.ranking: steps[plan.index] for plan in plans}


def _verdict(
    model: nn.Module, trial: Trial, edit: Edit, on_new: _Data, on_reference: _Data,
    settings: RepairSettings, batch_size: int,
) -> Verdict:  # fmt: skip
    """Judge an edit on the accept splits."""
    with edited(model, edit):
        after = [predict(model, d.parts["accept"], batch_size) for d in (on_new, on_reference)]
    new = (on_new.before["accept"], after[0])
    reference = (on_reference.before["accept"], after[1])
    return Verdict(
        trial=trial,
        new=compare(*new),
        reference=compare(*reference),
        rules=tuple(judge(edit, new, reference, settings)),
        parameters=edit.parameters,
    )


def _rivals(trials: list[Trial], winner: Trial) -> list[Trial]:
    """Of every other ranking the best trial with the winner's number of filters."""
    chosen = []
    for ranking in dict.fromkeys(trial.ranking for trial in trials):
        if ranking == winner.ranking:
            continue
        own = [trial for trial in trials if trial.ranking == ranking]
        equal = [trial for trial in own if trial.filters == winner.filters] or own
        allowed = [trial for trial in equal if trial.allowed]
        chosen.append(
            max(allowed, key=lambda t: (t.gain, -t.lost))
            if allowed
            else min(equal, key=lambda t: (t.lost, -t.gain))
        )
    return chosen
