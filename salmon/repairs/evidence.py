"""What remedies are made from: the network, its filters, and the repair splits of the data."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from salmon.errors import InputError
from salmon.filters import FilterIndex, filter_rows, parameters_by_name, weight_of_rows
from salmon.forward import call_network, eval_mode, gradients_on, no_trace
from salmon.gpd import LEAST_WITH_PRIOR, TailFit
from salmon.repairs.edit import state_of
from salmon.repairs.orders import filter_order
from salmon.repairs.predictions import Objective, Predictions, predict, to_device
from salmon.repairs.samples import Batch, Samples, check_sizes
from salmon.repairs.settings import RepairSettings
from salmon.saliency import filter_saliency
from salmon.tails import Tails, fit_tails

Say = Callable[[str, int, int], None]
"""Gets the name of a stage and the numbers of finished and of all its steps."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One part of a set, with what the original network says of it."""

    samples: Samples
    before: Predictions

    def take(self, rows: Tensor) -> "Part":
        """The samples of ``[M]`` row numbers."""
        return Part(self.samples.take(rows), self.before.take(rows))

    def by(self, bound: float) -> "Part":
        """With those as mistakes whose score is above a bound."""
        return replace(self, before=replace(self.before, bound=bound))

    def before_and_now(
        self, model: nn.Module, batch_size: int, objective: Objective | None = None
    ) -> tuple[Predictions, Predictions]:
        """What the original network says, and what the network says as it is now."""
        return self.before, predict(model, self.samples, batch_size, objective)


def split_set(
    model: nn.Module,
    samples: Samples,
    settings: RepairSettings,
    what: str,
    batch_size: int,
    objective: Objective | None = None,
) -> dict[str, Part]:
    """Run the network on a set, and split what has a label into repair, guard and accept."""
    whole = Part(samples, predict(model, samples, batch_size, objective))
    whole.before.check_logits()
    labelled = whole.take(whole.before.columns["labelled"].nonzero().squeeze(1))
    rows = labelled.samples.split(settings.split, settings.seed)
    parts = {name: labelled.take(own) for name, own in rows.items()}
    check_sizes({name: part.samples for name, part in parts.items()}, settings.min_split, what)
    return parts


@dataclass(frozen=True, kw_only=True, eq=False)  # without slots, which cached properties need
class Evidence:
    """The repair splits, and what several remedies ask of them, computed when it is asked for."""

    model: nn.Module
    index: FilterIndex
    given_fit: TailFit | None
    new: Part
    reference: Part
    settings: RepairSettings
    batch_size: int
    say: Say
    objective: Objective = field(default_factory=Objective)

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The network's own tensors by clean name."""
        return state_of(self.model)

    @cached_property
    def mistakes(self) -> Samples:
        """New samples that the network gets wrong."""
        return self.new.samples.take((~self.new.before.right).nonzero().squeeze(1))

    @cached_property
    def fit(self) -> TailFit:
        """Tails of the reference samples."""
        if self.given_fit is not None:
            return self.given_fit
        tails, level = Tails(len(self.index)), self.settings.level
        for profile in self._profiles(self.reference.samples, "fit"):
            tails.update(profile)
        fit = fit_tails(tails, level, index=self.index)
        if not bool(fit.usable.any()):
            need = math.ceil(LEAST_WITH_PRIOR / (1 - level) - 1e-9)  # 50 at level 0.9
            raise InputError(
                f"no filter could be fitted to {len(self.reference.samples)} reference samples in "
                f"the repair split; at least about {need} are needed there. Bring more, or give "
                "fit=."
            )
        return fit

    @cached_property
    def profile(self) -> Tensor:
        """``[M, F]`` float64 saliency of the mistakes, without those where it is not finite."""
        found = torch.cat(list(self._profiles(self.mistakes, "rank"))).double()
        return found[torch.isfinite(found).all(1)]

    def _profiles(self, samples: Samples, stage: str) -> Iterator[Tensor]:
        """Saliency, batch by batch."""
        done = 0
        for batch in samples.batches(self.batch_size):
            inputs, targets = to_device(batch, self.model)
            with eval_mode(self.model):
                profile = filter_saliency(
                    self.model, inputs, targets, self.index, self.objective.losses
                ).cpu()
            done += len(targets)
            self.say(stage, done, len(samples))
            yield profile

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """Mean gradients of the new samples by weight; float64, shaped as the weights."""
        names = [layer.weight for layer in self.index.layers]
        return mean_gradients(self.model, self.new.samples, names, self.batch_size, self.objective)

    @cached_property
    def kept_gradients(self) -> dict[str, Tensor]:
        """The same, without what points against the reference samples' in each filter."""
        names = [layer.weight for layer in self.index.layers]
        keep = mean_gradients(
            self.model, self.reference.samples, names, self.batch_size, self.objective
        )
        return without_conflict(self.index, self.gradients, keep)

    @cached_property
    def kept_outputs(self) -> Tensor:
        """``[N, ...]`` predictions of the reference samples; ``[N, 0]`` of a task that has none."""
        model, samples, found = self.model, self.reference.samples, []
        with torch.inference_mode(mode=False), torch.no_grad(), no_trace(model), eval_mode(model):
            for inputs, targets in samples.batches(self.batch_size):
                output = call_network(model, to_device(inputs, model))
                said = self.objective.task.prediction(output)
                found.append(torch.empty(len(targets), 0) if said is None else said.cpu())
        return torch.cat(found)

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the filters to try, rising, each with another number of filters."""
        shares = sorted(self.settings.shares, reverse=True)
        return tuple(sorted({self._count(share): share for share in shares}.values()))

    def _count(self, share: float) -> int:
        return max(1, round(share * len(self.index)))

    def first(self, order: str, share: float) -> Tensor:
        """``[m]`` numbers of the filters that an order puts first, a share of all of them."""
        if order not in self._orders:
            self._orders[order] = filter_order(
                order, self.index, self.fit, self.profile, self.gradients, self.state,
                self.settings.seed,
            )  # fmt: skip
        return self._orders[order][: self._count(share)]

    @cached_property
    def _orders(self) -> dict[str, Tensor]:
        return {}


@contextmanager
def loss_gradients(
    model: nn.Module, names: Sequence[str], objective: Objective | None = None
) -> Iterator[Callable[[Batch], dict[str, Tensor]]]:
    """Measure gradients of the summed losses of batches, in eval mode, leaving no trace.

    Args:
        objective: None takes that of classification.

    Yields a function that gives them by name, zero where the loss does not depend on a weight.
    """
    known, objective = parameters_by_name(model), objective or Objective()
    parameters = {name: known[name] for name in names}

    def measure(batch: Batch) -> dict[str, Tensor]:
        inputs, targets = to_device(batch, model)
        with torch.enable_grad():
            loss = objective.losses(call_network(model, inputs), targets).sum()
            found = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        return dict(zip(parameters, found, strict=True))

    with (
        torch.inference_mode(mode=False),
        no_trace(model),
        eval_mode(model),
        gradients_on(list(parameters.values())),
    ):
        yield measure


def mean_gradients(
    model: nn.Module,
    samples: Samples,
    names: Sequence[str],
    batch_size: int,
    objective: Objective | None = None,
) -> dict[str, Tensor]:
    """Gradients of the mean loss by name; float64 on the CPU, shaped as the weights."""
    known = parameters_by_name(model)
    sums = {name: torch.zeros(known[name].shape, dtype=torch.float64) for name in names}
    with loss_gradients(model, names, objective) as gradients:
        for batch in samples.batches(batch_size):
            for name, gradient in gradients(batch).items():
                sums[name].add_(gradient.double().cpu())
    return {name: total / len(samples) for name, total in sums.items()}


def without_conflict(
    index: FilterIndex, step: Mapping[str, Tensor], reference: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Take out of every filter's gradient what points against another one.

    The projection of A-GEM (Chaudhry et al. 2019, ICLR), filter by filter: a small step along the
    result lowers the reference loss, or leaves it, whichever filters are chosen.

    Returns:
        By weight of the index; ``step`` for filters where the two agree, else its part orthogonal
        to ``reference``.
    """
    found = {}
    for layer in index.layers:
        own, other = (filter_rows(g[layer.weight], layer) for g in (step, reference))
        inner = (own * other).sum(1, keepdim=True)
        square = other.square().sum(1, keepdim=True)
        against = (inner < 0) & (square > 0)
        kept = torch.where(against, own - inner / square * other, own)
        found[layer.weight] = weight_of_rows(kept, layer, step[layer.weight].shape)
    return found
