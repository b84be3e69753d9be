"""Which weights differ between two networks, whether they are relatives, and what a reversal does.

A gradient says where the loss pulls. To take a change back, and to count who is right again, says
what the change did; beside it stands a change of the same size in a random direction. For all
filters at once, the growth of the loss is shared out along the way from old to new weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from salmon.filters import FilterIndex, filter_rows, parameters_by_name
from salmon.repairs.edit import (
    PLAIN,
    Change,
    Edit,
    between,
    edited,
    plain_layout,
    rows_of,
    state_of,
)
from salmon.repairs.evidence import mean_gradients
from salmon.repairs.predictions import Objective, Predictions, predict
from salmon.repairs.samples import Samples

RELATED = 0.5
"""Cosine between the weights of the layer that agrees most, from which on two networks are of one
lineage; those of independent trainings have about 0."""
FEWEST = 64
"""Weights of a layer that is asked."""
DRAWS = 2
NODES = 8
"""Points on the way from old to new weights, those of Gauss and Legendre."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reversal:
    """What it does to the new network to have some of its old weights."""

    name: str  # of a layer, or of a filter
    weights: int  # that differ
    relative_change: float  # |new - old| / |old| of these; infinite where old is zero
    rescued: int  # of the broken samples that were looked at, right again
    lost: int  # of the others, right in the new network and no longer
    net: float  # scaled to all samples
    random: float  # the same of changes of equal norm, in the mean of a few


def reversal_edit(old: nn.Module, new: nn.Module, index: FilterIndex) -> Edit:
    """All rows that differ, with their old values."""
    was, now, changes = state_of(old), state_of(new), []
    known = {layer.weight: layer for layer in index.layers}
    for name, tensor in was.items():
        if not tensor.is_floating_point() or not tensor.numel() or name not in now:
            continue
        layer = known.get(name) or plain_layout(name, tensor)
        before, after = (
            filter_rows(t.detach().cpu(), layer) if name in known else t.detach().cpu().reshape(
                layer.filters, -1
            )
            for t in (tensor, now[name])
        )  # fmt: skip
        rows = (before != after).any(1).nonzero().squeeze(1)
        if len(rows):
            changes.append(Change(layer, rows, before[rows].clone()))
    return Edit(tuple(changes))


def unlike(old: nn.Module, new: nn.Module) -> str:
    """Why two networks cannot be compared filter by filter; nothing where they can."""
    was, now = state_of(old), state_of(new)
    shapes, others = ({n: tuple(t.shape) for n, t in s.items()} for s in (was, now))
    if shapes != others:
        odd = sorted(set(shapes.items()) ^ set(others.items()))[0][0]
        return f"they are of different architectures (the first tensor that differs is {odd})"
    cosines = [
        _cosine(tensor, now[name])
        for name, tensor in was.items()
        if tensor.ndim > 1 and tensor.is_floating_point() and tensor.numel() >= FEWEST
    ]
    highest = max(cosines, default=1.0)
    if highest >= RELATED:
        return ""
    return (
        f"their weights have nothing to do with each other (cosine {highest:.2f} in the layer "
        "where they agree most), as after independent trainings, where filter 3 of one is not "
        "filter 3 of the other"
    )


def _cosine(one: Tensor, other: Tensor) -> float:
    a, b = (each.detach().double().flatten().cpu() for each in (one, other))
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms else 0.0


def by_module(edit: Edit) -> dict[str, Edit]:
    """Parts of an edit by layer."""
    parts: dict[str, list[Change]] = {}
    for change in edit.changes:
        parts.setdefault(change.layer.layer, []).append(change)
    return {name: Edit(tuple(changes)) for name, changes in parts.items()}


def of_filter(edit: Edit, index: FilterIndex, number: int) -> Edit | None:
    """The part of an edit that is one filter; None if that did not change."""
    layer, channel = index.locate(number)
    for change in edit.changes:
        at = (change.channels == channel).nonzero().squeeze(1)
        if change.layer.weight == layer.weight and len(at):
            return Edit((Change(change.layer, change.channels[at], change.values[at]),))
    return None


def size_of(edit: Edit, now: Mapping[str, Tensor]) -> float:
    """``|new - old| / |old|`` of all rows of a reversal."""
    moved = norm = 0.0
    for change in edit.changes:
        old = change.values.double()
        moved += float((rows_of(now, change).double() - old).square().sum())
        norm += float(old.square().sum())
    return (moved / norm) ** 0.5 if norm else float("inf")


def filter_changes(edit: Edit, index: FilterIndex, now: Mapping[str, Tensor]) -> Tensor:
    """``[F]`` float64 ``|new - old| / |old|`` of filters; infinite where old is zero."""
    moved = torch.zeros(len(index), dtype=torch.float64)
    starts = starts_of(index)
    for change in edit.changes:
        if change.layer.weight in starts:
            old = change.values.double()
            gap = (rows_of(now, change).double() - old).norm(dim=1)
            moved[change.channels + starts[change.layer.weight]] = gap / old.norm(dim=1)
    return moved


def starts_of(index: FilterIndex) -> dict[str, int]:
    """The number of the first filter of each weight."""
    return {
        layer.weight: int(start) for layer, start in zip(index.layers, index.starts, strict=False)
    }


def loss_shares(
    model: nn.Module,
    samples: Samples,
    edit: Edit,
    index: FilterIndex,
    objective: Objective,
    batch_size: int,
) -> tuple[Tensor, dict[str, float]]:
    """How much of the growth of the mean loss the change of each filter and layer is behind.

    Integrated gradients (Sundararajan et al. 2017, ICML) along the straight line from old to new
    parameters: the integral of the gradient times the change. All parameters together have the
    whole growth. Running statistics, and what else no gradient reaches, are those of the new
    network all the way.

    Args:
        model: The new network.
        edit: Its parameters that differ, with their old values.

    Returns:
        ``[F]`` of filters and, by name, of layers.
    """
    parameters = parameters_by_name(model)
    own = Edit(tuple(c for c in edit.changes if c.layer.weight in parameters))
    names = [change.layer.weight for change in own.changes]
    new = own.values_in(state_of(model))
    filters, layers = torch.zeros(len(index), dtype=torch.float64), dict[str, float]()
    starts = starts_of(index)
    if not names:
        return filters, layers
    for point, weight in zip(*np.polynomial.legendre.leggauss(NODES), strict=True):
        with edited(model, between(own, new, (float(point) + 1) / 2)):
            gradients = mean_gradients(model, samples, names, batch_size, objective)
        for old, now in zip(own.changes, new.changes, strict=True):
            gradient = gradients[old.layer.weight]
            plain = gradient.reshape(old.layer.filters, -1)
            rows = filter_rows(gradient, old.layer) if old.layer.unit != PLAIN else plain
            moved = now.values.double() - old.values.double()
            shares = float(weight) / 2 * (rows[old.channels] * moved).sum(1)
            layers[old.layer.layer] = layers.get(old.layer.layer, 0.0) + float(shares.sum())
            if old.layer.weight in starts:
                filters.index_add_(0, old.channels + starts[old.layer.weight], shares)
    return filters, layers


class Reverser:
    """Takes changes back on some of the samples, and counts."""

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        right: tuple[Tensor, Tensor],
        objective: Objective,
        *,
        tried: int,
        batch_size: int,
        seed: int,
    ) -> None:
        """Choose the samples.

        Args:
            model: The new network.
            right: ``[N]`` bool of the old and of the new network.
            tried: Samples at most, broken ones and others each.
        """
        random = torch.Generator().manual_seed(seed)
        was, now = right
        chosen = []
        self._scale = []
        for rows in ((was & ~now).nonzero().squeeze(1), now.nonzero().squeeze(1)):
            some = rows[torch.randperm(len(rows), generator=random)[:tried]]
            chosen.append(some)
            self._scale.append(len(rows) / max(1, len(some)))
        self.broken = samples.take(chosen[0])
        """Those that turned wrong."""
        self._samples = samples.take(torch.cat(chosen))
        self._model, self._objective, self._batch_size = model, objective, batch_size
        self._random = random

    def take_back(self, name: str, edit: Edit) -> Reversal:
        """Count who is right again, and who is wrong then."""
        now = state_of(self._model)
        rescued, lost = self._counted(edit)
        nets = [self._net(*self._counted(self._random_like(edit, now))) for _ in range(DRAWS)]
        return Reversal(
            name=name, weights=edit.weights, relative_change=size_of(edit, now), rescued=rescued,
            lost=lost, net=self._net(rescued, lost), random=sum(nets) / len(nets),
        )  # fmt: skip

    def _net(self, rescued: int, lost: int) -> float:
        return rescued * self._scale[0] - lost * self._scale[1]

    def _counted(self, edit: Edit) -> tuple[int, int]:
        with edited(self._model, edit):
            found: Predictions = predict(
                self._model, self._samples, self._batch_size, self._objective
            )
        right = found.right
        return int(right[: len(self.broken)].sum()), int((~right[len(self.broken) :]).sum())

    def _random_like(self, edit: Edit, now: Mapping[str, Tensor]) -> Edit:
        """As far from the new weights, tensor by tensor, in a random direction."""
        changes = []
        for change in edit.changes:
            new = rows_of(now, change).double()
            far = (change.values.double() - new).norm()
            noise = torch.randn(new.shape, generator=self._random, dtype=torch.float64)
            moved = new + far / noise.norm() * noise
            if change.layer.weight.endswith("running_var"):
                moved = moved.clamp_min(0.0)
            changes.append(Change(change.layer, change.channels, moved.to(change.values.dtype)))
        return Edit(tuple(changes))
