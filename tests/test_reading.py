"""Reading what was written: types, places in messages, and files that are damaged."""

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from salmon import FilterIndex, InputError, Patch, StateError, Tails, fit_tails
from salmon.cli.checkpoints import Checkpoint, load_weights, read_checkpoint, write_checkpoint
from salmon.cli.project import read_config
from salmon.diagnosis import SCHEMA
from salmon.records import Number, record_of, tensor_of
from salmon.repairs import Edit
from salmon.repairs.edit import state_of, step_edit
from salmon.tails import load_fit, save_fit
from salmon.views import History, gather
from salmon.views.files import read_flags, read_pass, read_pictures, write_pass
from salmon.views.record import LayerRow, check_record
from salmon.views.report.page import render
from tests.networks import PlainNet
from tests.records import hand_record, run_files


@dataclasses.dataclass
class Sample:
    """Of all kinds of fields."""

    whole: int
    real: Number
    names: tuple[str, ...]
    more: dict[str, list[int]]
    perhaps: LayerRow | None
    later: list[str] = dataclasses.field(default_factory=list)


GOOD: dict[str, Any] = {
    "whole": 3, "real": 2, "names": ["a", "b"], "more": {"a": [1]},
    "perhaps": {"layer": "a", "group": "b", "filters": 1},
}  # fmt: skip


def test_plain_values_become_a_record() -> None:
    layer = LayerRow(layer="a", group="b", filters=1)
    found = record_of(Sample, GOOD | {"unknown": 1}, "here")
    assert found == Sample(3, 2.0, ("a", "b"), {"a": [1]}, layer)
    assert isinstance(found.real, float)
    assert math.isnan(record_of(Sample, GOOD | {"real": None}, "here").real)
    assert record_of(Sample, GOOD | {"perhaps": None}, "here").perhaps is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"whole": 3.5}, r"Expected `int`, got `float` - at `\$.whole`"),
        ({"whole": True}, r"Expected `int`, got `bool` - at `\$.whole`"),
        ({"whole": None}, r"Expected `int`, got `null` - at `\$.whole`"),
        ({"real": "1"}, "Expected `float`, got `str`"),
        ({"names": [1]}, r"Expected `str`, got `int` - at `\$.names\[0\]`"),
        ({"more": {"a": [None]}}, r"got `null` - at `\$.more\[...\]\[0\]`"),
        ({"perhaps": {"layer": "a"}}, "missing required field `group`"),
    ],
)
def test_other_values_are_refused_by_their_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(StateError, match=message):
        record_of(Sample, GOOD | change, "here")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0], "x is list but"),
        (torch.zeros(2, 3, dtype=torch.float16), r"torch.float16 of shape \(2, 3\)"),
        (torch.zeros(3), r"torch.float32 of shape \(3,\)"),
        (torch.zeros(4, 3), r"of shape \(4, 3\) but torch.float32 or torch.float64 \[2, any\]"),
    ],
)
def test_tensors_of_another_kind_are_refused(value: Any, message: str) -> None:
    with pytest.raises(StateError, match=message):
        tensor_of(value, "x", (2, None), torch.float32, torch.float64)


def patch_of(network: nn.Module) -> Patch:
    index = FilterIndex.from_model(network)
    gradients = {name: torch.ones_like(p) for name, p in network.named_parameters()}
    edit = step_edit(state_of(network), index, [1], gradients, 0.1, normalised=True)
    return Patch.make(network, edit)


def with_change(patch: Patch, **changes: Any) -> Patch:
    """A patch of somebody who changed it and made its checksum fit."""
    edit, undo = (
        Edit((dataclasses.replace(side.changes[0], **changes),))
        for side in (patch.edit, patch.undo)
    )
    return dataclasses.replace(patch, edit=edit, undo=undo)


def test_a_patch_with_other_values_than_it_says_changes_nothing(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3))
    honest = patch_of(network)
    change, before = honest.edit.changes[0], network.get_parameter("0.weight").detach().clone()
    with_change(honest, values=change.values + 1).save(tmp_path / "p")
    forged = Patch.load(tmp_path / "p")
    with pytest.raises(StateError, match="not those of its checksums"):
        forged.apply(network)
    assert torch.equal(network.get_parameter("0.weight"), before)
    honest.apply(network)
    after = network.get_parameter("0.weight").detach().clone()
    with pytest.raises(StateError, match="not those of its checksums"):
        forged.revert(network)
    assert torch.equal(network.get_parameter("0.weight"), after)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("filters", "3", "Expected `int`, got `str`"),
        ("size", 9.5, "Expected `int`, got `float`"),
        ("rows", 0, "numbers that no layer has"),
        ("transposed_groups", -1, "numbers that no layer has"),
        ("parts", [], "numbers that no layer has"),
        ("parts", ["Q", "K"], "numbers that no layer has"),
        ("weight", "other", "checksums do not belong to its tensors"),
    ],
)
def test_a_patch_for_a_layer_that_cannot_be_is_refused(
    tmp_path: Path, field: str, value: Any, message: str
) -> None:
    patch = patch_of(nn.Sequential(nn.Conv2d(1, 3, 3)))
    layer = dataclasses.replace(patch.edit.changes[0].layer, **{field: value})
    with_change(patch, layer=layer).save(tmp_path / "p")
    with pytest.raises(StateError, match=message):
        Patch.load(tmp_path / "p")


def test_a_patch_for_another_kind_of_convolution_is_refused(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3))
    patch = patch_of(network)
    layer = dataclasses.replace(patch.edit.changes[0].layer, transposed_groups=2)
    with_change(patch, layer=layer).save(tmp_path / "p")
    with pytest.raises(StateError, match="transposed convolution of 2 groups"):
        Patch.load(tmp_path / "p").apply(network)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!int ''", "cannot be read"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("[" * 5000 + "]" * 5000, "recursion|flow level"),
        ("- 1", "is no mapping"),
        ("", "is no mapping"),
        ("a: 1\n---\nb: 2", "expected a single document"),
    ],
)
def test_odd_configs_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_config(str(tmp_path / "c.yaml"))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": []}, "its layers do not fit"),
        ({"layers": [LayerRow(layer="a", group="b", filters=0)]}, "its layers do not fit"),
        ({"counts": {"pot": [1, 2, 3]}}, "its counts do not fit"),
        ({"counts": {"pot": [1, 2], "zscore": [1, 2, 3]}}, "its counts do not fit"),
        ({"fits": {"ok": 3}}, "its fits do not fit"),
        ({"fits": dict.fromkeys(hand_record().fits, 0)}, "its fits do not fit"),
        ({"xi": {"early": [1]}}, "its xi do not fit"),
        ({"samples": -1}, "its numbers do not fit"),
    ],
)
def test_a_record_whose_parts_do_not_fit_together_is_refused(
    tmp_path: Path, changes: Any, message: str
) -> None:
    record = hand_record(**changes)
    with pytest.raises(StateError, match=message):
        check_record(record, "here")
    write_pass(tmp_path / "a.json", record)
    with pytest.raises(StateError, match=f"a.json: {message}"):
        read_pass(tmp_path / "a.json")


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_pass(tmp_path / "a.json", hand_record())
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.replace('"level": 0.9', '"level": NaN'))
    with pytest.raises(StateError, match="is no JSON"):
        read_pass(tmp_path / "a.json")


def test_names_that_are_no_text_are_shown_as_question_marks(tmp_path: Path) -> None:
    folder = tmp_path / "salmon_logs"
    run_files(folder)
    path = folder / "pass-validation-000001.json"
    write_pass(path, dataclasses.replace(read_pass(path), classes=["\ud800x", "\U0001f41f"] * 2))
    odd = os.fsdecode(b"pass-\xff-000001.json")
    (folder / odd).write_bytes(path.read_bytes())
    page = render(gather(tmp_path), "run")
    assert "?x" in page
    assert "\U0001f41f" in page
    assert page.encode()
    assert [section.name for section in gather(tmp_path)] == ["validation", "?"]


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(StateError, match=r"cannot be read \(.*Permission denied"):
        gather(tmp_path)


def test_long_names_of_flags_are_cut(tmp_path: Path) -> None:
    folder = tmp_path / "salmon_logs"
    run_files(folder)
    path = folder / "flagged-validation-000001.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["id"] = "x" * 10_000
    path.write_text("\n".join(json.dumps(line) for line in lines))
    (section,) = gather(tmp_path)
    assert section.flags
    assert {len(flag.id) for flag in section.flags} == {200}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": []}, r"of shape \(1, 3\) but torch.int64 \[1, 0\]"),
        ({"layers": [("a", "b")]}, "Expected `array` of length 3"),
        ({"counts": {}}, "a ranking is missing"),
        ({"counts": {"pot": torch.zeros(1, 2).long()}}, r"of shape \(1, 2\)"),
        ({"passes": torch.zeros(1)}, "torch.float32"),
        ({"passes": torch.tensor([1, 0])}, r"steps is torch.int64 of shape \(1,\)"),
    ],
)
def test_a_history_of_another_form_is_refused(changes: Any, message: str) -> None:
    state = History.of([hand_record()]).state_dict()
    assert History.from_state_dict(state).samples.tolist() == [200]
    with pytest.raises(StateError, match=message):
        History.from_state_dict(state | changes)
    with pytest.raises(StateError, match="has no steps"):
        History.from_state_dict({k: v for k, v in state.items() if k != "steps"})


def test_checkpoints_of_the_older_format_are_read(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old").state_dict["w"].tolist() == [1.0, 1.0, 1.0]


def test_objects_in_a_checkpoint_need_trust(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(1)}, "path": Path("x")}, tmp_path / "a")
    with pytest.raises(StateError, match="use --weights_only false"):
        read_checkpoint(tmp_path / "a")
    assert read_checkpoint(tmp_path / "a", weights_only=False).content["path"] == Path("x")


def test_a_file_without_weights_is_no_checkpoint(tmp_path: Path) -> None:
    for content in ({1: torch.ones(1)}, {"state_dict": {1: torch.ones(1)}}, [1], {}):
        torch.save(content, tmp_path / "a.ckpt")
        with pytest.raises(StateError, match="holds no state_dict"):
            read_checkpoint(tmp_path / "a.ckpt")


class OwnState(nn.Linear):
    """A module with a state of its own."""

    def get_extra_state(self) -> Any:
        return {"steps": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_state_dicts_may_hold_states_of_modules_and_buffers_of_ones(tmp_path: Path) -> None:
    module = nn.Sequential(OwnState(2, 2), nn.Linear(2, 2))
    module.register_buffer("mask", torch.zeros(1024, 1024))
    state = module.state_dict() | {"mask": torch.ones(()).expand(1024, 1024)}
    torch.save(state, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt")
    assert found.plain
    load_weights(module, found, source="a.pt")
    with pytest.raises(InputError, match=r"_extra_state is dict of a layout that safetensors"):
        write_checkpoint(tmp_path / "a.safetensors", found, repaired=False)


def test_shared_and_reordered_weights_go_into_safetensors(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 3, 3)
    state = {
        "a": weight, "b": weight, "c": weight.to(memory_format=torch.channels_last),
        "mask": torch.ones(()).expand(5, 5),
    }  # fmt: skip
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, Checkpoint(state, plain=True), repaired=False)
    found = read_checkpoint(path).state_dict
    assert all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for its memory")
def test_a_checkpoint_is_read_without_a_second_copy_in_memory(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(64 << 20)}, tmp_path / "large.ckpt")  # 256 MiB
    script = """
import sys
from pathlib import Path
import torch
from salmon.cli.checkpoints import read_checkpoint

def peak():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if "VmHWM" in line).split()[1])

before = peak()
read_checkpoint(Path(sys.argv[1])).state_dict["w"].sum()
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "large.ckpt"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert int(done.stdout) < 300 << 10  # KiB


FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "fits": ("fit.safetensors", lambda p: load_fit(p, FilterIndex.from_model(PlainNet()))),
    "a record": ("pass-validation-000001.json", read_pass),
    "flags": ("flagged-validation-000001.jsonl", lambda p: list(read_flags(p, SCHEMA))),
    "images": ("pictures-validation.jsonl", read_pictures),
    "a checkpoint": ("state.ckpt", read_checkpoint),
    "weights": ("state.safetensors", read_checkpoint),
    "a patch": ("patch.safetensors", Patch.load),
    "a config": ("config.yaml", lambda p: read_config(str(p))),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    run_files(folder)
    index, tails = FilterIndex.from_model(PlainNet()), Tails(24)
    tails.update(torch.rand(200, 24))
    save_fit(folder / "fit.safetensors", fit_tails(tails), index)
    state = {"state_dict": PlainNet().state_dict(), "epoch": 3}
    torch.save(state, folder / "state.ckpt")
    save_file(PlainNet().state_dict(), folder / "state.safetensors")
    patch_of(nn.Sequential(nn.Conv2d(1, 3, 3))).save(folder / "patch.safetensors")
    (folder / "config.yaml").write_text("model: {class_path: a.B, init_args: {x: [1, 2]}}\n")
    for name, read in FILES.values():
        read(folder / name)
    return folder


@pytest.mark.parametrize("kind", FILES)
@hypothesis.given(data=st.data())
def test_a_spoilt_file_is_read_or_refused_with_a_clear_error(
    whole: Path, kind: str, data: st.DataObject
) -> None:
    name, read = FILES[kind]
    content = (whole / name).read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    what = data.draw(st.sampled_from(["flip", "cut", "put in", "leave out", "another type"]))
    spoilt = {
        "flip": content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :],
        "cut": content[:place],
        "put in": content[:place] + b"[0" + content[place:],
        "leave out": content[:place] + content[place + 1 :],
        "another type": content.replace(b": 1,", b': "1",').replace(b"true", b"0.5"),
    }[what]
    path = whole / f"spoilt-{name}"
    path.write_bytes(spoilt)
    with contextlib.suppress(StateError, InputError):  # and nothing else is raised
        read(path)
    path.unlink()


@pytest.mark.parametrize("kind", FILES)
def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path, kind: str) -> None:
    name, read = FILES[kind]
    (tmp_path / name).mkdir()
    for path in (tmp_path / name, tmp_path / f"no-{name}"):
        with pytest.raises((StateError, InputError), match="cannot be read"):
            read(path)
