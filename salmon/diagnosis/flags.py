"""Flags: misclassified samples and the batches that hold them, each with its top filters.

A flag is one line of JSON; the schema is documented in docs/flagged.md. Numbers that are not
finite become null.
"""

from collections.abc import Iterator
from typing import Any

import torch

from salmon.diagnosis.diagnosis import Diagnosis
from salmon.filters import FilterIndex
from salmon.gpd import TailFit
from salmon.ranking import log_tail_probability, sum_over_samples, tail_score, top_filters

SCHEMA = "salmon.flagged/1"


def sample_flags(diagnosis: Diagnosis) -> Iterator[dict[str, Any]]:
    """Describe the misclassified samples, one flag each."""
    mistakes, ranking = diagnosis.mistakes, diagnosis.rankings["pot"]
    describe = _Describer(diagnosis.index, diagnosis.fit)
    columns = {name: column.tolist() for name, column in mistakes.columns().items()}
    tops = zip(
        ranking.filters.tolist(), ranking.saliency.tolist(), ranking.p.tolist(),
        ranking.log_p.tolist(), ranking.z.tolist(), strict=True,
    )  # fmt: skip
    ranked = ranking.ranked.tolist()
    for i, (filters, saliency, p, log_p, z) in enumerate(tops):
        flag: dict[str, Any] = {"schema": SCHEMA, "kind": "sample", "id": mistakes.ids[i]}
        flag |= {"id_source": diagnosis.id_source}
        flag |= {name: column[i] for name, column in columns.items()}
        flag["ranked_filters"] = ranked[i]
        flag["top"] = [
            describe(k) | {"saliency": s, "p": q, "log_p": lq, "z": zz}
            for k, s, q, lq, zz in zip(filters, saliency, p, log_p, z, strict=True)
            if k >= 0
        ]
        yield flag


def batch_flags(diagnosis: Diagnosis) -> Iterator[dict[str, Any]]:
    """Describe the batches of misclassified samples, by the sum of log p over these samples."""
    fit, top_k = diagnosis.fit, diagnosis.rankings["pot"].filters.shape[1]
    describe = _Describer(diagnosis.index, fit)
    order = diagnosis.mistakes.batch.argsort(stable=True)  # several processes share batches out
    mistakes, profile = diagnosis.mistakes.take(order), diagnosis.profile[order]
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
