"""Edits: some filters of a network with new values, written for a while or for good.

Fine-tuning by one step is ``W[o] -= lr * dL/dW[o]``, pruning ``W[o] = 0`` (section 4 of the paper).
The gradient is that of the original weights, so that one backward serves any number of filters and
rates. A *normalised* step moves every filter by the same share of its norm:
``W[o] -= lr * |W[o]| / |G[o]| * G[o]``.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salmon.errors import InputError
from salmon.filters import FilterIndex, FilterLayer, filter_rows, parameters_by_name, weight_of_rows

KINDS = ("plain", "normalised", "prune")


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """Some filters of one weight, before and after."""

    layer: FilterLayer
    channels: Tensor  # [m] int64, ascending
    old: Tensor  # [m, size], in the type of the weight, on the CPU
    new: Tensor  # [m, size]


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """What is changed in a network."""

    changes: tuple[Change, ...]

    @property
    def filters(self) -> int:
        """Number of touched filters."""
        return sum(len(change.channels) for change in self.changes)

    @property
    def parameters(self) -> int:
        """Number of touched weights."""
        return sum(change.new.numel() for change in self.changes)

    @property
    def finite(self) -> bool:
        """Whether every new value is."""
        return all(bool(torch.isfinite(change.new).all()) for change in self.changes)

    @property
    def relative_change(self) -> float:
        """Largest ``|new - old| / |old|`` of a touched filter; infinite where old is zero."""
        worst = 0.0
        for change in self.changes:
            old, new = change.old.double(), change.new.double()
            ratio = (new - old).norm(dim=1) / old.norm(dim=1)
            worst = max(worst, float(ratio.nan_to_num(nan=0.0).max()))
        return worst


def step_edit(
    model: nn.Module,
    index: FilterIndex,
    filters: Sequence[int] | Tensor,
    gradients: Mapping[str, Tensor],
    kind: str,
    rate: float = 0.0,
) -> Edit:
    """Make an edit by one step on some filters; a filter without a gradient stays as it is.

    Args:
        gradients: By weight; none is needed to prune.
        kind: One of :data:`KINDS`.
        rate: Learning rate; of a normalised step the relative change of each filter.
    """
    _check(kind)
    parameters = parameters_by_name(model)
    changes = []
    for layer, channels in by_layer(index, filters):
        old = _rows(parameters[layer.weight], layer, channels)
        new = torch.zeros_like(old)
        if kind != "prune":
            gradient = _rows(gradients[layer.weight], layer, channels).double()
            new = _stepped(old, gradient, rate, normalised=kind == "normalised")
        changes.append(Change(layer, channels, old, new))
    return Edit(tuple(changes))


def edit_effects(
    model: nn.Module, index: FilterIndex, gradients: Mapping[str, Tensor], kind: str
) -> Tensor:
    """First-order effect that an edit of each filter has on the loss.

    A plain step lowers the loss by ``lr * |G|^2``, a normalised one by ``lr * |W| * |G|``, and
    pruning lowers or raises it by ``|sum(W * G)|``; here ``lr`` is 1.

    Args:
        gradients: By weight.
        kind: One of :data:`KINDS`.

    Returns:
        ``[F]`` float64, at least 0, on the CPU.
    """
    _check(kind)
    parameters = parameters_by_name(model)
    found = []
    for layer in index.layers:
        gradient = filter_rows(gradients[layer.weight].detach(), layer)
        weight = filter_rows(parameters[layer.weight].detach(), layer).to(gradient)
        if kind == "prune":
            effect = (weight * gradient).sum(1).abs().double()
        else:
            norm = gradient.norm(dim=1).double()
            effect = norm * (norm if kind == "plain" else weight.norm(dim=1))
        found.append(effect.cpu())
    return torch.cat(found)


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"edit is {kind!r}; one of {', '.join(KINDS)} is needed.")


def _rows(values: Tensor, layer: FilterLayer, channels: Tensor) -> Tensor:
    """``[m, size]`` rows of some channels of a weight or gradient, on the CPU."""
    return filter_rows(values.detach(), layer)[channels.to(values.device)].cpu()


def _stepped(old: Tensor, gradient: Tensor, rate: float, *, normalised: bool) -> Tensor:
    """``[m, size]`` rows after a step, in the type of the old ones."""
    wide = old.double()
    scale = torch.ones(len(old), 1, dtype=torch.float64)
    if normalised:
        norm = gradient.norm(dim=1, keepdim=True)
        scale = torch.where(norm > 0, wide.norm(dim=1, keepdim=True) / norm, 0.0)
    return (wide - rate * scale * gradient).to(old.dtype)


def by_layer(
    index: FilterIndex, filters: Sequence[int] | Tensor
) -> Iterator[tuple[FilterLayer, Tensor]]:
    """Sort some filters by layer; ``[m]`` channels of each, ascending."""
    numbers = torch.as_tensor(filters, dtype=torch.int64).sort().values
    if numbers.numel() and not 0 <= int(numbers[0]) <= int(numbers[-1]) < len(index):
        raise InputError(
            f"filters lie in {int(numbers[0])}..{int(numbers[-1])} but the index holds "
            f"0..{len(index) - 1}."
        )
    layers = index.layer_of[numbers]
    for position in layers.unique_consecutive().tolist():
        yield index.layers[position], numbers[layers == position] - index.starts[position]


def write(tensors: Mapping[str, Tensor], changes: Sequence[Change], *, new: bool) -> None:
    """Write the new, or the old, values of changes into tensors, in place."""
    with torch.inference_mode(mode=False), torch.no_grad():
        for change in changes:
            weight = tensors[change.layer.weight].detach()
            rows = filter_rows(weight, change.layer).clone()
            rows[change.channels.to(weight.device)] = (change.new if new else change.old).to(weight)
            weight.copy_(weight_of_rows(rows, change.layer, weight.shape))


@contextmanager
def edited(model: nn.Module, edit: Edit) -> Iterator[None]:
    """Change a network for a while; on exit every weight has its old bits."""
    parameters = parameters_by_name(model)
    saved = {c.layer.weight: parameters[c.layer.weight].detach().clone() for c in edit.changes}
    try:
        write(parameters, edit.changes, new=True)
        yield
    finally:
        with torch.no_grad():
            for name, old in saved.items():
                parameters[name].detach().copy_(old)
