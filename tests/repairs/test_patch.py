"""Patches: on and off to the bit, and never onto other weights."""

import io
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from salmon import FilterIndex, InputError, Patch, StateError
from salmon.repairs.edit import Change, Edit, plain_layout, state_of, step_edit
from salmon.repairs.patch import FORMAT
from tests.shifts import trained


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(network: nn.Module, other: dict[str, Tensor]) -> bool:
    return all(torch.equal(v, other[name]) for name, v in network.state_dict().items())


def patch_of(network: nn.Module, rate: float = 0.1) -> Patch:
    index = FilterIndex.from_model(network)
    torch.manual_seed(1)
    gradients = {name: torch.randn_like(p) for name, p in network.named_parameters()}
    edit = step_edit(state_of(network), index, [1, 3, 20], gradients, rate, normalised=True)
    return Patch.make(network, edit, {"seed": 0, "gain": 0.25})


def edits(network: nn.Module) -> dict[str, Edit]:
    """One of every kind of tensor that a remedy changes."""
    state = state_of(network)
    found = {}
    for name in ("0.weight", "1.weight", "1.running_mean", "8.weight", "8.bias"):
        layout = plain_layout(name, state[name])
        channels = torch.arange(0, layout.filters, 2)
        values = state[name][channels].reshape(len(channels), -1) * 1.5 + 0.25
        found[name] = Edit((Change(layout, channels, values),))
    found["all"] = Edit(tuple(change for edit in found.values() for change in edit.changes))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", edits(trained()))
def test_patches_of_any_tensor_go_on_and_off_to_the_bit_across_a_checkpoint(
    tmp_path: Path, dtype: torch.dtype, kind: str
) -> None:
    network = trained().to(dtype)
    before = state(network)
    Patch.make(network, edits(network)[kind]).save(tmp_path / "p")
    torch.save(network.state_dict(), tmp_path / "old.pt")
    patch = Patch.load(tmp_path / "p")
    on_disk = torch.load(tmp_path / "old.pt", weights_only=True)
    assert patch.apply(on_disk)
    assert patch.apply(network)
    assert same(network, on_disk)
    changed = {name for name in before if not torch.equal(before[name], on_disk[name])}
    assert changed == {change.layer.weight for change in patch.edit.changes}
    assert patch.revert(on_disk)
    assert patch.revert(network)
    assert same(network, before)
    assert all(torch.equal(on_disk[name], before[name]) for name in before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_patch_goes_on_and_off_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    network = trained().to(dtype)
    before = state(network)
    patch_of(network).save(tmp_path / "p")
    patch = Patch.load(tmp_path / "p")
    assert patch.info == {"seed": 0, "gain": 0.25}
    assert same(network, before)
    assert patch.apply(network)
    patched = state(network)
    assert not same(network, before)
    assert not patch.apply(network)  # twice is once
    assert same(network, patched)
    assert patch.revert(network)
    assert same(network, before)
    assert not patch.revert(network)


def test_a_patch_goes_onto_a_state_dict_and_a_compiled_network() -> None:
    network = trained()
    patch, plain = patch_of(network), state(network)
    assert patch.apply(plain)
    compiled = torch.compile(network)
    assert isinstance(compiled, nn.Module)
    patch.apply(compiled)
    assert same(network, plain)


def test_only_the_touched_filters_change() -> None:
    network = trained()
    before = state(network)
    patch_of(network).apply(network)
    after = state(network)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"0.weight", "3.weight"}
    rows = (before["0.weight"] != after["0.weight"]).flatten(1).any(1).nonzero().squeeze(1)
    assert rows.tolist() == [1, 3]


def test_tied_weights_stay_tied() -> None:
    network = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False))
    network[1].weight = network[0].weight
    index = FilterIndex.from_model(network)
    gradients = {name: torch.ones_like(p) for name, p in network.named_parameters()}
    edit = step_edit(state_of(network), index, [0], gradients, 0.1, normalised=False)
    patch = Patch.make(network, edit)
    assert patch.apply(network)
    assert not patch.apply(network)
    assert network[1].weight is network[0].weight
    assert patch.revert(network)
    apart = {name: value.clone() for name, value in network.state_dict().items()}
    assert patch.apply(apart)
    assert torch.equal(apart["0.weight"], apart["1.weight"])
    assert patch.revert(apart)
    assert all(torch.equal(value, apart[name]) for name, value in network.state_dict().items())


def test_other_weights_are_refused_with_the_reason() -> None:
    network = trained()
    patch = patch_of(network)
    other = trained()
    with torch.no_grad():
        other.get_parameter("8.bias")[0] += 1
    before = state(other)
    for act in (patch.apply, patch.revert):
        with pytest.raises(StateError, match=r"1 of \d+ tensors differ, such as 8\.bias"):
            act(other)
    assert same(other, before)
    half = trained().half()
    with pytest.raises(StateError, match=r"float32, but here it has \d+ of torch.float16"):
        patch.apply(half)
    with pytest.raises(StateError, match=r"are missing here, such as 1\.bias"):
        patch.apply(nn.Sequential(nn.Conv2d(3, 4, 3)))
    patch.apply(network)
    with torch.no_grad():
        network.get_parameter("0.weight")[1] *= 1.01
    with pytest.raises(StateError, match=r"such as 0\.weight"):
        patch.apply(network)


def test_the_same_patch_gives_the_same_bytes(tmp_path: Path) -> None:
    network = trained()
    for name in ("one", "other"):
        patch_of(network).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("patch") / "good"
    patch_of(trained()).save(path)
    return path.read_bytes()


@given(st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
def test_a_changed_file_is_refused(tmp_path: Path, good: bytes, data: st.DataObject) -> None:
    path = tmp_path / "bad"
    at = data.draw(st.integers(0, len(good) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(good[:at])
    else:
        flip = data.draw(st.integers(1, 255))
        path.write_bytes(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :])
    try:
        patch = Patch.load(path)
    except StateError:
        return
    # Spaces that pad the header may change; what is read is all the same.
    patch.apply(trained())
    patch.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == good


def pickled(path: Path) -> None:
    torch.save({"x": torch.ones(3)}, path)


def other_tensors(path: Path) -> None:
    save_file({"x": torch.ones(3)}, path)


def other_version(path: Path) -> None:
    save_file({"x": torch.ones(3)}, path, {"salmon": '{"format": "salmon.patch/9"}'})


def no_mapping(path: Path) -> None:
    save_file({"x": torch.ones(3)}, path, {"salmon": "[1]"})


def incomplete(path: Path) -> None:
    save_file({"x": torch.ones(3)}, path, {"salmon": f'{{"format": "{FORMAT}"}}'})


def huge_header(path: Path) -> None:
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}" * 10)


@pytest.mark.parametrize(
    "make", [pickled, other_tensors, other_version, no_mapping, incomplete, huge_header]
)
def test_foreign_files_are_refused(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "file")
    with pytest.raises(StateError):
        Patch.load(tmp_path / "file")
    with pytest.raises(StateError, match="cannot be read"):
        Patch.load(tmp_path / "nowhere")


def resealed(network: nn.Module, **changes: object) -> Patch:
    """A patch whose description was changed by somebody who also made the checksum fit."""
    import dataclasses

    patch = patch_of(network)
    change = dataclasses.replace(patch.edit.changes[0], **changes)  # type: ignore[arg-type]
    edit = dataclasses.replace(patch.edit, changes=(change, *patch.edit.changes[1:]))
    return dataclasses.replace(patch, edit=edit)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("channels", torch.tensor([3, 1])),
        ("channels", torch.tensor([1, 99])),
        ("channels", torch.tensor([1])),
        ("channels", torch.tensor([1.0, 3.0])),
        ("values", torch.zeros(2, 3)),
        ("values", torch.zeros(2, 9, dtype=torch.float64)),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(
    tmp_path: Path, name: str, value: Tensor
) -> None:
    resealed(trained(), **{name: value}).save(tmp_path / "p")
    with pytest.raises(StateError, match="damaged or changed"):
        Patch.load(tmp_path / "p")


def test_a_patch_survives_a_checkpoint_on_disk() -> None:
    network = trained()
    patch = patch_of(network)
    memory = io.BytesIO()
    torch.save(network.state_dict(), memory)
    memory.seek(0)
    loaded = torch.load(memory, weights_only=True)
    assert patch.apply(loaded)
    fresh = trained()
    patch.apply(fresh)
    assert same(fresh, loaded)


def test_filters_out_of_range_make_no_edit() -> None:
    network = trained()
    index = FilterIndex.from_model(network)
    with pytest.raises(InputError, match="the index holds"):
        step_edit(state_of(network), index, [-1], {}, 0.1, normalised=False)
