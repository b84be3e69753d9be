"""The comparison from end to end: predict twice, count, trace, take back, judge."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from salmon.comparison.blame import Blame, OwnBlame, blamed, own_blame, tails_of
from salmon.comparison.changed import (
    Reversal,
    Reverser,
    by_module,
    filter_changes,
    loss_shares,
    of_filter,
    reversal_edit,
    size_of,
    unlike,
)
from salmon.comparison.groups import Group, groups_of
from salmon.comparison.settings import CompareSettings, Gates
from salmon.diagnosis import PassSettings
from salmon.errors import InputError, SalmonError
from salmon.filters import FilterIndex
from salmon.gpd import TailFit
from salmon.repairs.changes import SetChange, set_change
from salmon.repairs.edit import state_of
from salmon.repairs.judge import ROUNDING, Rule
from salmon.repairs.patch import Patch
from salmon.repairs.predictions import (
    Comparison,
    Objective,
    Predictions,
    bound_of,
    objective_of,
    predict,
)
from salmon.repairs.predictions import compare as count
from salmon.repairs.samples import Samples
from salmon.saliency import Loss
from salmon.tasks import AnyTask

_DRAWS = 2000  # of the bootstrap
_INTERVAL = (0.025, 0.975)

PASSED = "passed"
FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelComparison:
    """Everything a comparison found."""

    status: str  # "passed" or "failed", by the gates
    mistake: str  # what one is, in words
    counts: Comparison
    regressed: float  # p of McNemar's exact one-sided test that no more broke than were fixed
    accuracy_change: tuple[float, float]  # 95 % interval, by a paired bootstrap
    losses: tuple[float, float]  # means before and after, of samples that have both
    loss_change: tuple[float, float]  # 95 % interval
    groups: tuple[Group, ...]  # classes, confusions and slices
    samples: SetChange  # who was fixed and broken
    flattered: bool  # whether the new network is a patch that was made with these very samples
    rules: tuple[Rule, ...]  # the gates that were set
    filters: int  # of the network
    changed: dict[str, float]  # relative change of each changed layer
    unlike: str  # why filters and layers are not compared; empty where they are
    blame: Blame | None  # None where no sample turned wrong, or networks are unlike
    own: tuple[OwnBlame, OwnBlame] | None  # of the old and the new network, where they are unlike
    loss_shares: dict[str, float]  # by layer, what its change added to the loss of broken samples
    filter_loss_shares: dict[str, float]  # of the filters that added most
    reversals: tuple[Reversal, ...]  # of layers, those that rescue most first
    filter_reversals: tuple[Reversal, ...]  # of these filters
    gates: Gates
    settings: CompareSettings


def compare(
    old: nn.Module,
    new: nn.Module | Patch,
    data: Samples | Iterable[Any],
    gates: Gates | None = None,
    *,
    settings: CompareSettings | None = None,
    reference: Samples | None = None,
    slices: Mapping[str, Sequence[object] | Tensor] | None = None,
    task: AnyTask | str | None = None,
    loss: nn.Module | Loss | None = None,
    index: FilterIndex | None = None,
    fit: TailFit | None = None,
    batch_size: int = 64,
    progress: Callable[[str, int, int], None] | None = None,
) -> ModelComparison:
    """Find what got worse between two versions of a network, where, and by which change.

    Args:
        old: The network that is served now.
        new: The one that may take its place, or a patch of it.
        data: Labelled samples, or a loader of pairs ``(inputs, targets)`` that does not shuffle.
        gates: What decides whether it passes; None has no gate but that of lost predictions.
        settings: How much is measured; None takes the defaults.
        reference: Samples that the old network's tails are fitted to; None takes ``data``.
        slices: Columns by which samples are told apart, such as ``{"camera": [...]}``, ``[N]``
            values each.
        task: What a mistake is, as in :class:`~salmon.PassSettings`. Where a task takes the worst
            samples of a pass, the bound is that of the old network on ``data``.
        loss: As in :class:`~salmon.PassSettings`.
        index: The filters; None takes all convolutions.
        fit: Tails of the old network; None fits them.
        batch_size: Samples at a time.
        progress: Gets the name of a stage and the numbers of finished and of all its steps.

    Raises:
        InputError: If the data are none, or do not fit the networks or the settings.
        UnsupportedError: If a network cannot be measured exactly.
    """
    gates, settings = gates or Gates(), settings or CompareSettings()
    say = progress or (lambda _stage, _done, _all: None)
    samples = data if isinstance(data, Samples) else Samples.collect(data)
    if len(samples) == 0:
        raise InputError("there is no sample to compare on; at least a few hundred are needed.")
    flattered = False
    if isinstance(new, Patch):
        flattered = samples.fingerprint() in new.info.get("data", {}).values()
        patch, new = new, copy.deepcopy(old)
        patch.apply(new)
    index = index or FilterIndex.from_model(old)
    own = PassSettings(task=task, loss=loss)
    objective = objective_of(old, samples, own, batch_size)
    say("compare", 0, 2)
    before = predict(old, samples, batch_size, objective)
    before.check_logits()
    say("compare", 1, 2)
    after = predict(new, samples, batch_size, objective)
    say("compare", 2, 2)
    columns = _columns(slices or {}, len(samples))
    rows = (before.columns["labelled"] & after.columns["labelled"]).nonzero().squeeze(1)
    if not len(rows):
        raise InputError("no sample has a label that the networks could be judged by.")
    samples, before, after = samples.take(rows), before.take(rows), after.take(rows)
    columns = {name: [values[row] for row in rows.tolist()] for name, values in columns.items()}
    if objective.task.worst is not None:
        objective = replace(objective, bound=bound_of([before], objective.task.worst))
        before, after = (replace(each, bound=objective.bound) for each in (before, after))
    counts, groups = count(before, after), groups_of(before, after, columns)
    finite = torch.isfinite(before.losses) & torch.isfinite(after.losses)
    gaps = after.losses[finite] - before.losses[finite]
    losses = float(before.losses[finite].mean()), float(after.losses[finite].mean())
    rules = tuple(_rules(gates, counts, groups, before, after, losses))
    strange = unlike(old, new)
    found = ModelComparison(
        status=PASSED if all(rule.passed for rule in rules) else FAILED,
        mistake=objective.task.rule(objective.bound),
        counts=counts,
        regressed=_regressed(counts),
        accuracy_change=_interval(after.right.double() - before.right.double(), settings.seed),
        losses=losses,
        loss_change=_interval(gaps, settings.seed),
        groups=groups,
        samples=set_change(before, after, samples.ids),
        flattered=flattered,
        rules=rules,
        filters=len(index),
        changed={},
        unlike=strange,
        blame=None,
        own=None,
        loss_shares={},
        filter_loss_shares={},
        reversals=(),
        filter_reversals=(),
        gates=gates,
        settings=settings,
    )
    both = _Both(
        models=(old, new), right=(before.right, after.right), samples=samples,
        reference=reference or samples, index=index, objective=objective, settings=settings,
        batch_size=batch_size,
    )  # fmt: skip
    return _by_groups(found, both) if strange else _by_filters(found, both, fit, say)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Both:
    """Two networks, and what they are measured with."""

    models: tuple[nn.Module, nn.Module]  # old and new
    right: tuple[Tensor, Tensor]  # [N] bool of each
    samples: Samples
    reference: Samples
    index: FilterIndex
    objective: Objective
    settings: CompareSettings
    batch_size: int

    @cached_property
    def random(self) -> torch.Generator:
        """The one source of all choices of samples."""
        return torch.Generator().manual_seed(self.settings.seed)

    def some(self, which: Tensor) -> Samples:
        """Not too many of the samples in a ``[N]`` mask."""
        rows = which.nonzero().squeeze(1)
        order = torch.randperm(len(rows), generator=self.random)[: self.settings.tried]
        return self.samples.take(rows[order])

    def pool(self) -> Samples:
        """What tails are fitted to."""
        order = torch.randperm(len(self.reference), generator=self.random)
        return self.reference.take(order[: self.settings.fitted])


def _by_filters(
    found: ModelComparison, both: _Both, fit: TailFit | None, say: Callable[[str, int, int], None]
) -> ModelComparison:
    """Relatives: which weights changed, what the broken samples blame, which change did it."""
    (old, new), index, objective, settings = both.models, both.index, both.objective, both.settings
    edit = reversal_edit(old, new, index)
    now, parts = state_of(new), by_module(edit)
    changed = {name: size_of(part, now) for name, part in parts.items()}
    changed = dict(sorted(changed.items(), key=lambda pair: -pair[1]))
    found = replace(found, changed=changed)
    was, is_now = both.right
    if not bool((was & ~is_now).any()):
        return found
    if fit is None:
        say("tails", 0, 1)
        fit = tails_of(old, both.pool(), index, objective, settings.level, both.batch_size)
        say("tails", 1, 1)
    blame = blamed(
        old, new, both.some(was & ~is_now), both.some(was & is_now), fit, index, objective,
        moved=filter_changes(edit, index, now),
        top_k=min(settings.top_k, max(1, len(index) // 10)), batch_size=both.batch_size,
        seed=settings.seed,
    )  # fmt: skip
    reverser = Reverser(
        new, both.samples, both.right, objective,
        tried=settings.tried, batch_size=both.batch_size, seed=settings.seed,
    )  # fmt: skip
    layers = [(name, parts[name]) for name in list(changed)[: settings.layers]]
    shares, by_layer = loss_shares(new, reverser.broken, edit, index, objective, both.batch_size)
    first = shares.sort(descending=True, stable=True).indices[: settings.filters].tolist()
    filters = [
        (index.label(number), part)
        for number in first
        if shares[number] > 0 and (part := of_filter(edit, index, number)) is not None
    ]
    taken: list[Reversal] = []
    for name, part in (*layers, *filters):
        taken.append(reverser.take_back(name, part))
        say("take back", len(taken), len(layers) + len(filters))
    return replace(
        found,
        blame=blame,
        loss_shares=by_layer,
        filter_loss_shares={index.label(n): float(shares[n]) for n in first if shares[n] > 0},
        reversals=_best_first(taken[: len(layers)]),
        filter_reversals=_best_first(taken[len(layers) :]),
    )


def _by_groups(found: ModelComparison, both: _Both) -> ModelComparison:
    """Networks that are no relatives, each by its own tails; one that has none ends nothing."""
    pool = both.pool()
    try:
        indices = both.index, FilterIndex.from_model(both.models[1])
        old, new = (
            own_blame(
                model, pool, both.some(~right), index, both.objective, level=both.settings.level,
                top_k=both.settings.top_k, batch_size=both.batch_size,
            )
            for model, right, index in zip(both.models, both.right, indices, strict=True)
        )  # fmt: skip
    except SalmonError as error:
        text = f"{found.unlike}; nor by groups of layers: {str(error).rstrip('.')}"
        return replace(found, unlike=text)
    return replace(found, own=(old, new))


def _best_first(found: Sequence[Reversal]) -> tuple[Reversal, ...]:
    return tuple(sorted(found, key=lambda each: each.random - each.net))


def _columns(
    slices: Mapping[str, Sequence[object] | Tensor], samples: int
) -> dict[str, list[object]]:
    """Plain values, as many as samples."""
    found: dict[str, list[object]] = {}
    for name, values in slices.items():
        found[name] = values.tolist() if isinstance(values, Tensor) else list(values)
        if len(found[name]) != samples or name in ("class", "confusion"):
            raise InputError(
                f"the slice {name!r} has {len(found[name])} values for {samples} samples; one for "
                "each is needed, under another name than 'class' and 'confusion'."
            )
    return found


def _regressed(counts: Comparison) -> float:
    return replace(counts, fixed=counts.broken, broken=counts.fixed).p


def _interval(values: Tensor, seed: int) -> tuple[float, float]:
    """95 % interval of the mean of ``[N]`` paired differences by the percentile bootstrap."""
    if not len(values):
        return float("nan"), float("nan")
    random = torch.Generator().manual_seed(seed)
    means = torch.stack([
        values[torch.randint(len(values), (len(values),), generator=random)].mean()
        for _ in range(_DRAWS)
    ])  # fmt: skip
    low, high = means.quantile(torch.tensor(_INTERVAL, dtype=means.dtype)).tolist()
    return low, high


def _rules(
    gates: Gates,
    counts: Comparison,
    groups: Sequence[Group],
    before: Predictions,
    after: Predictions,
    losses: tuple[float, float],
) -> Iterable[Rule]:
    """The gates that are set."""
    unknown = int((before.known & ~after.known).sum())
    text = f"{unknown} samples have a loss in the old network, and none (NaN) in the new one"
    yield _rule("predictions", unknown, 0, text)
    if gates.max_lost is not None:
        lost = counts.loss_bound(gates.confidence)
        kind = "observed"
        if gates.confidence > 0.5:
            kind = f"upper bound at {gates.confidence:.0%} confidence"
        text = f"accuracy lost ({kind}): {lost:.2%}{' (a gain)' if lost < 0 else ''}"
        yield _rule("accuracy", lost, gates.max_lost, text)
    if gates.max_broken is not None:
        right = round(counts.before * counts.samples)
        share = counts.broken / right if right else 0.0
        text = f"{counts.broken} of {right} right samples turned wrong: {share:.2%}"
        yield _rule("broken samples", share, gates.max_broken, text)
    if gates.max_loss_increase is not None:
        grown = losses[1] / losses[0] - 1 if losses[0] else float("nan")
        text = f"mean loss {losses[0]:.3g} to {losses[1]:.3g}: {grown:+.1%}"
        yield _rule("mean loss", grown, gates.max_loss_increase, text)
    if gates.max_group_lost is not None:
        judged = [
            g for g in groups if g.kind != "confusion" and g.samples >= gates.min_group
        ]  # fmt: skip
        worst = max(judged, key=lambda each: each.lost, default=None)
        lost = 0.0 if worst is None else worst.lost
        name = "" if worst is None else f" ({worst.kind} {worst.name})"
        text = f"largest loss of {len(judged)} classes and slices: {lost:.2%}{name}"
        yield _rule("every group", lost, gates.max_group_lost, text)


def _rule(name: str, value: float, bound: float, text: str) -> Rule:
    passed = value <= bound + ROUNDING  # which NaN is not
    allowed = f"at most {100 * bound:g} %" if bound else "none"
    return Rule(name, passed, float(value), bound, f"{text}, {allowed} allowed")
