"""Flags: misclassified samples and the batches that hold them, each with its top filters.

A flag is one line of JSON; the schema is documented in docs/flagged.md. Numbers that are not
finite become null.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from salmon.filters import FilterIndex
from salmon.gpd import TailFit
from salmon.ranking.methods import (
    log_tail_probability,
    sum_over_samples,
    tail_score,
    top_filters,
)
from salmon.ranking.record import Ranking

SCHEMA = "salmon.flagged/1"

NO_CLASS = -1
"""Predicted where the probabilities are no numbers, as those of NaN logits are."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mistakes:
    """Misclassified samples; tensors are ``[M]`` on the CPU."""

    sample: Tensor  # int64 position among the samples of the loader
    batch: Tensor  # int64
    target: Tensor  # int64 true class
    predicted: Tensor  # int64, or NO_CLASS
    confidence_target: Tensor  # softmax probabilities
    confidence_predicted: Tensor
    loss: Tensor

    def take(self, rows: Tensor) -> "Mistakes":
        """Select some of them.

        Args:
            rows: ``[K]`` positions.

        Returns:
            The selected ones, in the order of ``rows``.
        """
        return Mistakes(**{name: getattr(self, name)[rows] for name in self.__slots__})

    @classmethod
    def join(cls, parts: Sequence["Mistakes"]) -> "Mistakes":
        """Put several together.

        Args:
            parts: Any number of them.

        Returns:
            All, in order.
        """
        if not parts:
            whole, real = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
            return cls(
                sample=whole, batch=whole, target=whole, predicted=whole,
                confidence_target=real, confidence_predicted=real, loss=real,
            )  # fmt: skip
        return cls(**{name: torch.cat([getattr(p, name) for p in parts]) for name in cls.__slots__})


def sample_flags(
    mistakes: Mistakes,
    ranking: Ranking,
    index: FilterIndex,
    fit: TailFit,
    ids: Sequence[int | str],
) -> Iterator[dict[str, Any]]:
    """Describe misclassified samples.

    Args:
        mistakes: M samples.
        ranking: Their filters.
        index: The filters.
        fit: The tails of the ranking.
        ids: ``[M]`` of the samples.

    Yields:
        One flag per sample.
    """
    describe = _Describer(index, fit)
    columns = {name: getattr(mistakes, name).tolist() for name in mistakes.__slots__}
    tops = zip(
        ranking.filters.tolist(), ranking.saliency.tolist(), ranking.p.tolist(),
        ranking.log_p.tolist(), ranking.z.tolist(), strict=True,
    )  # fmt: skip
    ranked = ranking.ranked.tolist()
    for i, (filters, saliency, p, log_p, z) in enumerate(tops):
        flag: dict[str, Any] = {"schema": SCHEMA, "kind": "sample", "id": ids[i]}
        flag |= {name: column[i] for name, column in columns.items()}
        flag["ranked_filters"] = ranked[i]
        flag["top"] = [
            describe(k) | {"saliency": s, "p": q, "log_p": lq, "z": zz}
            for k, s, q, lq, zz in zip(filters, saliency, p, log_p, z, strict=True)
            if k >= 0
        ]
        yield flag


def batch_flags(
    mistakes: Mistakes, profile: Tensor, index: FilterIndex, fit: TailFit, top_k: int
) -> Iterator[dict[str, Any]]:
    """Describe the batches of misclassified samples, by the sum of log p over these samples.

    Args:
        mistakes: M samples.
        profile: ``[M, F]`` their saliency.
        index: The filters.
        fit: The tails to rank with.
        top_k: Filters per batch.

    Yields:
        One flag per batch.
    """
    describe = _Describer(index, fit)
    order = mistakes.batch.argsort(stable=True)  # several processes share the batches out
    mistakes, profile = mistakes.take(order), profile[order]
    batches, sizes = mistakes.batch.unique_consecutive(return_counts=True)
    start = 0
    for batch, size in zip(batches.tolist(), sizes.tolist(), strict=True):
        rows = slice(start, start + size)
        start += size
        values = profile[rows].double()
        log_p = log_tail_probability(values, fit)
        raised = (~torch.isnan(log_p)).sum(0)
        score = sum_over_samples(tail_score(values, fit))
        filters, _ = top_filters(score.unsqueeze(0), top_k)
        total = sum_over_samples(log_p)
        yield {
            "schema": SCHEMA,
            "kind": "batch",
            "batch": batch,
            "samples": mistakes.sample[rows].tolist(),
            "top": [
                describe(k) | {"sum_log_p": float(total[k]), "samples": int(raised[k])}
                for k in filters[0].tolist()
                if k >= 0
            ],
        }


class _Describer:
    """Label, group and threshold of a filter, looked up once per filter."""

    def __init__(self, index: FilterIndex, fit: TailFit) -> None:
        """Keep what the descriptions need."""
        self._index = index
        self._threshold = fit.threshold
        self._known: dict[int, dict[str, Any]] = {}

    def __call__(self, number: int) -> dict[str, Any]:
        """Describe one filter."""
        if number not in self._known:
            layer, _ = self._index.locate(number)
            self._known[number] = {
                "filter": number,
                "label": self._index.label(number),
                "group": layer.group,
                "threshold": float(self._threshold[number]),
            }
        return self._known[number]
