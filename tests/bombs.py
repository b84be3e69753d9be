"""Files that ask for far more memory than they take, and what reading them costs.

``python -m tests.bombs FOLDER`` writes and reads one after the other in this process and prints a
line of JSON for each: its name, what came of it, and by how many MiB the process was larger at its
peak than at its start.
"""

import copy
import io
import json
import pickle
import re
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from salmon import FilterIndex, Patch, SalmonError, TailFit, Tails, fit_tails
from salmon.archives import MOST_PICKLE_BYTES
from salmon.cli.checkpoints import read_checkpoint
from salmon.cli.settings import config_sections
from salmon.ranking import SCHEMA as FLAG_SCHEMA
from salmon.tails import load_fit
from salmon.views import gather
from salmon.views.files import MOST_BYTES, MOST_LINE_BYTES, read_flags, read_pass, read_pictures
from tests.hostile import tensors_file, yaml_bomb
from tests.networks import PlainNet

MOST_GROWTH = 512
"""MiB that reading any of them may take."""

_MIB = 1 << 20

Bomb = tuple[Callable[[Path], object], Callable[[Path], object]]


def archive_with(path: Path, pickled: bytes, how: int = zipfile.ZIP_STORED, zeros: int = 0) -> None:
    """An archive of torch's with a pickle and an entry of zeros."""
    with zipfile.ZipFile(path, "w", how, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        with archive.open("archive/data/0", "w") as entry:
            for _ in range(zeros // _MIB):
                entry.write(bytes(_MIB))


def overlapping(path: Path) -> None:
    """2,000 entries of a megabyte that are all the same bytes of the file."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", _floats(_MIB // 4))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", bytes(_MIB))
        for number in range(1, 2000):
            entry = copy.copy(archive.getinfo("archive/data/0"))
            entry.filename = f"archive/data/{number}"
            archive.filelist.append(entry)


def _floats(numbers: int) -> bytes:
    """The pickle of a tensor whose storage has so many numbers."""
    memory = io.BytesIO()
    torch.save(torch.zeros(1), memory)
    found = zipfile.ZipFile(memory).read("archive/data.pkl")
    return found.replace(b"K\x01tq", b"J" + struct.pack("<i", numbers) + b"tq", 1)


def stretched(path: Path) -> None:
    """A weight of 128 GiB that is one number."""
    torch.save({"0.weight": torch.zeros(()).expand(1 << 35)}, path)


def record_with(path: Path, piece: bytes, pieces: int) -> None:
    """A record of a pass whose layers are so many pieces."""
    with path.open("wb") as file:
        file.write(b'{"schema": "salmon.pass/1", "layers": [')
        for _ in range(pieces // 10_000):
            file.write(piece * 10_000)
        file.write(b"0]}")


def fat_flags(path: Path) -> None:
    """Lines of the largest length, made of what takes most memory, in all fields."""
    start = f'{{"schema": "{FLAG_SCHEMA}", "kind": "sample", "id": "'.encode()
    end = (
        b'", "sample": 1, "batch": 1, "target": 1, "predicted": 1, "confidence_target": 1, '
        b'"confidence_predicted": 1, "loss": 1, "top": [], "more": ['
    )
    size = (MOST_LINE_BYTES - len(start) - len(end) - 10) // 2
    name = b"x" * (size - 4) + "\U0001f41f".encode()  # one character that widens all others
    line = start + name + end + b"[]," * (size // 3) + b"0]}\n"
    path.write_bytes(line * 20)


def fat_pictures(path: Path) -> None:
    """Small pictures with long captions of short lines."""
    picture = '{"schema": "salmon.picture/1", "number": 0, "sample": 0, "heat": null, "image": '
    picture += '{"media": "image/png", "data": "iVBORw0KGgo="}, "caption": ['
    path.write_bytes((picture.encode() + b'"ab",' * 100_000 + b'"c"]}\n') * 20)


def run_with_flags(folder: Path) -> None:
    """A folder of a run with such flags."""
    from tests.records import run_files

    folder.mkdir()
    run_files(folder)
    fat_flags(folder / "flagged-validation-000001.jsonl")


def bombs() -> dict[str, Bomb]:
    """By name: how it is written and how it is read."""
    index = FilterIndex.from_model(PlainNet())
    tensor = {"x": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 1 << 62]}}

    def fit(path: Path) -> object:
        return load_fit(path, index)

    def config(path: Path) -> object:
        return config_sections(str(path))

    def state(_path: Path) -> object:
        found = fit_tails(Tails(1, 2)).state_dict()
        for name, value in found.items():
            if isinstance(value, torch.Tensor):
                found[name] = value.squeeze().expand(1 << 34)
        return TailFit.from_state_dict(found)

    lists = b"\x80\x02](" + b"]" * (MOST_PICKLE_BYTES - 6) + b"e."
    return {
        "fit of 1 GiB of zeros, compressed": (
            lambda p: archive_with(p, _floats(1 << 28), zipfile.ZIP_DEFLATED, 1 << 30), fit),
        "fit whose plain values are 1 GiB of zeros, compressed": (
            lambda p: archive_with(p, bytes(1 << 30), zipfile.ZIP_DEFLATED), fit),
        "fit with 2,000 entries of the same megabyte": (overlapping, fit),
        "fit of as many lists as a pickle may have": (lambda p: archive_with(p, lists), fit),
        "fit of more lists": (lambda p: archive_with(p, lists + bytes(9)), fit),
        "fit that asks for an array of 8 GiB": (
            lambda p: archive_with(
                p, b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + pickle.encode_long(1 << 33).ljust(
                    5, b"\0") + b"\x85R."), fit),
        "fit that asks for a storage of 2 GiB": (
            lambda p: archive_with(p, _floats((1 << 29) - 1), zeros=_MIB), fit),
        "checkpoint of 1 GiB of zeros, compressed": (
            lambda p: archive_with(p, _floats(1 << 28), zipfile.ZIP_DEFLATED, 1 << 30),
            read_checkpoint),
        "checkpoint with a weight of 128 GiB": (stretched, read_checkpoint),
        "state of a fit with vectors of 128 GiB": (lambda p: None, state),
        "patch with a header of 2^60 bytes": (
            lambda p: p.write_bytes(struct.pack("<Q", 1 << 60) + b"{}" * 100), Patch.load),
        "patch with a tensor of 2^60 numbers": (
            lambda p: p.write_bytes(tensors_file(tensor, bytes(64))), Patch.load),
        "config of 10^60 values": (
            lambda p: p.write_text(yaml_bomb(60, merged=False)), config),
        "config of 10^60 merged keys": (
            lambda p: p.write_text(yaml_bomb(60, merged=True)), config),
        "config of 1 MiB of lists": (lambda p: p.write_text("a: " + "[" * (_MIB - 9)), config),
        "record of a pass of 64 MiB and a byte": (
            lambda p: record_with(p, b"[]," * 4, 64 * _MIB // 12 + 10_000), read_pass),
        "record of a pass of 10^7 layers": (
            lambda p: record_with(p, b'{"layer":"a","group":"b","filters":1},', 10**7), read_pass),
        "record of a pass of as many layers as it may have": (
            lambda p: record_with(p, b"[],", MOST_BYTES // 3 - 10_000), read_pass),
        "pictures of 10 MiB": (fat_pictures, read_pictures),
        "flags of 20 MiB, each as long as it may be": (
            fat_flags, lambda p: sum(1 for _ in read_flags(p, FLAG_SCHEMA))),
        "flag of 2 GiB in one line": (
            lambda p: _sparse(p, 1 << 31), lambda p: list(read_flags(p, FLAG_SCHEMA))),
        "run with such flags": (run_with_flags, gather),
    }  # fmt: skip


def _sparse(path: Path, size: int) -> None:
    """A file of zeros that takes no place."""
    with path.open("wb") as file:
        file.truncate(size)


def peak() -> float:
    """MiB that this process had at most."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    """Write, read, measure."""
    warnings.simplefilter("ignore")
    folder, prepared = Path(sys.argv[1]), bombs()
    start = peak()
    for number, (name, (write, read)) in enumerate(prepared.items()):
        path = folder / f"bomb{number}"
        write(path)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that from now on
        outcome = "read"
        try:
            value: Any = read(path)
            del value
        except SalmonError as error:
            outcome = f"{type(error).__name__}: {str(error)[:200]}"
        print(json.dumps([name, outcome, round(peak() - start)]), flush=True)
        if path.is_file():
            path.unlink()


if __name__ == "__main__":
    main()
