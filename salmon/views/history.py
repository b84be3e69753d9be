"""The passes of a run beside each other: where mistakes were made, and since when."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from salmon.errors import StateError
from salmon.views.record import LayerRow, PassRecord

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

        Returns:
            The history since the network last changed.
        """
        history: History | None = None
        for record in records:
            history = cls.start(record) if history is None else history.followed_by(record)
        assert history is not None
        return history

    @classmethod
    def start(cls, record: PassRecord) -> "History":
        """Begin with one pass.

        Args:
            record: The pass.

        Returns:
            A history of it alone.
        """
        return cls(
            layers=tuple(record.layers),
            passes=torch.tensor([record.number]),
            steps=torch.tensor([record.step]),
            samples=torch.tensor([record.samples]),
            misclassified=torch.tensor([record.misclassified]),
            counts={name: torch.tensor([row]) for name, row in record.counts.items()},
        )

    def followed_by(self, record: PassRecord) -> "History":
        """Add a pass.

        Args:
            record: The pass; those of its number and later ones, which an interrupted run left
                behind, are forgotten, and so are all passes of other layers.

        Returns:
            The longer history.
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
            "layers": [(row.layer, row.group, row.filters) for row in self.layers],
            "counts": dict(self.counts),
            **{name: getattr(self, name) for name in _VECTORS},
        }

    @classmethod
    def from_state_dict(cls, state: Any) -> "History":
        """Rebuild a history, checking names, types, shapes and order.

        Args:
            state: What :meth:`state_dict` gave.

        Returns:
            The history.

        Raises:
            StateError: If it is something else, or its parts do not fit together.
        """
        names = {"layers", "counts", *_VECTORS}
        if not isinstance(state, dict) or set(state) != names:
            have = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
            raise StateError(
                f"a saved history has the fields {sorted(names)} but {have} came; it was written "
                "by another version or is no history. Resume without it."
            )
        rows, counts, passes = state["layers"], state["counts"], state["passes"]
        if not isinstance(rows, list | tuple) or not rows or not all(map(_is_layer, rows)):
            raise StateError(
                "a saved history has no readable layers; (name, group, filters) of each are "
                "needed. It is damaged: resume without it."
            )
        length = passes.numel() if isinstance(passes, Tensor) else 0
        if not isinstance(counts, dict) or not all(
            isinstance(name, str) and _is_table(table, (length, len(rows)))
            for name, table in counts.items()
        ):
            raise StateError(
                f"the counts of a saved history are not whole numbers for its {length} passes and "
                f"{len(rows)} layers; the history is damaged. Resume without it."
            )
        if not all(_is_table(state[name], (length,)) for name in _VECTORS) or not bool(
            length and (passes[1:] > passes[:-1]).all()
        ):
            raise StateError(
                f"the vectors {', '.join(_VECTORS)} of a saved history are not whole numbers of "
                "passes in order; the history is damaged. Resume without it."
            )
        return cls(
            layers=tuple(LayerRow(layer=a, group=b, filters=c) for a, b, c in rows),
            counts=dict(counts),
            **{name: state[name] for name in _VECTORS},
        )


def _is_layer(row: Any) -> bool:
    """Whether it is a row of ``layers``."""
    plain = isinstance(row, list | tuple) and [type(item) for item in row] == [str, str, int]
    return plain and row[2] > 0


def _is_table(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether it holds numbers of things, in this shape."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.shape != shape:
        return False
    return bool((value >= 0).all())
