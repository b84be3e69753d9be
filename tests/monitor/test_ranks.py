"""Several processes find what one finds, write it once, and end together."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from salmon.views import gather
from tests import ROOT
from tests.views.test_board import events

pytestmark = pytest.mark.slow

LIMIT = 240  # seconds; ranks that wait for each other for ever are an error
SAME = ["uneven", "few", "loaders", "chosen", "worst", "spoilt", "given", "full_disk"]
"""Cases in which all ranks have to hold what one process holds."""


def worker(folder: Path, size: int) -> Path:
    """Run all cases with so many processes."""
    torchrun = Path(sys.executable).parent / "torchrun"
    start = [sys.executable] if size == 1 else [
        str(torchrun), "--standalone", "--nproc-per-node", str(size)
    ]  # fmt: skip
    done = subprocess.run(
        [*start, "-m", "tests.ranks_worker", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    (folder / "log").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worker(tmp_path_factory.mktemp("alone"), 1)


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worker(tmp_path_factory.mktemp(f"ranks{request.param}"), request.param)


def saved(folder: Path, case: str) -> list[Any]:
    """What each rank held."""
    paths = sorted(folder.glob(f"{case}-*.pt"))
    assert paths
    # Written by the worker a moment ago.
    return [torch.load(path, weights_only=False) for path in paths]


def assert_close(found: Any, expected: Any, where: str) -> None:
    """The same up to rounding, in any nesting."""
    assert type(found) is type(expected), where
    if isinstance(found, dict):
        assert list(found) == list(expected), where
        for key in found:
            assert_close(found[key], expected[key], f"{where}.{key}")
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected), where
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_close(a, b, f"{where}[{i}]")
    elif isinstance(found, Tensor):
        assert found.dtype == expected.dtype, where
        torch.testing.assert_close(
            found, expected, rtol=1e-6, atol=0, equal_nan=True, msg=lambda m: f"{where}: {m}"
        )
    elif isinstance(found, float):
        assert found == pytest.approx(expected, rel=1e-6, nan_ok=True), where
    else:
        assert found == expected, where


def without_batches(found: dict[str, Any]) -> dict[str, Any]:
    """Numbers of batches depend on how many processes share the samples."""
    for diagnosis in found["results"].values():
        diagnosis["mistakes"].pop("batch")
    return found


@pytest.mark.parametrize("case", SAME)
def test_every_rank_holds_what_one_process_finds(ranks: Path, alone: Path, case: str) -> None:
    (expected,) = (without_batches(each) for each in saved(alone, case))
    assert expected["results"] or case == "few"
    for found in map(without_batches, saved(ranks, case)):
        assert_close(found["results"], expected["results"], case)
        ours = {k: v for k, v in found["metrics"].items() if k.startswith("salmon")}
        theirs = {k: v for k, v in expected["metrics"].items() if k.startswith("salmon")}
        assert_close(dict(sorted(ours.items())), dict(sorted(theirs.items())), case)
        for state in (found["state"], expected["state"]):
            state.pop("run", None)  # no two runs have it in common
        assert_close(found["state"], expected["state"], case)


def test_the_kept_values_are_the_same_bit_for_bit_however_rows_are_shared_out(
    ranks: Path, alone: Path
) -> None:
    (expected,) = saved(alone, "exact")
    for found in saved(ranks, "exact"):
        assert torch.equal(found["largest"], expected["largest"])
        for name in ("threshold", "rate", "exceedances", "status"):
            one, other = found["fit"][name], expected["fit"][name]
            assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1)), name
        for name in ("xi", "sigma", "log_likelihood", "ad_p", "mean", "std"):
            torch.testing.assert_close(
                found["fit"][name], expected["fit"][name], rtol=1e-6, atol=0, equal_nan=True
            )


def flags(folder: Path, name: str = "flagged-validation-000000.jsonl") -> list[dict[str, Any]]:
    lines = (folder / "salmon_logs" / name).read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_flags_of_all_ranks_are_one_file_in_the_order_of_the_samples(
    ranks: Path, alone: Path
) -> None:
    def samples(folder: Path) -> list[dict[str, Any]]:
        rows = [row for row in flags(folder / "uneven") if row["kind"] == "sample"]
        return [{k: v for k, v in row.items() if k != "batch"} for row in rows]

    found, expected = samples(ranks), samples(alone)
    numbers = [row["sample"] for row in found]
    assert numbers == sorted(set(numbers))
    assert [row["id"] for row in found] == numbers  # indices in the data set
    for row, other in zip(found, expected, strict=True):
        assert_close(row, other, f"sample {row['sample']}")
    names = sorted(path.name for path in (ranks / "uneven" / "salmon_logs").iterdir())
    assert names == sorted(path.name for path in (alone / "uneven" / "salmon_logs").iterdir())


def test_batches_are_numbered_over_all_ranks(ranks: Path) -> None:
    size = len(saved(ranks, "uneven"))
    rows = flags(ranks / "uneven")
    batches = [row for row in rows if row["kind"] == "batch"]
    assert len({row["batch"] for row in batches}) == len(batches)
    for row in rows:
        for sample in row.get("samples", [row.get("sample")]):
            # Rank r has every size-th sample from r on, eight in a batch.
            assert row["batch"] == sample // size // 8 * size + sample % size


def test_the_first_rank_shows_views_and_the_others_do_not(ranks: Path) -> None:
    files = list((ranks / "uneven").glob("*tfevents*"))
    assert len(files) == 1
    tags = events(ranks / "uneven").Tags()
    assert {"salmon/heatmap/pot", "salmon/flagged"} <= set(tags["images"])
    (section,) = gather(ranks / "uneven")
    assert len(section.flags) == section.record.misclassified


def test_the_worst_mistakes_of_all_ranks_are_pictured(ranks: Path, alone: Path) -> None:
    pictures = [gather(folder / "uneven")[0].pictures for folder in (ranks, alone)]
    assert [p.sample for p in pictures[0]] == [p.sample for p in pictures[1]]
    assert len(pictures[0]) > 3


def test_a_sampler_of_the_users_own_is_numbered_by_position(ranks: Path) -> None:
    for found in saved(ranks, "shuffled"):
        (diagnosis,) = found["results"].values()
        assert diagnosis["samples"] == 43
        assert diagnosis["id_source"] == "position"


def test_trouble_on_one_rank_ends_the_pass_on_all(ranks: Path) -> None:
    for found in saved(ranks, "broken"):
        assert found["results"] == {}
        assert not any(name.startswith("salmon") for name in found["metrics"])
        assert "val_loss" in found["metrics"]  # the validation went on
    log = (ranks / "log").read_text()
    size = len(saved(ranks, "broken"))
    assert f"PeerError: rank {size - 1} of {size} stopped (KeyError: 'a column is missing')" in log
    messages = saved(ranks, "broken_strict")
    assert messages[-1] == "KeyError: 'a column is missing'"
    for message in messages[:-1]:
        assert message == (
            f"PeerError: rank {size - 1} of {size} stopped (KeyError: 'a column is missing')"
        )


def test_what_one_rank_cannot_send_ends_the_pass_on_all(ranks: Path, alone: Path) -> None:
    for found in saved(ranks, "unpicklable"):
        assert found["results"] == []
        assert found["val_loss"] > 0  # the validation went on
    size = len(saved(ranks, "unpicklable"))
    log = (ranks / "log").read_text()
    assert f"rank {size - 1} of {size} failed (TypeError: cannot pickle an open file)" in log
    assert saved(alone, "unpicklable")[0]["results"] == ["validation"]


def test_training_on_several_ranks_is_the_same_with_and_without_the_monitor(ranks: Path) -> None:
    states = saved(ranks, "no_trace")
    for without, watched in states:
        for name, value in without.items():
            assert torch.equal(value, watched[name]), name
            assert torch.equal(value, states[0][0][name]) or "running" in name, name


def test_a_repair_changes_all_replicas_alike(ranks: Path, alone: Path) -> None:
    found = saved(ranks, "repaired")
    assert {each["status"] for each in found} == {"accepted"}
    # All samples were looked at, not the part of the first rank.
    assert sum(found[0]["sizes"]["new"].values()) == 400
    for each in found[1:]:
        for name, value in found[0]["weights"].items():
            assert torch.equal(value, each["weights"][name]), name
    (alike,) = saved(alone, "repaired")
    assert found[0]["sizes"] == alike["sizes"]
    folders = list((ranks / "repaired").glob("salmon-repair-*"))
    assert len(folders) == 1
    assert (folders[0] / "patch.safetensors").exists()
