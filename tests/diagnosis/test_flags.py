"""Flags of samples and batches, and their JSON."""

import json
import math

import pytest
import torch
from torch import nn

from salmon import FilterIndex, rank_filters
from salmon.diagnosis import (
    Diagnosis,
    Finding,
    Findings,
    Mistakes,
    batch_flags,
    confusions,
    sample_flags,
)
from salmon.files import json_text
from tests.ranking.test_ranking import doubles, hand_fit

INDEX = FilterIndex.from_model(nn.ModuleList([nn.Conv2d(1, 2, 1), nn.Conv2d(1, 1, 1)]))


def mistakes() -> Mistakes:
    return Mistakes(
        sample=torch.tensor([3, 4, 9]),
        ids=["a", "b", 9],
        batch=torch.tensor([0, 0, 1]),
        target=torch.tensor([1, 2, 0]),
        predicted=torch.tensor([0, 0, 1]),
        loss=doubles(1.6, 2.3, math.inf),
        details={
            "confidence_target": doubles(0.2, 0.1, 0.3),
            "confidence_predicted": doubles(0.7, 0.8, 0.6),
        },
    )


FIT = hand_fit(doubles(0.0, 0.0, 0.0))
PROFILE = doubles(3.0, 2.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.5).view(3, 3)


def diagnosis(found: Mistakes, profile: torch.Tensor) -> Diagnosis:
    ranking, none = rank_filters(profile, FIT, top_k=2), rank_filters(profile[:0], FIT, top_k=2)
    stands_out = Finding(filter=1, mistakes=2, expected=0.5, p=0.01)
    nothing = torch.full((3,), math.nan, dtype=torch.float64)
    return Diagnosis(
        index=INDEX, fit=FIT, task="classification", rule="", dropped=0, unlabelled=0,
        class_samples=torch.tensor([5, 5]),
        measured=10, confusions=confusions(found.classes),
        class_mistakes=found.target.bincount(minlength=2),
        mistakes=found, id_source="batch", profile=profile,
        rankings={"pot": ranking}, right=none,
        findings=Findings(expected=nothing, p=nothing, found=(stands_out,)),
    )  # fmt: skip


def test_a_sample_is_described_with_its_filters() -> None:
    first, second, third = sample_flags(diagnosis(mistakes(), PROFILE))
    assert {k: first[k] for k in ("kind", "id", "sample", "batch", "target", "predicted")} == {
        "kind": "sample", "id": "a", "sample": 3, "batch": 0, "target": 1, "predicted": 0,
    }  # fmt: skip
    assert [top["label"] for top in first["top"]] == ["0[0]", "0[1]"]
    top = first["top"][0]
    assert (top["filter"], top["group"]) == (0, "depth1of2")
    assert (top["threshold"], top["saliency"]) == (1.0, 3.0)
    assert top["p"] == pytest.approx(0.1 * math.exp(-2))
    assert top["log_p"] == pytest.approx(math.log(0.1) - 2)
    assert top["z"] == pytest.approx(10.0)
    assert len(second["top"]) == 1
    assert [flag["beyond_chance"] for flag in (first, second, third)] == [1, 1, 0]
    assert (third["top"], third["ranked_filters"]) == ([], 0)


def test_a_batch_adds_the_log_probabilities_of_its_mistakes() -> None:
    first, second = batch_flags(diagnosis(mistakes(), PROFILE))
    assert first["samples"] == [3, 4]
    assert (first["beyond_chance"], second["beyond_chance"]) == (1, 0)
    assert [(top["filter"], top["samples"]) for top in first["top"]] == [(1, 2), (0, 1)]
    assert first["top"][0]["sum_log_p"] == pytest.approx(2 * math.log(0.1) - 1 - 3)
    assert second["top"] == []


def test_numbers_that_are_not_finite_become_null() -> None:
    flags = list(sample_flags(diagnosis(mistakes(), PROFILE)))
    back = json.loads(json_text(flags[2]))
    assert back["loss"] is None
    assert json.loads(json_text({"x": [math.nan, {"y": -math.inf}]})) == {"x": [None, {"y": None}]}


def test_nothing_joins_to_nothing() -> None:
    none = Mistakes.join([])
    assert len(none.sample) == 0
    assert len(Mistakes.join([mistakes(), none, mistakes()]).sample) == 6
    empty = diagnosis(none, PROFILE[:0])
    assert list(sample_flags(empty)) == list(batch_flags(empty)) == []
