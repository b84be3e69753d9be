"""Reading what others may have written: limits, types, messages of bounded length."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from salmon import FilterIndex, InputError, Patch, SaliencyMonitor, StateError
from salmon.cli.checkpoints import (
    read_checkpoint,
)
from salmon.cli.settings import config_sections
from salmon.files import read_lines, read_text
from salmon.plain import checked_tensor, dict_of, from_plain, shown
from salmon.repairs.edit import Directions
from salmon.views import History, gather
from salmon.views.files import read_flags, read_pass, write_pass
from salmon.views.record import LayerRow, check_record
from salmon.views.report.page import render
from tests.mutations import entangled, nested
from tests.networks import PlainNet
from tests.records import hand_record, run_files


def test_a_file_of_the_largest_size_is_read_and_a_byte_more_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x" * 100)
    assert read_text(path, 100) == "x" * 100
    with pytest.raises(StateError, match="more than 99 bytes and was not read"):
        read_text(path, 99)
    path.write_text("ab\ncd\u2028e\n\nf")
    assert list(read_lines(path, 100, 8)) == ["ab\n", "cd\u2028e\n", "\n", "f"]
    with pytest.raises(StateError, match="more than 11 bytes, or a line"):
        list(read_lines(path, 11, 8))
    with pytest.raises(StateError, match="a line of more than 6"):
        list(read_lines(path, 100, 6))


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, device, Path.mkdir])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "pass-validation-000000.json"
    make(path)
    index = FilterIndex.from_model(nn.Conv2d(1, 2, 3))
    from salmon.tails import load_fit

    readers: list[Any] = [
        read_pass, Patch.load, read_checkpoint, lambda p: load_fit(p, index),
        lambda p: config_sections(str(p)), lambda p: list(read_flags(p, "x")),
        lambda p: gather(p.parent),
    ]  # fmt: skip
    for read in readers:
        with pytest.raises((StateError, InputError), match="is no regular file"):
            read(path)
    (tmp_path / "a.safetensors").symlink_to(path)
    with pytest.raises(StateError, match="is no regular file"):
        read_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (10**5000, "an integer of 16610 bits"),
        (-(10**5000), "an integer of 16610 bits"),
        (torch.zeros(10**6), "Tensor[1000000]"),
        (7, "7"),
        ("abc", "'abc'"),
    ],
    ids=["huge", "negative", "tensor", "number", "text"],
)
def test_values_are_shown_in_a_few_characters(value: Any, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize("value", [entangled(), nested(10_000), "x" * 10**6, {"a": entangled()}])
def test_the_largest_values_are_shown_in_a_few_characters_too(value: Any) -> None:
    assert 0 < len(shown(value)) <= 300


@dataclasses.dataclass
class Sample:
    """Of all kinds of fields."""

    whole: int
    real: float
    names: tuple[str, ...]
    more: dict[str, list[int]]
    perhaps: LayerRow | None


GOOD: dict[str, Any] = {
    "whole": 3, "real": 2, "names": ["a", "b"], "more": {"a": [1]},
    "perhaps": {"layer": "a", "group": "b", "filters": 1},
}  # fmt: skip


def test_plain_values_become_a_record() -> None:
    layer = LayerRow(layer="a", group="b", filters=1)
    found = from_plain(Sample, GOOD | {"unknown": 1}, "here")
    assert found == Sample(3, 2.0, ("a", "b"), {"a": [1]}, layer)
    assert isinstance(found.real, float)
    assert math.isnan(from_plain(Sample, GOOD | {"real": None}, "here").real)
    assert from_plain(Sample, GOOD | {"perhaps": None}, "here").perhaps is None
    assert dict_of(Any, {"a": {1: 2}}, "here") == {"a": {1: 2}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"whole": 2**63}, "here.whole is 9223372036854775808, which is out of range"),
        ({"whole": 3.0}, "here.whole is float where int"),
        ({"whole": True}, "here.whole is bool where int"),
        ({"whole": None}, "here.whole is NoneType where int"),
        ({"real": 10**400}, "here.real is an integer of 1329 bits, which is out of range"),
        ({"real": math.inf}, "here.real is inf, which is out of range"),
        ({"real": "1"}, "here.real is str where float"),
        ({"names": "ab"}, "here.names is str"),
        ({"names": [1]}, r"here.names\[0\] is int where str"),
        ({"more": {1: [1]}}, "here.more is dict where named values"),
        ({"more": {"a" * 100: [None]}}, r"here.more.a{60}\[0\] is NoneType where int"),
        ({"perhaps": {"layer": "a"}}, "here.perhaps has no 'group'"),
    ],
)
def test_other_values_are_refused_by_their_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(StateError, match=message):
        from_plain(Sample, GOOD | change, "here")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0], "x is list but"),
        (nn.Parameter(torch.zeros(2, 3)), "x is Parameter but"),
        (torch.zeros(2, 3).to_sparse(), "another layout"),
        (torch.zeros(2, 3, device="meta"), "another layout"),
        (torch.zeros(2, 3, dtype=torch.float16), r"torch.float16 of shape \(2, 3\)"),
        (torch.zeros(3), r"torch.float32 of shape \(3,\)"),
        (torch.zeros(4, 3), r"of shape \(4, 3\) but torch.float32 or torch.float64 \[2, any\]"),
        (torch.zeros(1).expand(2, 1 << 34), "137438953472 bytes made of 4"),
    ],
)
def test_tensors_of_another_kind_are_refused(value: Any, message: str) -> None:
    with pytest.raises(StateError, match=message):
        checked_tensor(value, "x", (2, None), torch.float32, torch.float64)


def test_a_tensor_that_fits_comes_without_its_graph() -> None:
    value = torch.ones(2, 3, requires_grad=True) * 2
    found = checked_tensor(value, "x", (2, None), torch.float32)
    assert not found.requires_grad
    assert torch.equal(found, value)


def test_a_fit_of_another_layer_is_refused_however_large_its_numbers() -> None:
    index = FilterIndex.from_model(nn.Conv2d(1, 2, 3))
    with pytest.raises(StateError, match="an integer of 16610 bits filters in 1 layers") as caught:
        index.check_fingerprint([("a" * 10**6, 10**5000, 3)], source="it")
    assert len(str(caught.value)) < 1000


def patch_of(network: nn.Module) -> Patch:
    index = FilterIndex.from_model(network)
    gradients = {name: torch.ones_like(p) for name, p in network.named_parameters()}
    return Patch.make(
        network, Directions(network, index, gradients).step([1], 0.1, normalised=True)
    )


def with_change(patch: Patch, **changes: Any) -> Patch:
    """A patch of somebody who changed it and made its checksum fit."""
    change = dataclasses.replace(patch.edit.changes[0], **changes)
    return dataclasses.replace(patch, edit=dataclasses.replace(patch.edit, changes=(change,)))


def test_a_patch_with_other_values_than_it_says_changes_nothing(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3))
    honest = patch_of(network)
    change, before = honest.edit.changes[0], network.get_parameter("0.weight").detach().clone()
    with_change(honest, new=change.new + 1, old=change.old + 1).save(tmp_path / "p")
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
        ("filters", "3", "layers.0.weight.filters is str"),
        ("size", 9.0, "layers.0.weight.size is float"),
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
        ("a: &x [*x]", "aliases stand for more than"),
        ("a: !!int ''", "cannot be read"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: 0x" + "f" * 5000, "cannot be read"),
        ("[" * 5000 + "]" * 5000, "recursion"),
        ("- 1", "is no mapping"),
        ("", "is no mapping"),
        ("a: 1\n---\nb: 2", "expected a single document"),
    ],
)
def test_odd_configs_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        config_sections(str(tmp_path / "c.yaml"))
    assert len(str(caught.value).splitlines()) == 1


def test_aliases_of_a_reasonable_config_are_taken(tmp_path: Path) -> None:
    text = "base: &b {lr: 0.1}\nmodel:\n  <<: *b\n  width: 3\ndata: [*b, *b]\n"
    (tmp_path / "c.yaml").write_text(text)
    found = config_sections(str(tmp_path / "c.yaml"))
    assert found["model"] == {"lr": 0.1, "width": 3}
    assert found["data"] == [{"lr": 0.1}] * 2


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
    with pytest.raises(StateError, match="NaN is no number of JSON"):
        read_pass(tmp_path / "a.json")


def test_names_that_are_no_text_are_shown_as_question_marks(tmp_path: Path) -> None:
    folder = tmp_path / "salmon_logs"
    run_files(folder)
    path = folder / "pass-validation-000001.json"
    path.write_text(path.read_text().replace('"<b>"', '"\\ud800x"'))
    odd = os.fsdecode(b"pass-\xff-000001.json")
    (folder / odd).write_bytes(path.read_bytes())
    page = render(gather(tmp_path), "run")
    assert "?x" in page
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


def test_long_names_of_flags_are_cut_and_three_filters_kept(tmp_path: Path) -> None:
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
    assert max(len(flag.top) for flag in section.flags) == 3


def monitor_state(**changes: Any) -> dict[str, Any]:
    monitor = SaliencyMonitor()
    monitor._memory.take("validation", hand_record(), FilterIndex.from_model(PlainNet()))
    return monitor.state_dict() | changes


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1], "the monitor's state is list"),
        (monitor_state(version=True), "version True but 2"),
        (monitor_state(version=torch.zeros(2)), r"version Tensor\[2\] but 2"),
        (monitor_state(finished=None), "finished passes is NoneType"),
        (monitor_state(finished={"validation": "3"}), "passes.validation is str where int"),
        (monitor_state(finished={"validation": -3}), "whole numbers >= 0"),
        (monitor_state(fits={"validation": 3}), "fits.validation is int"),
        (monitor_state(views=None), "views is NoneType"),
        (monitor_state(views={"histories": {}, "blamed": {"a": {"b": 1.5}}}), "is float where int"),
    ],
)
def test_a_state_of_another_form_changes_nothing(state: Any, message: str) -> None:
    monitor = SaliencyMonitor()
    monitor.load_state_dict(monitor_state(finished={"validation": 7}))
    with pytest.raises(StateError, match=message):
        monitor.load_state_dict(state)
    assert monitor.state_dict()["finished"] == {"validation": 7}
    assert list(monitor.state_dict()["views"]["histories"]) == ["validation"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": []}, "layers is missing"),
        ({"layers": [("a", "b")]}, r"layers\[0\] is tuple where LayerRow"),
        ({"layers": [("a", "b", 0)] * 3}, "a ranking or a filter is missing"),
        ({"counts": {}}, "a ranking or a filter is missing"),
        ({"counts": {"pot": torch.zeros(1, 2).long()}}, r"of shape \(1, 2\)"),
        ({"passes": torch.zeros(1)}, "torch.float32"),
        ({"steps": torch.zeros(2).long()}, r"steps is of shape \(2,\)"),
        ({"samples": torch.tensor([-1])}, "a count is negative"),
    ],
)
def test_a_history_of_another_form_is_refused(changes: Any, message: str) -> None:
    state = History.of([hand_record()]).state_dict()
    assert History.from_state_dict(state).samples.tolist() == [200]
    with pytest.raises(StateError, match=message):
        History.from_state_dict(state | changes)
    with pytest.raises(StateError, match="steps is missing"):
        History.from_state_dict({k: v for k, v in state.items() if k != "steps"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("-2.5E4", -25000.0), ("1_0.5", 10.5), (".5", 0.5), ("7", 7), ("1.", 1.0),
        ("-.inf", -math.inf), ("2026-01-02", "2026-01-02"), ("e5", "e5"), ("1e", "1e"),
        ("v1.2.3", "v1.2.3"), ("-", "-"),
    ],
)  # fmt: skip
def test_plain_values_of_a_config_are_those_of_lightnings_command_line(
    tmp_path: Path, text: str, value: Any
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"model: {{options: {{a: {text}}}}}")
    found = config_sections(str(path))["model"]["options"]["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a: [{'1,' * 400_000}1]", "more than 100000 values"),
        (f"a: {'1:' + ':'.join(['59'] * 300_000)}", "more than 10000 letters"),
    ],
)
def test_configs_that_take_long_to_read_are_refused_early(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        config_sections(str(path))
