"""Several steps with replay on the filters that an order puts first, then some of the way back.

Stochastic gradient descent with momentum on batches of new and reference samples alike, the network
in eval mode (so that no BatchNorm statistic moves), no weight but those of the chosen filters
moving. To the loss of a reference sample comes the mean square of what its logits moved
(replay with logits: Buzzega et al. 2020, NeurIPS). Then follows interpolation between old and new
weights (Wortsman et al. 2022, CVPR). The order :data:`ALL` tunes every parameter, which is what one
would do without a ranking.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointError

from salmon.filters import CONVOLUTIONS, FilterLayer, filter_rows, parameters_by_name
from salmon.forward import call_network, eagerly, eval_mode, gradients_on, no_trace
from salmon.repairs.edit import Change, Edit, between, by_layer, kept, plain_layout, write_rows
from salmon.repairs.evidence import Evidence
from salmon.repairs.predictions import to_device
from salmon.repairs.trial import Proposal, Proposals, Trial

ALL = "all"
RATES = (0.03, 0.01, 0.003)
"""Learning rates; taken is the first one whose first epoch gains and does not tear the network."""
WHOLE = 0.1
"""Factor of the rates where every parameter moves."""
TORN = 0.05
"""Accuracy on the reference data of which that is said."""
MOMENTUM = 0.9
BATCH = 64
KEEP = 1.0
"""Weight of the mean square by which the logits of a reference sample move."""
MOST_BATCHES = 30
"""Of an epoch, which is a pass over all samples where these are fewer."""
PATIENCE = 2
WAYS = (0.75, 0.5, 0.25)
"""Shares of the change that are tried beside the whole of it."""


_Part = tuple[Any, Tensor, Tensor]
"""Inputs, targets, and the original logits of the reference samples, which come last."""


def tune(evidence: Evidence, order: str, shares: Sequence[float]) -> Proposals:
    """Tune the first filters, from many to few, each time from the original weights.

    A tuning ends with the second epoch in a row that is no better on the guard splits, or is given
    up there. Fewer filters begin with the rate that was best for more, and are not tried where
    those before were not about as good as the best.
    """
    rates: tuple[float, ...] = RATES
    for share in sorted(shares, reverse=True):
        layout = _layout(evidence, order, share)
        if not layout:  # no filter is ranked
            return
        begun: list[tuple[Trial, Tuning]] = []
        for rate in rates:
            run = Tuning(evidence, layout, WHOLE * rate if order == ALL else rate)
            trial = yield run.epoch(order)
            begun.append((trial, run))
            if _merit(trial) > 0 and trial.lost <= TORN:
                break
        trial, run = max(begun, key=lambda pair: _merit(pair[0]))
        rates = rates[[pair[1] for pair in begun].index(run) :]
        best, worse, near = (trial, run.edit), int(not trial.complete), trial.near
        while run.epochs < evidence.settings.epochs and worse < PATIENCE:
            trial = yield run.epoch(order)
            worse, near = worse + 1, near or trial.near
            if _merit(trial) > _merit(best[0]):
                best = trial, run.edit
                worse = 0 if trial.complete else worse
        original, before = best[1].values_in(evidence.state), best[0]
        for way in WAYS if before.complete else ():
            how = f"{best[0].how}, {way:g} of the way"
            trial = yield Proposal("tune", order, how, between(original, best[1], way))
            near = near or trial.near
            if before.allowed and trial.gain < before.gain:
                break
            before = trial
        if not near:
            break


def _merit(trial: Trial) -> float:
    """What an epoch is worth: the gain on the new data without the loss on the reference."""
    return trial.gain - max(trial.lost, 0.0)


def _layout(evidence: Evidence, order: str, share: float) -> list[tuple[FilterLayer, Tensor]]:
    """Which rows of which tensors may move."""
    index = evidence.index
    if order != ALL:
        return list(by_layer(index, evidence.first(order, share)))
    known = {layer.weight: layer for layer in index.layers}
    layers = [
        known.get(name) or plain_layout(name, tensor)
        for name, tensor in parameters_by_name(evidence.model).items()
        if tensor.is_floating_point() and tensor.numel()
    ]
    return [(layer, torch.arange(layer.filters)) for layer in layers]


class Tuning:
    """Weights on their way; between two epochs the network has its own."""

    def __init__(
        self, evidence: Evidence, layout: Sequence[tuple[FilterLayer, Tensor]], rate: float
    ) -> None:
        """Start from the original weights."""
        self.rate, self.epochs, self._by_row = rate, 0, True
        self._evidence, self._layout = evidence, layout
        known = parameters_by_name(evidence.model)
        self._weights = [known[layer.weight] for layer, _ in layout]
        self._channels = [c.to(w.device) for (_, c), w in zip(layout, self._weights, strict=True)]
        rows = (
            filter_rows(weight.detach(), layer)[at]
            for weight, (layer, _), at in zip(self._weights, layout, self._channels, strict=True)
        )
        # At least float32, so that small steps add up.
        self._values = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in rows]
        self._speed = [torch.zeros_like(value) for value in self._values]
        self._random = torch.Generator().manual_seed(evidence.settings.seed)

    @property
    def edit(self) -> Edit:
        """The weights so far."""
        return Edit(
            tuple(
                Change(layer, channels, value.to(weight.dtype).cpu())
                for (layer, channels), value, weight in zip(
                    self._layout, self._values, self._weights, strict=True
                )
            )
        )

    def epoch(self, order: str) -> Proposal:
        """Take the steps of one more epoch, and propose what came out."""
        with kept(self._weights):
            for batch in self._batches():
                for (layer, _), weight, at, value in zip(
                    self._layout, self._weights, self._channels, self._values, strict=True
                ):
                    write_rows(weight, layer, at, value)
                found = self._gradients(batch, sum(len(targets) for _, targets, _ in batch))
                for value, speed, gradient in zip(self._values, self._speed, found, strict=True):
                    speed.mul_(MOMENTUM).add_(gradient)
                    value.sub_(speed, alpha=self.rate)
        self.epochs += 1
        how = f"{self.epochs} epoch{'s' * (self.epochs > 1)} at {self.rate:g}"
        return Proposal("tune", order, how, self.edit)

    def _gradients(self, parts: Sequence[_Part], samples: int) -> list[Tensor]:
        """``[m, size]`` gradients of the mean loss of a batch, of the rows of each weight."""
        try:
            return self._measured(parts, samples)
        except CheckpointError:  # a forward that is run once more for its backward
            self._by_row = False
            return self._measured(parts, samples)

    def _measured(self, parts: Sequence[_Part], samples: int) -> list[Tensor]:
        model, objective = self._evidence.model, self._evidence.objective
        with (
            torch.inference_mode(mode=False), no_trace(model), eval_mode(model), eagerly(),
            gradients_on(self._weights), torch.enable_grad(),
        ):  # fmt: skip
            rows = _ChosenRows(self._weights, self._layout, self._channels)
            loss = torch.zeros(())
            for part in parts:
                inputs, targets, known = to_device(part, model)
                with rows if self._by_row else nullcontext():
                    output = call_network(model, inputs)
                loss = loss.to(targets.device) + objective.losses(output, targets).sum()
                said = objective.task.prediction(output) if known.numel() else None
                if said is not None:
                    moved = said[len(targets) - len(known) :] - known
                    # A masked class has no logit.
                    moved = torch.where(known.isfinite(), moved, 0.0).reshape(len(known), -1)
                    loss = loss + KEEP * moved.square().mean(1).sum()
            loss = loss / samples
            leaves = [*self._weights, *rows.leaves.values()]
            found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        of_rows = dict(zip(rows.leaves, found[len(self._weights) :], strict=True))
        gradients = []
        for number, ((layer, _), at) in enumerate(zip(self._layout, self._channels, strict=True)):
            gradient = filter_rows(found[number], layer)[at]
            if number in of_rows:
                gradient = gradient + of_rows[number].flatten(1)
            gradients.append(gradient)
        return gradients

    def _batches(self) -> Iterator[list[_Part]]:
        """New and reference samples in a random order, each at most once; apart if unlike."""
        logits = self._evidence.kept_outputs.to(self._values[0].dtype)
        new, reference = self._evidence.new.samples, self._evidence.reference.samples
        alike = new.alike(reference)
        order = torch.randperm(len(new) + len(reference), generator=self._random)
        for rows in order[: MOST_BATCHES * BATCH].split(BATCH):
            own, other = rows[rows < len(new)], rows[rows >= len(new)] - len(new)
            first, second, known = new.take(own), reference.take(other), logits[other]
            parts = [(first, known[:0]), (second, known)]
            if alike and len(own) and len(other):
                parts = [(first.joined(second), known)]
            yield [(s.inputs, s.targets, known) for s, known in parts if len(s)]


class _ChosenRows(TorchFunctionMode):
    """Context of one forward in which convolutions learn in their chosen output channels only.

    A convolution runs with its weight as a constant, and the chosen rows once more on the detached
    input; what this adds to the output is zero, with the gradient of these rows. That costs a few
    channels where the gradient of the whole weight costs all. Whatever else reads a weight is left
    alone, and its gradient arrives at the weight.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        layout: Sequence[tuple[FilterLayer, Tensor]],
        channels: Sequence[Tensor],
    ) -> None:
        """Take weights with the rows that are chosen in each."""
        super().__init__()
        self.leaves: dict[int, Tensor] = {}
        """By position of the weight, its rows where a convolution read them."""
        self._channels = channels
        self._positions = {
            id(weight): number
            for number, (weight, (layer, chosen)) in enumerate(zip(weights, layout, strict=True))
            if len(chosen) < layer.filters and layer.unit == "conv"
        }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Pass every call on, but that of a convolution with a chosen weight.

        Args:
            types: Of the arguments that override; unused.
        """
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        call = dict(zip(names, args, strict=False)) | dict(kwargs or {})
        number = self._positions.get(id(call.get("weight"))) if func in CONVOLUTIONS else None
        if number is None or call.get("groups", 1) != 1:
            return func(*args, **(kwargs or {}))
        weight, channels = call["weight"], self._channels[number]
        leaf = self.leaves.setdefault(number, weight.detach()[channels].requires_grad_())
        output = func(**(call | {"weight": weight.detach()}))
        own = func(**(call | {"input": call["input"].detach(), "weight": leaf, "bias": None}))
        return output.index_add(-1 - CONVOLUTIONS[func], channels, own - own.detach())
