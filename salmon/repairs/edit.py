"""Edits: some rows of a network's tensors with new values, written for a while or for good."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salmon.errors import InputError
from salmon.filters import FilterIndex, FilterLayer, by_clean_name, filter_rows, weight_of_rows

PLAIN = "tensor"
"""Unit of the layout of a tensor that holds no filters, such as a bias or a running mean."""


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """New values of some rows of one tensor."""

    layer: FilterLayer  # how the tensor is laid out in rows: filters, or one number each
    channels: Tensor  # [m] int64, ascending numbers of the rows
    values: Tensor  # [m, size], in the type of the tensor, on the CPU


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """What is changed in a network; values of what is not named stay as they are."""

    changes: tuple[Change, ...]

    @property
    def filters(self) -> int:
        """Number of touched filters of the index; rows of other tensors are none."""
        return sum(len(c.channels) for c in self.changes if c.layer.unit != PLAIN)

    @property
    def weights(self) -> int:
        """Number of touched values."""
        return sum(change.values.numel() for change in self.changes)

    @property
    def finite(self) -> bool:
        """Whether every new value is."""
        return all(bool(torch.isfinite(change.values).all()) for change in self.changes)

    def values_in(self, state: Mapping[str, Tensor]) -> "Edit":
        """The same rows with the values that tensors hold now, which undoes this edit there."""
        return Edit(tuple(Change(c.layer, c.channels, rows_of(state, c)) for c in self.changes))

    def relative_change(self, state: Mapping[str, Tensor]) -> float:
        """Largest ``|new - old| / |old|`` of a touched filter; infinite where old is zero.

        Args:
            state: Tensors with the old values.
        """
        worst = 0.0
        for change in self.changes:
            if change.layer.unit == PLAIN:
                continue
            old, new = rows_of(state, change).double(), change.values.double()
            ratio = (new - old).norm(dim=1) / old.norm(dim=1)
            worst = max(worst, float(ratio.nan_to_num(nan=0.0, posinf=torch.inf).max()))
        return worst


def state_of(target: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a network, or of its state dict, by clean name; they share its memory."""
    items = target.state_dict() if isinstance(target, nn.Module) else target
    return by_clean_name({n: value for n, value in items.items() if isinstance(value, Tensor)})


def plain_layout(name: str, tensor: Tensor) -> FilterLayer:
    """Lay a tensor without filters out in rows: one for each number of its first dimension."""
    rows = tensor.shape[0] if tensor.ndim else 1
    return FilterLayer(
        weight=name,
        layer=name.rpartition(".")[0],
        group="",
        unit=PLAIN,
        filters=rows,
        size=tensor.numel() // rows,
        rows=1,
        parts=("",),
        transposed_groups=0,
    )


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


def rows_of(tensors: Mapping[str, Tensor], change: Change) -> Tensor:
    """``[m, size]`` of what tensors hold in the rows of a change, on the CPU."""
    return channel_rows(tensors[change.layer.weight], change.layer, change.channels)


def channel_rows(values: Tensor, layer: FilterLayer, channels: Tensor) -> Tensor:
    """``[m, size]`` rows of some channels of a weight or gradient, copied to the CPU."""
    return filter_rows(values.detach(), layer)[channels.to(values.device)].cpu()


def step_edit(
    tensors: Mapping[str, Tensor],
    index: FilterIndex,
    filters: Sequence[int] | Tensor,
    gradients: Mapping[str, Tensor],
    rate: float,
    *,
    normalised: bool,
) -> Edit:
    """Make an edit by one step on some filters (section 4 of the paper).

    A plain step is ``W[o] -= rate * G[o]``; a *normalised* one moves every filter by the same share
    of its norm, ``W[o] -= rate * |W[o]| / |G[o]| * G[o]``. A filter without a gradient stays as it
    is.

    Args:
        tensors: Of the network, by clean name.
        gradients: By weight, shaped as it.
    """
    changes = []
    for layer, channels in by_layer(index, filters):
        old = channel_rows(tensors[layer.weight], layer, channels)
        wide = old.double()
        step = channel_rows(gradients[layer.weight], layer, channels).double()
        if normalised:
            norm = step.norm(dim=1, keepdim=True)
            step = step * torch.where(norm > 0, wide.norm(dim=1, keepdim=True) / norm, 0.0)
        changes.append(Change(layer, channels, (wide - rate * step).to(old.dtype)))
    return Edit(tuple(changes))


def between(old: Edit, new: Edit, share: float) -> Edit:
    """Interpolate: ``old + share * (new - old)``; both have the same rows."""
    changes = []
    for a, b in zip(old.changes, new.changes, strict=True):
        mixed = a.values.double() + share * (b.values.double() - a.values.double())
        changes.append(Change(a.layer, a.channels, mixed.to(a.values.dtype)))
    return Edit(tuple(changes))


def write(tensors: Mapping[str, Tensor], edit: Edit) -> None:
    """Write the values of an edit into tensors, in place."""
    for change in edit.changes:
        write_rows(tensors[change.layer.weight], change.layer, change.channels, change.values)


def write_rows(weight: Tensor, layer: FilterLayer, channels: Tensor, values: Tensor) -> None:
    """Write ``[m, size]`` values into some rows of a tensor, in place."""
    with torch.inference_mode(mode=weight.is_inference()), torch.no_grad():
        weight = weight.detach()
        rows = filter_rows(weight, layer)
        rows[channels.to(weight.device)] = values.to(weight)
        if rows.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():  # a copy
            weight.copy_(weight_of_rows(rows, layer, weight.shape))


@contextmanager
def kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Let tensors be changed for a while; on exit each has its old bits."""
    saved = [(tensor.detach(), tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.inference_mode(mode=False), torch.no_grad():
            for tensor, old in saved:
                tensor.copy_(old)


@contextmanager
def edited(model: nn.Module, edit: Edit) -> Iterator[None]:
    """Change a network for a while; on exit every tensor has its old bits."""
    state = state_of(model)
    with kept([state[change.layer.weight] for change in edit.changes]):
        write(state, edit)
        yield
