"""Two checks of a network on a batch: what is measured, and whether it is measured rightly.

``coverage`` tells how every parameter is measured, or why not. ``verify`` compares with one
``autograd.grad`` per sample, by default on a float64 copy: in float32, rounding flips ReLUs whose
input is nearly zero, so that any two runs with other batch sizes differ by 1e-3 or so.
"""

import copy
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from salmon.errors import InputError, SalmonError
from salmon.filters import UNITS, FilterIndex, discover, parameters_by_name
from salmon.forward import call_network, gradients_on, no_trace
from salmon.markdown import markdown_table
from salmon.saliency.losses import Loss, sample_losses, take_rows
from salmon.saliency.profile import index_of, indexed_weights, measure, profile_row


@dataclass(frozen=True, slots=True)
class CoverageRow:
    """One parameter."""

    parameter: str
    shape: tuple[int, ...]
    filters: int  # 0 where it is not measured
    how: str  # "fast", "in pieces (why)", "one by one (why)", or why it is left out


@dataclass(frozen=True, slots=True)
class Coverage:
    """All parameters of a network, in order; prints as a table."""

    rows: tuple[CoverageRow, ...]

    @property
    def measured(self) -> int:
        """Number of measured filters."""
        return sum(row.filters for row in self.rows)

    def summary(self) -> str:
        """Say in one line how much is measured and how.

        Returns:
            Such as ``4800 filters in 20 weights measured (20 fast); 42 parameters left out``.
        """
        kinds = Counter(row.how.partition(" (")[0] for row in self.rows if row.filters)
        how = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        left = sum(row.filters == 0 for row in self.rows)
        return (
            f"{self.measured} filters in {len(self.rows) - left} weights measured ({how}); "
            f"{left} parameters left out"
        )

    def markdown(self, most: int | None = None) -> str:
        """Lay the table out in markdown.

        Args:
            most: Rows at the most; None shows all. The fast ones and those without filters give
                way first.

        Returns:
            A table with a row per parameter, in the order of the network.
        """
        rows = self.rows
        if most is not None and len(rows) > most:
            plain = {"holds no filters": 2, "fast": 1}
            order = sorted(range(len(rows)), key=lambda i: plain.get(rows[i].how, 0))
            rows = tuple(rows[i] for i in sorted(order[:most]))
        table = markdown_table(
            ("parameter", "shape", "filters", "how"),
            [
                (row.parameter, "x".join(map(str, row.shape)), row.filters or "", row.how)
                for row in rows
            ],
        )
        if len(rows) == len(self.rows):
            return table
        return f"{table}\n\n({len(self.rows) - len(rows)} more rows are not shown.)"

    def __str__(self) -> str:
        """Show summary and table."""
        return f"{self.summary()}\n\n{self.markdown()}"


def coverage(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    index: FilterIndex | None = None,
    loss: Loss | None = None,
) -> Coverage:
    """Measure one batch and tell what happened to every parameter.

    Args:
        model: The network, in eval mode.
        inputs: A batch, as of :func:`salmon.filter_saliency`.
        index: The filters; None takes all convolutions.
        loss: Per-sample loss; None takes the cross-entropy.

    Raises:
        InputError, UnsupportedError: As of :func:`salmon.filter_saliency`.
    """
    index = index or index_of(model, inputs, targets)
    methods = measure(model, inputs, targets, index=index, loss=loss).methods
    return coverage_of(model, index, methods)


def coverage_of(model: nn.Module, index: FilterIndex, methods: list[str]) -> Coverage:
    """Build the table of a measurement that was already made."""
    measured = {
        layer.weight: (layer.filters, method)
        for layer, method in zip(index.layers, methods, strict=True)
    }
    units = {layer.unit for layer in index.layers}
    known = {found.weight: found.unit for found in discover(model, UNITS)}
    rows = []
    for name, parameter in parameters_by_name(model).items():
        if name in measured:
            filters, how = measured[name]
        elif known.get(name) in units:
            filters, how = 0, "left out by include= or exclude="
        elif name in known:
            filters, how = 0, f"left out; units= has no {known[name]!r}"
        else:
            filters, how = 0, "holds no filters"
        rows.append(CoverageRow(name, tuple(parameter.shape), filters, how))
    return Coverage(tuple(rows))


class VerificationError(SalmonError, AssertionError):
    """The profile differs from the one-by-one reference."""


def verify(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    index: FilterIndex | None = None,
    loss: Loss | None = None,
    *,
    tolerance: float = 1e-6,
    dtype: torch.dtype | None = torch.float64,
) -> dict[str, float]:
    """Check on a small batch that a network is measured right.

    Each sample is also run alone, so networks whose samples influence each other are found out.

    Args:
        model: The network, in eval mode.
        inputs: A batch, as of :func:`salmon.filter_saliency`.
        index: The filters; None takes all convolutions.
        loss: Per-sample loss; None takes the cross-entropy.
        tolerance: Largest difference allowed, relative to the weight's largest saliency.
        dtype: Type of the copy of the network that is checked; None checks the network itself.

    Returns:
        By weight, the largest difference relative to the weight's largest saliency.

    Raises:
        VerificationError: If a weight exceeds ``tolerance``; the message names the worst.
        InputError: As of :func:`salmon.filter_saliency`.
        UnsupportedError: As of :func:`salmon.filter_saliency`.
    """
    index = index or index_of(model, inputs, targets)
    if len(targets) == 0:
        raise InputError("there are no samples to compare; at least 1 is needed, 4 are better.")
    if dtype is not None:
        model = _copied(model).to(dtype)

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        inputs = pytree.tree_map_only(Tensor, cast, inputs)
        targets = cast(targets)
    profile = measure(model, inputs, targets, index=index, loss=loss).profile
    exact = _one_by_one(model, inputs, targets, index, loss)
    differences = {}
    for layer, start in zip(index.layers, index.starts, strict=False):
        columns = slice(start, start + layer.filters)
        scale = exact[:, columns].abs().amax()
        gap = (profile[:, columns] - exact[:, columns]).abs().amax()
        differences[layer.weight] = float(gap / scale) if scale > 0 else float(gap)
    worst = max(differences, key=lambda name: (math.isnan(differences[name]), differences[name]))
    # Written so that NaN does not pass.
    if not all(value <= tolerance for value in differences.values()):
        raise VerificationError(
            f"{worst} differs by {differences[worst]:.3g} of its largest saliency from one-by-one "
            f"autograd; at most {tolerance:g} is allowed. Samples may influence each other, or a "
            "layer may be measured wrongly: compare single layers with include=."
        )
    return differences


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of networks on which forward, pruning or weight norm left a graph."""
    held = (value for module in model.modules() for value in vars(module).values())
    results = [v for v in pytree.tree_leaves(list(held)) if isinstance(v, Tensor) and not v.is_leaf]
    with torch.no_grad():  # else the parameters of a scripted copy are results, too
        return copy.deepcopy(model, {id(value): value.detach().clone() for value in results})


def _one_by_one(
    model: nn.Module, inputs: Any, targets: Tensor, index: FilterIndex, loss: Loss | None
) -> Tensor:
    """``[N, F]`` profile by its definition."""
    weights = indexed_weights(model, index)
    parameters = [weight.parameter for weight in weights]
    rows = []
    with no_trace(model), gradients_on(parameters), torch.enable_grad():
        for i in range(len(targets)):
            one, target = take_rows((inputs, targets), slice(i, i + 1), len(targets))
            value = sample_losses(call_network(model, one), target, loss).sum()
            grads = torch.autograd.grad(value, parameters, allow_unused=True)
            rows.append(profile_row(grads, weights))
    return torch.stack(rows)
