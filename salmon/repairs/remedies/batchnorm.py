"""BatchNorm statistics blended with those of the new data (Schneider et al. 2020, NeurIPS).

First in the channels of the filters that an order puts first, then in all. Each layer's new
statistics are those of the network whose earlier layers normalise by their batches already.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from salmon.filters import FilterIndex, clean_name
from salmon.forward import call_network, eagerly, eval_mode, no_trace
from salmon.repairs.edit import Change, Edit, by_layer, plain_layout
from salmon.repairs.evidence import Evidence
from salmon.repairs.predictions import to_device
from salmon.repairs.trial import Proposal, Proposals, rising

SHARES = (0.05, 1.0)
"""Of the filters whose channels are blended."""

BLENDS = (0.1, 0.3, 1.0)
"""Shares of the new data's statistics."""


@dataclass(slots=True)
class _Norm:
    """A layer that normalises, and what it saw."""

    name: str  # clean path
    module: _BatchNorm
    source: str | None = None  # path of the module whose output it normalises
    count: float = 0.0
    total: Tensor | float = 0.0  # [C] float64
    square: Tensor | float = 0.0

    def see(self, values: Tensor) -> None:
        """Take up ``[N, C, ...]``."""
        wide = values.detach().double().transpose(0, 1).flatten(1)
        self.count += wide.shape[1]
        self.total = self.total + wide.sum(1)
        self.square = self.square + wide.square().sum(1)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """``[C]`` means and unbiased variances."""
        mean = torch.as_tensor(self.total / self.count)
        spread = (torch.as_tensor(self.square) / self.count - mean.square()).clamp(min=0.0)
        return mean, spread * self.count / max(self.count - 1, 1)


def batchnorm(evidence: Evidence, order: str) -> Proposals:
    """Blend, from a little to all of it; nothing where no layer keeps statistics."""
    norms = new_statistics(evidence)
    for share in SHARES if norms else ():
        channels = _channels(norms, evidence.index, evidence.first(order, share), whole=share == 1)
        name = order if share < 1 else "all"
        blends = (
            Proposal(
                "batchnorm", name, f"{blend:.0%} new",
                _blended(norms, channels, evidence.state, blend),
            )
            for blend in (BLENDS if channels else ())
        )  # fmt: skip
        yield from rising(blends, evidence.settings.margin)


def new_statistics(evidence: Evidence) -> list[_Norm]:
    """Run the new samples of the repair split, with these layers in train mode."""
    model = evidence.model
    norms = [
        _Norm(clean_name(path), module)
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and not isinstance(module, nn.SyncBatchNorm)  # which would wait for other processes
    ]
    with (
        torch.inference_mode(mode=False), torch.no_grad(), no_trace(model), eval_mode(model),
        eagerly(), _watched(model, norms) as forget,
    ):  # fmt: skip
        for inputs, targets in evidence.new.samples.batches(evidence.batch_size):
            if len(targets) > 1:
                call_network(model, to_device(inputs, model))
                forget()
    return [norm for norm in norms if norm.count > 1]


@contextmanager
def _watched(model: nn.Module, norms: Sequence[_Norm]) -> Iterator[Callable[[], None]]:
    """Let layers normalise by their batches, and tell what they saw.

    Yields what to call after each batch.
    """
    made: dict[int, tuple[Tensor, str]] = {}

    def note(path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            made[id(output)] = output, path  # the tensor itself, so that its id stays its own

    def see(norm: _Norm, module: nn.Module, args: Any, kwargs: Any) -> None:
        values = args[0] if args else kwargs["input"]
        norm.see(values)
        norm.source = made[id(values)][1] if id(values) in made else None

    hooks = [
        module.register_forward_hook(partial(note, clean_name(path)))
        for path, module in model.named_modules()
        if isinstance(module, _ConvNd)
    ]
    hooks += [
        norm.module.register_forward_pre_hook(partial(see, norm), with_kwargs=True)
        for norm in norms
    ]
    for norm in norms:
        norm.module.training = True
    try:
        yield made.clear
    finally:
        for norm in norms:
            norm.module.training = False
        for hook in hooks:
            hook.remove()


def _channels(
    norms: Sequence[_Norm], index: FilterIndex, filters: Tensor, *, whole: bool
) -> dict[str, Tensor]:
    """By name of a layer the channels to blend: all, or those that the filters make."""
    if whole:
        return {norm.name: torch.arange(norm.module.num_features) for norm in norms}
    made = {
        layer.layer: channels
        for layer, channels in by_layer(index, filters)
        if layer.unit == "conv" and layer.parts == ("",)
    }
    return {
        norm.name: made[norm.source]
        for norm in norms
        if norm.source in made and norm.module.num_features > int(made[norm.source].max())
    }


def _blended(
    norms: Sequence[_Norm],
    channels: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    blend: float,
) -> Edit:
    """Statistics moved towards the new ones, in some channels."""
    changes = []
    for norm in norms:
        if norm.name not in channels:
            continue
        own = channels[norm.name]
        for buffer, new in zip(("running_mean", "running_var"), norm.statistics(), strict=True):
            old = state[f"{norm.name}.{buffer}"]
            mixed = (1 - blend) * old.double().cpu() + blend * new.cpu()
            layout = plain_layout(f"{norm.name}.{buffer}", old)
            changes.append(Change(layout, own, mixed[own].unsqueeze(1).to(old.dtype)))
    return Edit(tuple(changes))
