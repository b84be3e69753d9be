"""Spoilt and hostile input: the package's own errors, no code run, bounded memory."""

import contextlib
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from salmon import FilterIndex, SalmonError, StateError, TailFit, Tails, fit_tails
from salmon.cli.settings import config_sections
from salmon.plain import from_plain
from salmon.tails import fit_state, load_fit
from salmon.views import History, gather
from salmon.views.files import read_pass, write_pass
from salmon.views.record import PassRecord
from salmon.views.report.page import render
from tests import fuzzing
from tests.bombs import MOST_GROWTH, bombs
from tests.fuzzing import fuzz, memory_limited
from tests.hostile import YAML_SNIPPETS, hostile_pickles
from tests.mutations import spoilt_bytes
from tests.networks import PlainNet
from tests.readers import READERS, Reader, readers, saved
from tests.records import hand_record

ROOT = Path(__file__).parent.parent
CASES = 150

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, of what it is given to read


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def known(place: Path) -> dict[str, Reader]:
    (place / "cases").mkdir()
    return {each.name: each for each in readers(place / "cases", place / "canary")}


def last(tallies: Iterator[fuzzing.Tally]) -> fuzzing.Tally:
    (*_, tally) = tallies
    return tally


@pytest.mark.parametrize("name", READERS)
def test_spoilt_input_is_refused_by_name_or_can_be_used(
    known: dict[str, Reader], place: Path, name: str
) -> None:
    with memory_limited():
        tally = last(fuzz(known[name], range(CASES), 1, place / "canary"))
    assert tally.faults == []
    assert tally.tried == CASES == tally.refused + tally.read
    assert tally.refused > CASES // 4
    assert tally.read > 0  # the cases are near enough to the real thing


def test_every_reader_is_tried(known: dict[str, Reader]) -> None:
    assert tuple(known) == READERS


def test_the_fuzz_sees_what_goes_wrong(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "MOST_SECONDS", 0.2)
    canary = place / "seen"

    def waits(_: Any) -> None:
        with contextlib.suppress(Exception):
            time.sleep(60)

    def refuses(_: Any) -> None:
        raise StateError("no")

    wrongs = {
        "KeyError": {"a": 1}.__getitem__,
        "longer than": waits,
        "was run": lambda _: canary.touch(),
        "AssertionError": lambda _: pytest.fail("no") if canary.exists() else _assert_false(),
    }
    for message, read in wrongs.items():
        tally = last(fuzz(Reader(name="r", make=lambda r: 0, read=read), range(1), 0, canary))
        assert len(tally.faults) == 1
        assert message in tally.faults[0]
        assert not tally.sound
    tally = last(fuzz(Reader(name="r", make=lambda r: 0, read=refuses), range(3), 0, canary))
    assert tally.sound
    assert (tally.tried, tally.refused, tally.read) == (3, 3, 0)


def _assert_false() -> None:
    raise AssertionError


def test_a_process_that_dies_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "_child", _dies)
    tally = fuzzing.fuzz_apart("load_fit", 3, 0)
    assert tally.faults == ["load_fit, case 2: the process ended with -9"]


def _dies(_name: str, _cases: int, _seed: int, at: Any, _pipe: Any) -> None:
    at.value = 2
    os.kill(os.getpid(), 9)


def test_the_hostile_input_would_run_code_if_it_were_obeyed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for pickled in hostile_pickles(canary)[:2]:
        pickle.loads(pickled)
        assert canary.exists()
        canary.unlink()
    yaml.unsafe_load(YAML_SNIPPETS[0].format(canary=canary))
    assert canary.exists()


@pytest.mark.slow
def test_the_script_prints_a_table_and_exits_with_0() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzzing", "--cases", "15", "--only", "read_pass"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines()[2:]]
    (row,) = rows
    assert row[1].strip() == "read_pass"
    assert int(row[2]) == 15 == int(row[3]) + int(row[4])
    assert int(row[5]) == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_files_that_ask_for_much_memory_get_little(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bombs", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, _, _ in found] == list(bombs())
    assert {name: grown for name, _, grown in found if grown > MOST_GROWTH} == {}
    harmless = {name for name, outcome, _ in found if outcome == "read"}
    assert harmless == {
        "pictures of 10 MiB", "flags of 20 MiB, each as long as it may be", "run with such flags",
    }  # fmt: skip


@pytest.fixture(scope="module")
def index() -> FilterIndex:
    return FilterIndex.from_model(PlainNet())


@pytest.fixture(scope="module")
def fit(index: FilterIndex) -> TailFit:
    tails = Tails(len(index))
    tails.update(torch.rand(200, len(index), generator=torch.Generator().manual_seed(0)))
    return fit_tails(tails)


LENIENT = settings(deadline=None, suppress_health_check=list(HealthCheck))


@given(seed=st.integers(0, 10**6))
@LENIENT
def test_a_damaged_fit_is_refused_or_is_read_as_it_was(
    tmp_path: Path, index: FilterIndex, fit: TailFit, seed: int
) -> None:
    path = tmp_path / "fit.pt"
    path.write_bytes(spoilt_bytes(Random(seed), saved(fit_state(fit, index))))
    try:
        found = load_fit(path, index)
    except StateError:
        return
    for name, value in fit.state_dict().items():
        torch.testing.assert_close(
            getattr(found, name), value, rtol=0, atol=0, equal_nan=True, msg=name
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = sorted(PassRecord.__dataclass_fields__)


@given(field=st.sampled_from(FIELDS), deeper=st.lists(st.integers(0, 5), max_size=3), value=JSON)
@example(field="counts", deeper=[], value={"pot": [1], "zscore": [1, 2, 3]})
@example(field="fits", deeper=[], value={"ok": 0})
@example(field="xi", deeper=[0], value=[1])
@example(field="level", deeper=[], value=10**400)
@LENIENT
def test_a_record_with_anything_in_a_field_is_refused_or_can_be_drawn(
    tmp_path: Path, field: str, deeper: list[int], value: Any
) -> None:
    folder = tmp_path / "salmon_logs"
    path = folder / "pass-validation-000000.json"
    write_pass(path, hand_record())
    content = json.loads(path.read_text())
    inner: Any = content
    key: Any = field
    for step in deeper:
        below = inner[key]
        if not isinstance(below, dict | list) or not below:
            break
        inner = below
        key = list(below)[step % len(below)] if isinstance(below, dict) else step % len(below)
    inner[key] = value
    path.write_text(json.dumps(content))
    try:
        record = read_pass(path)
    except SalmonError:
        return
    assert History.of([record]).passes.tolist() == [record.number]
    assert render(gather(tmp_path), "run").encode()


@given(value=JSON)
@LENIENT
def test_no_value_makes_a_record_but_that_of_a_record(value: Any) -> None:
    with pytest.raises(StateError):
        from_plain(PassRecord, value, "here")


@given(text=st.text(max_size=80) | st.sampled_from(YAML_SNIPPETS))
@LENIENT
def test_any_text_is_a_config_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with contextlib.suppress(SalmonError):
        assert isinstance(config_sections(str(path)), dict)


STATE = st.one_of(
    JSON,
    st.binary(max_size=5),
    st.tuples(st.integers(), st.integers()),
    st.sampled_from([torch.zeros(24), torch.zeros(24, dtype=torch.float64) - 5, torch.tensor(1)]),
    st.just(torch.zeros((), dtype=torch.float64).expand(1 << 40)),
)


@given(field=st.sampled_from(sorted(TailFit.__dataclass_fields__)), value=STATE)
@example(field="sigma", value=torch.zeros(24, dtype=torch.float64))
@example(field="rate", value=torch.full((24,), 2.0, dtype=torch.float64))
@example(field="xi", value=torch.full((24,), -3.0, dtype=torch.float64))
@example(field="top", value=10**30)
@LENIENT
def test_a_fit_with_anything_else_in_a_field_is_refused(
    fit: TailFit, field: str, value: Any
) -> None:
    free = {"mean", "xi_se", "sigma_se", "log_likelihood", "std", "dropped", "threshold", "level"}
    try:
        found = TailFit.from_state_dict(fit.state_dict() | {field: value})
    except StateError:
        return
    assert field in free or value == getattr(fit, field) or field in ("samples", "top", "ad_p")
    assert type(getattr(found, field)) is type(getattr(fit, field))
