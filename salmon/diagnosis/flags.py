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
from salmon.ranking import (
    Strength,
    log_tail_probability,
    sum_over_samples,
    tail_score,
    top_filters,
)

SCHEMA = "salmon.flagged/2"


def sample_flags(diagnosis: Diagnosis) -> Iterator[dict[str, Any]]:
    """Describe the misclassified samples, one flag each."""
    mistakes, ranking = diagnosis.mistakes, diagnosis.rankings["pot"]
    striking = {each.filter for each in diagnosis.findings.filters}
    describe = _Describer(diagnosis.index, diagnosis.fit)
    every = mistakes.columns() | dict(mistakes.details)
    classless = set() if diagnosis.has_classes else {"target", "predicted"}
    columns = {name: column.tolist() for name, column in every.items() if name not in classless}
    places = {
        "saliency": ranking.saliency, "p": ranking.p, "p_low": ranking.p_low,
        "p_high": ranking.p_high, "log_p": ranking.log_p, "e": ranking.e,
        "strength": ranking.strength, "extrapolated": ranking.extrapolated, "z": ranking.z,
    }  # fmt: skip
    of_sample = {"ranked_filters": ranking.ranked, "significant_filters": ranking.significant}
    of_sample |= {"sample_p": diagnosis.sample_p}
    values = {name: column.tolist() for name, column in places.items() if column is not None}
    values["strength"] = [[Strength(s).label for s in row] for row in values["strength"]]
    rows = {name: column.tolist() for name, column in of_sample.items() if column is not None}
    for i, filters in enumerate(ranking.filters.tolist()):
        flag: dict[str, Any] = {"schema": SCHEMA, "kind": "sample", "id": mistakes.ids[i]}
        flag |= {"id_source": diagnosis.id_source}
        flag |= {name: column[i] for name, column in (columns | rows).items()}
        flag["beyond_chance"] = len(striking.intersection(filters))
        flag["top"] = [
            describe(k) | {name: column[i][place] for name, column in values.items()}
            for place, k in enumerate(filters)
            if k >= 0
        ]
        yield flag


def batch_flags(diagnosis: Diagnosis) -> Iterator[dict[str, Any]]:
    """Describe the batches of misclassified samples, by the sum of log p over these samples.

    Beside the sum stands the harmonic mean of p, which tolerates dependent samples (Wilson 2019,
    PNAS 116(4), 1195-1200). The samples were selected for being mistakes, so both order filters and
    test nothing.
    """
    fit, top_k = diagnosis.fit, diagnosis.rankings["pot"].filters.shape[1]
    striking = {each.filter for each in diagnosis.findings.filters}
    describe = _Describer(diagnosis.index, fit)
    order = diagnosis.mistakes.batch.argsort(stable=True)  # several processes share batches out
    mistakes, profile = diagnosis.mistakes.take(order), diagnosis.profile[order]
    batches, sizes = mistakes.batch.unique_consecutive(return_counts=True)
    start = 0
    for batch, size in zip(batches.tolist(), sizes.tolist(), strict=True):
        rows = slice(start, start + size)
        start += size
        values = profile[rows].double()
        log_p = log_tail_probability(values, fit, own=diagnosis.own)
        raised = (~torch.isnan(log_p)).sum(0)
        score = sum_over_samples(tail_score(values, log_p, fit))
        filters, _ = top_filters(score.unsqueeze(0), top_k)
        total = sum_over_samples(log_p)
        harmonic = (raised.log() - (-log_p).nan_to_num(nan=-torch.inf).logsumexp(0)).exp()
        yield {
            "schema": SCHEMA,
            "kind": "batch",
            "batch": batch,
            "samples": mistakes.sample[rows].tolist(),
            "beyond_chance": len(striking.intersection(filters[0].tolist())),
            "top": [
                describe(k)
                | {
                    "sum_log_p": float(total[k]),
                    "harmonic_mean_p": float(harmonic[k]),
                    "samples": int(raised[k]),
                }
                for k in filters[0].tolist()
                if k >= 0
            ],
        }


def flat_rows(flag: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Lay the flag of a sample out for a table.

    Returns:
        A row for each of its top filters, with ``place`` from 1; one without a filter if it has
        none.
    """
    own = {name: value for name, value in flag.items() if name not in ("schema", "kind", "top")}
    for place, entry in enumerate(flag["top"], 1):
        yield own | {"place": place} | entry
    if not flag["top"]:
        yield own


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
