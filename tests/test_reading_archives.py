"""Archives and checkpoints of others: no code, no long waits, no more memory than the files."""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from salmon import InputError, StateError
from salmon.archives import MOST_PICKLE_BYTES, check_tensors_file, load_archive
from salmon.cli.checkpoints import (
    Checkpoint,
    load_weights,
    read_checkpoint,
    write_checkpoint,
)
from salmon.pickles import check_pickle
from tests.hostile import archive_of, entries_of
from tests.readers import saved


def test_an_archive_is_read_as_it_was_and_a_flipped_bit_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    value: dict[str, Any] = {"a": torch.arange(1000.0), "b": [1, (2.5, None)], "c": torch.zeros(())}
    torch.save(value, path)
    found = load_archive(path)
    assert torch.equal(found["a"], value["a"])
    assert found["b"] == value["b"]
    data = bytearray(path.read_bytes())
    place = data.index(torch.tensor([500.0, 501.0]).numpy().tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert not torch.equal(torch.load(path, weights_only=True)["a"], value["a"])  # unnoticed there
    with pytest.raises(zipfile.BadZipFile, match="Bad CRC-32"):
        load_archive(path)


def two_of_a_name(entries: dict[str, bytes]) -> bytes:
    return archive_of([*entries.items(), *entries.items()])


def compressed(entries: dict[str, bytes]) -> bytes:
    return archive_of(list(entries.items()), zipfile.ZIP_DEFLATED)


def script(entries: dict[str, bytes]) -> bytes:
    return archive_of([*entries.items(), ("archive/constants.pkl", b"")])


def with_pickle(content: bytes) -> Any:
    return lambda entries: archive_of(
        [(n, content if n.endswith("data.pkl") else v) for n, v in entries.items()]
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (two_of_a_name, "two entries have one name"),
        (compressed, "compressed or encrypted"),
        (script, "TorchScript"),
        (with_pickle(bytes(MOST_PICKLE_BYTES + 1)), "plain values take 4194305 bytes"),
        (with_pickle(b"\x80\x02cbuiltins\nbytearray\nK\x05\x85R."), "calls builtins bytearray"),
        (with_pickle(b"\x80\x02c__builtin__\nbytearray\nK\x05\x85R."), "calls __builtin__"),
        (with_pickle(b"\x80\x02cos\nsystem\nX\x01\0\0\0x\x85R."), "Weights only load failed"),
    ],
    ids=["names", "compressed", "script", "long", "array", "old array", "system"],
)
def test_archives_that_ask_for_more_than_they_hold_are_refused(
    tmp_path: Path, make: Any, message: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(make(dict(entries_of(saved(torch.ones(3))))))
    with pytest.raises((InputError, UnpicklingError), match=message):
        load_archive(path)
    with pytest.raises(StateError, match="cannot be read"):
        read_checkpoint(path)


def doubling(depth: int) -> bytes:
    """A pickle of a dictionary whose key is a tuple of a tuple twice, of a tuple twice ..."""
    again = b"".join(b"q%ch%c\x86" % (place, place) for place in range(depth))
    return b"\x80\x02}()" + again + b"K\x01u."


def test_a_key_that_would_take_years_to_hash_is_refused(tmp_path: Path) -> None:
    entries = dict(entries_of(saved({"a": 1})))
    (name,) = [each for each in entries if each.endswith("data.pkl")]
    for depth in (10, 60):
        changed = entries | {name: doubling(depth)}
        (tmp_path / f"{depth}").write_bytes(archive_of(list(changed.items())))
    assert list(load_archive(tmp_path / "10").values()) == [1]
    torch.save({"w": torch.ones(3)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old").read_bytes()
    start = old.index(b"\x80\x02}q\x00X\x01\x00\x00\x00w")
    (tmp_path / "old").write_bytes(old[:start] + doubling(60) + old[start:])
    for path in ("60", "old"):
        with pytest.raises(UnpicklingError, match="more than 10000000 parts"):
            load_archive(tmp_path / path, legacy=True)
        with pytest.raises(StateError, match="cannot be read safely"):
            read_checkpoint(tmp_path / path)


def test_pickles_of_every_protocol_are_looked_through() -> None:
    shared = (1, 2)
    for protocol in range(6):
        check_pickle(pickle.dumps([shared, {"a": shared}, OrderedDict(b=None)], protocol))
    deep: tuple[Any, ...] = ()
    for _ in range(30):
        deep = (deep, deep)
    for protocol in range(6):
        with pytest.raises(UnpicklingError, match="more than 10000000 parts"):
            check_pickle(pickle.dumps(deep, protocol))


def test_text_is_encoded_by_the_codec_of_pickle_only(tmp_path: Path) -> None:
    entries = dict(entries_of(saved({"a": 1})))
    (name,) = [each for each in entries if each.endswith("data.pkl")]
    for codec in (b"latin1", b"punycode"):
        words = [b"X%c\x00\x00\x00%s" % (len(word), word) for word in (b"\xc3\xa9t\xc3\xa9", codec)]
        call = b"\x80\x02c_codecs\nencode\n" + b"".join(words) + b"\x86R."
        path = tmp_path / codec.decode()
        path.write_bytes(archive_of(list((entries | {name: call}).items())))
    assert load_archive(tmp_path / "latin1") == b"\xe9t\xe9"
    with pytest.raises(UnpicklingError, match="encodes text as 'punycode'"):
        load_archive(tmp_path / "punycode")


def test_what_is_no_pickle_is_refused() -> None:
    for content in (b"", b"no", b"\x80\x02h\x07.", b"\x80\x02\x86.", b"\x80\x02t."):
        with pytest.raises(UnpicklingError, match="it is no pickle"):
            check_pickle(content)


def test_checkpoints_of_the_older_format_are_read(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old").state_dict["w"].tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(InputError, match="no archive of torch"):
        load_archive(tmp_path / "old")
    with pytest.raises(InputError, match="bytes are more than 10"):
        load_archive(tmp_path / "old", most=10)


def test_objects_in_a_checkpoint_need_trust(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(1)}, "path": Path("x")}, tmp_path / "a")
    with pytest.raises(StateError, match="use --weights_only false"):
        read_checkpoint(tmp_path / "a")
    assert read_checkpoint(tmp_path / "a", weights_only=False).content["path"] == Path("x")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({1: torch.ones(1)}, "holds no state_dict"),
        ({"w": torch.ones(2, 2).to_sparse()}, "no ordinary tensor"),
        ({"w": torch.ones(1, device="meta")}, "no ordinary tensor"),
        ({"w": torch.ones(1).expand(1 << 25)}, "no ordinary tensor"),
        ({str(i): torch.ones(1).expand(1 << 23) for i in range(3)}, "2 of shape .* no ordinary"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")  # torch's
def test_weights_that_are_none_are_refused(
    tmp_path: Path, state: dict[Any, Tensor], message: str
) -> None:
    for content in (state, {"state_dict": state}):
        torch.save(content, tmp_path / "a.ckpt")
        with pytest.raises(StateError, match=message):
            read_checkpoint(tmp_path / "a.ckpt")


def test_small_buffers_of_equal_numbers_are_taken(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(3, 5), "s": torch.ones(())}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt").state_dict["w"].shape == (3, 5)


@pytest.mark.parametrize("content", [b"", b"1234567", bytes(8), b"\xff" * 8, bytes([9, *bytes(9)])])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match="bytes with a header of"):
        check_tensors_file(tmp_path / "a")


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


def test_a_checkpoint_of_a_package_that_is_not_here_is_refused(tmp_path: Path) -> None:
    entries = dict(entries_of(saved({"a": 1})))
    (name,) = [each for each in entries if each.endswith("data.pkl")]
    call = b"\x80\x02cnot_installed_here\nNet\n)R."
    (tmp_path / "a").write_bytes(archive_of(list((entries | {name: call}).items())))
    with pytest.raises(StateError, match=r"cannot be read .*not_installed_here"):
        read_checkpoint(tmp_path / "a", weights_only=False)


def test_a_checkpoint_with_many_plain_values_needs_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("salmon.archives.MOST_PICKLE_BYTES", 1000)
    torch.save({"state_dict": {"w": torch.ones(1)}, "seen": list(range(1000))}, tmp_path / "a")
    with pytest.raises(StateError, match=r"more than 1000.*use --weights_only false"):
        read_checkpoint(tmp_path / "a")
    assert read_checkpoint(tmp_path / "a", weights_only=False).state_dict["w"].tolist() == [1.0]
