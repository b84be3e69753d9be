"""The passes of a run beside each other: where mistakes were made, and since when."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from salmon.errors import StateError
from salmon.records import record_of, tensor_of
from salmon.views.record import METHODS, LayerRow, PassRecord

_ROW = ("layer", "group", "filters")
_VECTORS = ("passes", "steps", "samples", "misclassified")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class History:
    """Measured passes in order; ``[V]`` int64 unless said otherwise."""

    layers: tuple[LayerRow, ...]
    passes: Tensor
    steps: Tensor
    samples: Tensor
    misclassified: Tensor
    counts: dict[str, Tensor]  # by method: [V, L] int64, ranked filters per layer

    @classmethod
    def of(cls, records: Iterable[PassRecord]) -> "History":
        """Put records together.

        Args:
            records: At least one, of one stage and loader, in order of their passes.
        """
        every = list(records)
        assert every
        first = len(every) - 1
        while first and _comparable(every[first - 1], every[-1]):
            first -= 1
        return cls._joined(every[first:])

    @classmethod
    def start(cls, record: PassRecord) -> "History":
        """Begin with one pass.

        Returns:
            A history of it alone.
        """
        return cls._joined([record])

    @classmethod
    def _joined(cls, records: Sequence[PassRecord]) -> "History":
        """Passes of the same layers, in order."""
        return cls(
            layers=tuple(records[0].layers),
            passes=torch.tensor([record.number for record in records]),
            steps=torch.tensor([record.step for record in records]),
            samples=torch.tensor([record.samples for record in records]),
            misclassified=torch.tensor([record.misclassified for record in records]),
            counts={
                name: torch.tensor([record.counts[name] for record in records])
                for name in records[0].counts
            },
        )

    def followed_by(self, record: PassRecord) -> "History":
        """Add a pass.

        Args:
            record: The pass; those of its number and later ones, which an interrupted run left
                behind, are forgotten, and so are all passes of other layers.
        """
        new = History.start(record)
        if new.layers != self.layers or set(new.counts) != set(self.counts):
            return new
        before = self.passes < record.number
        return replace(
            self,
            passes=torch.cat([self.passes[before], new.passes]),
            steps=torch.cat([self.steps[before], new.steps]),
            samples=torch.cat([self.samples[before], new.samples]),
            misclassified=torch.cat([self.misclassified[before], new.misclassified]),
            counts={n: torch.cat([self.counts[n][before], new.counts[n]]) for n in self.counts},
        )

    @property
    def groups(self) -> tuple[str, ...]:
        """``[G]`` names in network order."""
        return tuple(dict.fromkeys(layer.group for layer in self.layers))

    def layer_shares(self, method: str) -> Tensor:
        """Share of every layer among the ranked filters.

        Args:
            method: Such as ``"pot"``.

        Returns:
            ``[V, L]`` float64, rows that add up to 1; NaN for passes that ranked no filter.
        """
        counts = self.counts[method].double()
        return counts / torch.where(counts.sum(1, keepdim=True) > 0, counts.sum(1, keepdim=True),
                                    torch.nan)  # fmt: skip

    def group_shares(self, method: str) -> Tensor:
        """Share of every group among the ranked filters.

        Args:
            method: Such as ``"pot"``.

        Returns:
            ``[V, G]``, as of :meth:`layer_shares`.
        """
        shares = self.layer_shares(method)
        return torch.stack(
            [shares[:, [layer.group == group for layer in self.layers]].sum(1)
             for group in self.groups], 1,
        )  # fmt: skip

    def mean_depth(self) -> float:
        """Mean place of the last pass's top filters by POT: the first layer is 0, the last one 1.

        Returns:
            NaN where no filter was ranked.
        """
        place = torch.arange(len(self.layers)).double() / max(1, len(self.layers) - 1)
        return float((self.layer_shares("pot")[-1] * place).sum())

    def filter_shares(self) -> list[float]:
        """Share of every group among all filters, the yardstick of the others.

        Returns:
            ``[G]``.
        """
        total = sum(layer.filters for layer in self.layers)
        return [
            sum(layer.filters for layer in self.layers if layer.group == group) / total
            for group in self.groups
        ]

    def state_dict(self) -> dict[str, Any]:
        """Hand out plain values and tensors.

        Returns:
            A dictionary that ``torch.load(weights_only=True)`` reads back.
        """
        return {
            "layers": [tuple(getattr(row, name) for name in _ROW) for row in self.layers],
            "counts": dict(self.counts),
            **{name: getattr(self, name) for name in _VECTORS},
        }

    @classmethod
    def from_state_dict(cls, state: Any) -> "History":
        """Rebuild a history, checking names, types, shapes and order."""
        where = "saved history"
        found = record_of(dict[str, Any], state, where)
        if missing := {"layers", "counts", *_VECTORS} - set(found):
            raise StateError(f"{where} has no {min(missing)}; it is damaged. Start a new run.")
        rows = record_of(list[tuple[str, str, int]], found["layers"], f"{where}: layers")
        passes = tensor_of(found["passes"], f"{where}: passes", (None,), torch.int64)
        vectors = {
            name: tensor_of(found[name], f"{where}: {name}", (len(passes),), torch.int64)
            for name in _VECTORS
        }
        shape = (len(passes), len(rows))
        counts = {
            name: tensor_of(value, f"{where}: counts of {name}", shape, torch.int64)
            for name, value in record_of(
                dict[str, Any], found["counts"], f"{where}: counts"
            ).items()
        }
        rising = bool((passes[1:] > passes[:-1]).all())
        if not len(passes) or not rows or not rising or not set(METHODS) <= set(counts):
            raise StateError(
                f"{where}: passes are missing or not in order, or a ranking is missing. Start a "
                "new run."
            )
        layers = tuple(LayerRow(layer=n, group=g, filters=count) for n, g, count in rows)
        return cls(layers=layers, counts=counts, **vectors)


def _comparable(one: PassRecord, other: PassRecord) -> bool:
    """Whether two passes measured the same layers."""
    return one.layers == other.layers and set(one.counts) == set(other.counts)
