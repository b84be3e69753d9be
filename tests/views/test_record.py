"""Records of passes: what they hold, and their way to disk and back."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from salmon import StateError, group_shares
from salmon.views import History, pass_metrics, record_pass
from salmon.views.files import read_pass, write_pass
from salmon.views.record import XI_EDGES
from tests.records import LAYERS, hand_record, real_diagnosis, real_record


def test_a_record_holds_what_the_diagnosis_says() -> None:
    diagnosis = real_diagnosis()
    record = record_pass(
        diagnosis, run="a", stage="validation", number=3, step=70, classes=["a", "b"]
    )
    index, ranking = diagnosis.index, diagnosis.rankings["pot"]
    assert [row.layer for row in record.layers] == [layer.layer for layer in index.layers]
    named = ranking.filters[ranking.filters >= 0]
    assert record.counts["pot"] == torch.bincount(index.layer_of[named], minlength=3).tolist()
    counted = Counter(index.label(k) for k in named.tolist())
    assert {row.label: row.mistakes for row in record.filters} == counted
    assert sum(record.fits.values()) == len(index)
    assert (record.number, record.step, record.top_k, record.kept) == (
        3,
        70,
        5,
        len(diagnosis.mistakes.ids),
    )
    pairs = Counter(
        zip(diagnosis.mistakes.target.tolist(), diagnosis.mistakes.predicted.tolist(), strict=True)
    )
    assert {(row.target, row.predicted): row.mistakes for row in record.pairs} == pairs
    assert [record.class_name(i) for i in (0, 1, 2)] == ["a", "b", "2"]


def test_views_are_of_the_two_rankings_they_compare_whatever_else_there_is() -> None:
    diagnosis = real_diagnosis()
    more = diagnosis.rankings | {"magnitude": diagnosis.rankings["pot"]}
    record = record_pass(replace(diagnosis, rankings=more), run="a", stage="validation")
    assert list(record.counts) == ["pot", "zscore"]


def test_xi_is_counted_in_bins_of_a_tenth_whose_ends_take_the_rest() -> None:
    diagnosis = real_diagnosis()
    xi = diagnosis.fit.xi.clone()
    xi[:3] = torch.tensor([-1.0, 5.0, 2.0])
    diagnosis = replace(diagnosis, fit=replace(diagnosis.fit, xi=xi))
    record = record_pass(diagnosis, run="a", stage="validation")
    for number, group in enumerate(diagnosis.index.groups):
        own = xi[(diagnosis.index.group_of == number) & diagnosis.fit.usable].numpy()
        inside = np.clip(own, XI_EDGES[0], np.nextafter(XI_EDGES[-1], 0))
        assert record.xi[group] == np.histogram(inside, XI_EDGES)[0].tolist()


def test_the_examples_are_the_best_the_median_and_the_worst_fit() -> None:
    diagnosis = real_diagnosis()
    record = record_pass(diagnosis, run="a", stage="validation")
    p = np.sort(diagnosis.fit.ad_p.numpy()[~np.isnan(diagnosis.fit.ad_p.numpy())])[::-1]
    assert [example.kind for example in record.examples] == ["best", "median", "worst"]
    assert [example.p for example in record.examples] == [p[0], p[len(p) // 2], p[-1]]
    for example, number in zip(record.examples, diagnosis.excesses, strict=True):
        k = int(diagnosis.fit.exceedances[number])
        shares = (np.arange(k) + 0.5) / k
        np.testing.assert_allclose(
            example.fitted, stats.genpareto.ppf(shares, example.xi), rtol=1e-9
        )
        excess = diagnosis.excesses[number].numpy()
        assert (np.diff(excess) >= 0).all()
        assert len(excess) == k
        np.testing.assert_allclose(
            example.observed, excess / float(diagnosis.fit.sigma[number]), rtol=1e-12
        )


def test_shares_among_the_metrics_are_those_of_the_ranking() -> None:
    diagnosis = real_diagnosis()
    metrics = pass_metrics(record_pass(diagnosis, run="a", stage="validation"))
    for method, ranking in diagnosis.rankings.items():
        for group, share in group_shares(ranking, diagnosis.index).items():
            assert metrics[f"details/share/{method}/{group}"] == pytest.approx(share, rel=1e-12)
    for group in diagnosis.index.groups:
        assert metrics[f"details/share/difference/{group}"] == pytest.approx(
            metrics[f"details/share/pot/{group}"] - metrics[f"details/share/zscore/{group}"],
            abs=1e-12,
        )
    assert metrics["details/doubtful"] == pytest.approx(
        float((diagnosis.fit.ad_p[~torch.isnan(diagnosis.fit.ad_p)] < 0.05).double().mean())
    )


def test_metrics_of_a_method_that_ranked_nothing_are_absent() -> None:
    metrics = pass_metrics(hand_record(counts={"pot": [0, 0, 0], "zscore": [1, 1, 2]}))
    assert "details/share/zscore/late" in metrics
    absent = ("details/share/pot", "details/share/difference", "share/", "depth")
    assert not any(name.startswith(absent) for name in metrics)


def test_few_numbers_are_for_every_day() -> None:
    metrics = pass_metrics(hand_record(beyond=3))
    watched = {name: value for name, value in metrics.items() if not name.startswith("details/")}
    # Shares of 0.4 and 0.6 in groups that each hold half of the filters.
    assert watched == pytest.approx({
        "mistakes": 20, "findings": 3, "trust": 1, "depth": 0.75, "share/early": 0.8,
        "share/late": 1.2,
    })  # fmt: skip
    doubted = pass_metrics(hand_record(beyond=None, doubts=["It is another function."]))
    assert doubted["trust"] == 0
    assert "findings" not in doubted


def test_a_record_is_the_same_after_its_way_to_disk(tmp_path: Path) -> None:
    record = real_record(classes=["<b>", "zwei", "drei", "vier"])
    write_pass(tmp_path / "pass.json", record)
    assert read_pass(tmp_path / "pass.json") == record
    write_pass(tmp_path / "pass.json", replace(record, level=math.nan))
    assert math.isnan(read_pass(tmp_path / "pass.json").level)


def spoilt(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "pass.json"
    write_pass(path, hand_record())
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: v for key, v in value.items() if v != "gone"}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "salmon.pass/9"}, "holds 'salmon.pass/9' where 'salmon.pass/3'"),
        ({"samples": "many"}, r"Expected `int`, got `str` - at `\$.samples`"),
        ({"samples": "gone"}, "pass.json: Object missing required field `samples`"),
        (
            {"layers": [{"layer": "a", "group": 3, "filters": 1}]},
            r"got `int` - at `\$.layers\[0\].group`",
        ),
        ({"counts": {"pot": [1, 2.5, 3]}}, r"got `float` - at `\$.counts\[...\]\[1\]`"),
        ({"counts": [1, 2]}, r"got `array` - at `\$.counts`"),
        ({"xi": True}, r"got `bool` - at `\$.xi`"),
        ({"classes": 5}, r"got `int` - at `\$.classes`"),
    ],
)
def test_a_record_of_another_form_is_refused_by_the_field(
    tmp_path: Path, changes: Any, message: str
) -> None:
    with pytest.raises(StateError, match=message):
        read_pass(spoilt(tmp_path, **changes))


def test_files_that_are_no_record_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pass.json"
    for content in (b"", b"\xff\xfe", b"{", b"[" * 100_000, b"null", b"3"):
        path.write_bytes(content)
        with pytest.raises(StateError):
            read_pass(path)
    with pytest.raises(StateError, match="cannot be read"):
        read_pass(tmp_path / "missing.json")


def test_a_history_puts_passes_side_by_side() -> None:
    late = hand_record(2, counts={"pot": [0, 0, 50], "zscore": [0, 0, 0]})
    history = History.of([hand_record(0), hand_record(1), late])
    assert history.passes.tolist() == [0, 1, 2]
    assert history.steps.tolist() == [0, 10, 20]
    assert history.layer_shares("pot").tolist() == [[0.1, 0.3, 0.6], [0.1, 0.3, 0.6], [0, 0, 1]]
    assert history.groups == ("early", "late")
    torch.testing.assert_close(
        history.group_shares("zscore"),
        torch.tensor([[0.1, 0.9], [0.1, 0.9], [math.nan, math.nan]], dtype=torch.float64),
        equal_nan=True,
    )
    assert history.filter_shares() == [0.5, 0.5]


def test_passes_that_an_interrupted_run_left_behind_are_forgotten() -> None:
    history = History.of([hand_record(n) for n in range(5)])
    again = history.followed_by(hand_record(3, misclassified=7))
    assert again.passes.tolist() == [0, 1, 2, 3]
    assert again.misclassified.tolist() == [20, 20, 20, 7]
    assert history.passes.tolist() == [0, 1, 2, 3, 4]


def test_another_network_begins_a_new_history() -> None:
    other = hand_record(1, layers=LAYERS[:2], counts={"pot": [1, 2], "zscore": [2, 1]})
    assert History.of([hand_record(0), other]).passes.tolist() == [1]


def test_a_history_goes_into_a_checkpoint_and_back(tmp_path: Path) -> None:
    history = History.of([hand_record(n) for n in range(3)])
    torch.save(history.state_dict(), tmp_path / "state")
    back = History.from_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert back.layers == history.layers
    for name in ("passes", "steps", "samples", "misclassified"):
        assert torch.equal(getattr(back, name), getattr(history, name))
    assert torch.equal(back.counts["pot"], history.counts["pot"])
