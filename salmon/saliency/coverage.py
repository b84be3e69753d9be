"""Which parameters are measured, how, and why the others are not."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from salmon.filters import UNITS, FilterIndex, discover, parameters_by_name
from salmon.markdown import markdown_table
from salmon.saliency.losses import Loss
from salmon.saliency.profile import index_of, measure


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
        kinds: dict[str, int] = {}
        for row in self.rows:
            if row.filters:
                kind = row.how.partition(" (")[0]
                kinds[kind] = kinds.get(kind, 0) + 1
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
        InputError: As of :func:`salmon.filter_saliency`.
        UnsupportedError: As of :func:`salmon.filter_saliency`.
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
