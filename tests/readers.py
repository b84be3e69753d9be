"""Every reader of the package, with what it reads spoilt, and what it took put to its use."""

import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import safetensors.torch
import torch

from salmon import (
    FilterIndex,
    Patch,
    SaliencyMonitor,
    StateError,
    TailFit,
    Tails,
    fit_tails,
    rank_filters,
)
from salmon.cli.checkpoints import load_weights, read_checkpoint
from salmon.cli.settings import config_sections
from salmon.ranking import SCHEMA
from salmon.repairs.edit import Directions
from salmon.repairs.patch import _content_hash
from salmon.tails import fit_state, load_fit
from salmon.views import History, gather
from salmon.views.charts import heat_map, share_lines
from salmon.views.files import read_flags, read_pass, read_pictures
from salmon.views.findings import findings
from salmon.views.report.page import render
from salmon.views.svg import svg
from tests.hostile import (
    hostile_pickles,
    spoilt_archive,
    spoilt_tensors,
    spoilt_yaml,
    tensors_header,
)
from tests.mutations import changed, odd_object, spoilt_bytes, spoilt_json
from tests.networks import PlainNet
from tests.project_of_a_user import CONFIG
from tests.records import hand_record, run_files
from tests.shifts import trained

READERS = (
    "load_fit", "TailFit.from_state_dict", "Tails.load_state_dict",
    "SaliencyMonitor.load_state_dict", "read_pass", "read_flags", "read_pictures", "gather",
    "Patch.load", "read_checkpoint, torch", "read_checkpoint, safetensors", "config_sections",
)  # fmt: skip
"""Names of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A reader and its spoilt input."""

    name: str
    make: Callable[[Random], Any]
    """One case."""
    read: Callable[[Any], object]
    """Read it and put it to its use."""


def readers(folder: Path, canary: Path) -> list[Reader]:
    """Every reader of the package.

    Args:
        folder: For the files of cases.
        canary: A file that hostile input would make.
    """
    torch.manual_seed(0)
    return [
        *_readers_of_fits(folder / "fit.pt", canary),
        *_readers_of_states(),
        *_readers_of_views(folder),
        *_readers_of_commands(folder, canary),
    ]


def saved(value: Any) -> bytes:
    """What torch.save writes."""
    memory = io.BytesIO()
    torch.save(value, memory)
    return memory.getvalue()


def _spoilt_save(random: Random, value: Any, canary: Path) -> bytes:
    """A file of torch's, spoilt in its bytes, its entries or its content."""
    what = random.random()
    if what < 0.3:
        return spoilt_bytes(random, saved(value))
    if what < 0.6:
        return spoilt_archive(random, saved(value), hostile_pickles(canary))
    if what < 0.7:
        return random.choice(hostile_pickles(canary))
    return saved(changed(random, value, odd_object))


def _file_reader(
    name: str, path: Path, make: Callable[[Random], bytes], use: Callable[[Path], object]
) -> Reader:
    """A reader of one file."""

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return use(path)

    return Reader(name=name, make=make, read=read)


def _readers_of_fits(path: Path, canary: Path) -> list[Reader]:
    """``load_fit``, ``TailFit`` and ``Tails``."""
    index = FilterIndex.from_model(PlainNet())
    profile = torch.rand(200, len(index))
    tails = Tails(len(index), 64)
    tails.update(profile)
    fit = fit_tails(tails)
    stream = tails.state_dict()

    def use_fit(found: TailFit) -> None:
        assert sum(found.counts().values()) == len(found.status)
        assert found.effective_level == found.effective_level or not found.samples
        for method in ("pot", "zscore"):
            ranking = rank_filters(torch.rand(5, len(found.status)), found, method)
            assert not bool((ranking.p > 1).any())

    def use_stream(state: Any) -> None:
        fresh = Tails(len(index), 64)
        fresh.load_state_dict(state)
        fresh.update(profile)
        fresh.merge(tails)
        assert fit_tails(fresh, warn=False).threshold.shape == (len(index),)
        fresh.load_state_dict(fresh.state_dict())

    return [
        _file_reader(
            "load_fit", path, lambda r: _spoilt_save(r, fit_state(fit, index), canary),
            lambda p: use_fit(load_fit(p, index)),
        ),
        Reader(
            name="TailFit.from_state_dict",
            make=lambda r: changed(r, fit.state_dict(), odd_object),
            read=lambda state: use_fit(TailFit.from_state_dict(state)),
        ),
        Reader(
            name="Tails.load_state_dict",
            make=lambda r: changed(r, stream, odd_object),
            read=use_stream,
        ),
    ]  # fmt: skip


def _readers_of_states() -> list[Reader]:
    """The monitor's part of a checkpoint."""
    model = PlainNet()
    index = FilterIndex.from_model(model)
    tails = Tails(len(index))
    tails.update(torch.rand(200, len(index)))
    monitor = SaliencyMonitor()
    monitor.load_state_dict(
        monitor.state_dict()
        | {"finished": {"validation": 3, "test": 1}}
        | {"fits": {"validation": fit_state(fit_tails(tails), index)}}
    )
    for number in range(3):
        monitor._memory.take("validation", hand_record(number), index)
    state = monitor.state_dict()

    def use(spoilt: Any) -> None:
        fresh = SaliencyMonitor()
        fresh.load_state_dict(spoilt)
        for scope in fresh.state_dict()["fits"]:
            fresh.last_fit(model, scope)
        for scope in {"validation", *fresh.state_dict()["views"]["histories"]}:
            history, _ = fresh._memory.take(scope, hand_record(5), index)
            _draw(history)
        fresh.load_state_dict(fresh.state_dict())

    return [
        Reader(
            name="SaliencyMonitor.load_state_dict",
            make=lambda r: changed(r, state, odd_object),
            read=use,
        )
    ]


def _draw(history: History) -> None:
    """What is shown of a history."""
    assert findings(hand_record(5), history)
    for method in ("pot", "zscore"):
        assert svg(share_lines(history, method), "a")
        assert svg(heat_map(history, method), "b")


def _readers_of_views(folder: Path) -> list[Reader]:
    """Records, flags, pictures, and a whole folder."""
    run = folder / "run"
    run_files(run)
    files = {path.name: path.read_bytes() for path in run.iterdir()}
    one, two = "pass-validation-000000.json", "pass-validation-000001.json"
    flags, pictures = "flagged-validation-000001.jsonl", "pictures-validation.jsonl"

    def lines(random: Random, name: str) -> bytes:
        texts = files[name].splitlines(keepends=True)[:20]
        at = random.randrange(len(texts))
        texts[at] = spoilt_json(random, json.loads(texts[at])) + b"\n"
        return b"".join(texts)

    def make_folder(random: Random) -> dict[str, bytes | str]:
        name = random.choice((one, two, two, two, flags, flags, pictures))
        if random.random() < 0.1:
            return {name: random.choice(("folder", "link", "pipe", "device", "gone", "copy"))}
        data = lines(random, name) if name.endswith("l") else spoilt_json(
            random, json.loads(files[name])
        )  # fmt: skip
        return {name: data}

    def read_folder(case: dict[str, bytes | str]) -> None:
        for path in run.iterdir():
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        for name in (one, two, flags, pictures):
            (run / name).write_bytes(files[name])
        for name, content in case.items():
            if isinstance(content, bytes):
                (run / name).write_bytes(content)
            else:
                _replace(run / name, content)
        assert render(gather(folder), "run").encode()

    return [
        _file_reader(
            "read_pass", folder / "record", lambda r: spoilt_json(r, json.loads(files[two])),
            read_pass,
        ),
        _file_reader(
            "read_flags", folder / "flags", lambda r: lines(r, flags),
            lambda p: list(read_flags(p, SCHEMA)),
        ),
        _file_reader(
            "read_pictures", folder / "pictures", lambda r: lines(r, pictures),
            lambda p: list(read_pictures(p)),
        ),
        Reader(name="gather", make=make_folder, read=read_folder),
    ]  # fmt: skip


def _replace(path: Path, kind: str) -> None:
    """Put something that is no file in place of a file."""
    data = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(path.name)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "copy":
        path.with_name(os.fsdecode(b"pass-\xff-000001.json")).write_bytes(data)


def _readers_of_commands(folder: Path, canary: Path) -> list[Reader]:
    """Patches, checkpoints and configs."""
    network = trained()
    weights = network.state_dict()
    index = FilterIndex.from_model(network)
    gradients = {name: torch.ones_like(p) for name, p in network.named_parameters()}
    edit = Directions(network, index, gradients).step([1, 3, 20], 0.1, normalised=True)
    patch = Patch.make(network, edit, {"seed": 0, "gain": 0.25})
    patch.save(folder / "good")
    good = (folder / "good").read_bytes()
    checkpoint = {"state_dict": weights, "epoch": 3, "callbacks": {"a": {"b": (1, 2.0, None)}}}

    def make_patch(random: Random) -> bytes:
        if random.random() < 0.5:
            return spoilt_tensors(random, good)
        return resealed(random, good)

    def make_tensors(random: Random) -> bytes:
        return spoilt_tensors(random, safetensors.torch.save(weights))

    def use_patch(path: Path) -> None:
        found = Patch.load(path)
        state = {name: value.clone() for name, value in weights.items()}
        if found.apply(state):
            assert found.revert(state)
        assert all(torch.equal(value, weights[name]) for name, value in state.items())

    def use_checkpoint(path: Path) -> None:
        found = read_checkpoint(path)
        load_weights(trained(), found, source="the case")
        with suppress(StateError):  # there are other weights
            patch.apply(found.state_dict)

    def use_config(path: Path) -> None:
        text = json.dumps(config_sections(str(path)), default=str, skipkeys=True)
        assert len(text) < 1 << 24

    return [
        _file_reader("Patch.load", folder / "patch", make_patch, use_patch),
        _file_reader(
            "read_checkpoint, torch", folder / "a.ckpt",
            lambda r: _spoilt_save(r, checkpoint if r.random() < 0.7 else weights, canary),
            use_checkpoint,
        ),
        _file_reader(
            "read_checkpoint, safetensors", folder / "a.safetensors", make_tensors, use_checkpoint
        ),
        _file_reader(
            "config_sections", folder / "config.yaml", lambda r: spoilt_yaml(r, CONFIG, canary),
            use_config,
        ),
    ]  # fmt: skip


def resealed(random: Random, data: bytes) -> bytes:
    """A patch that somebody changed who also made its checksum fit."""
    tensors = safetensors.torch.load(data)
    text = json.loads(tensors_header(data)[0]["__metadata__"]["salmon"])
    if random.random() < 0.7:
        text = changed(random, text)
    else:
        name = random.choice(list(tensors))
        found = changed(random, tensors[name], odd_object)
        tensors[name] = found if isinstance(found, torch.Tensor) else torch.zeros(3)
    try:
        text.pop("content", None)
        text["content"] = _content_hash(tensors, text)
        return safetensors.torch.save(tensors, {"salmon": json.dumps(text)})
    except Exception:  # noqa: BLE001 - not everything can be written
        return spoilt_tensors(random, data)
