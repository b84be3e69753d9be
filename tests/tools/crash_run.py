"""A training to be killed, and what must hold of the folder that it leaves.

The run is small but has everything that is written while it goes on: checkpoints, event files, and
the monitor's flags, records, pictures and fits. Resumed from its last checkpoint, it does what it
would have done unbroken, bit for bit: no random number is drawn in it, and its loader goes on
behind the batches it gave.
"""

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from salmon import FilterIndex, SaliencyMonitor, ViewSettings
from salmon.diagnosis import SCHEMA as FLAG_SCHEMA
from salmon.files import tensor_hash
from salmon.tails import load_fit
from salmon.views import gather, write_report
from salmon.views.files import read_flags, read_pass, read_pictures
from tests.trainers import Module, digits, loader, trainer

PHASES = (
    "setting up", "training", "measuring", "fitting, drawing, writing", "writing a checkpoint",
    "ending",
)  # fmt: skip
EPOCHS = 2
BATCHES = 8  # in an epoch, with a validation after every fourth
OWN = ("run", "seconds", "share", "time", "origin")
"""What no two runs have in common."""
PASSES = 5  # four in fit, one in validate


class Resumable(DataLoader[Any]):
    """Keeps its place in the epoch in checkpoints, as Lightning offers to loaders."""

    place = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        skipped, number = self.place, 0
        for number, batch in enumerate(super().__iter__(), 1):
            if number > skipped:
                self.place = number % len(self)
                yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


class Phases(Callback):
    """Says what the run is doing, in a byte that another process can read."""

    def __init__(self, byte: mmap.mmap | bytearray) -> None:
        self.byte = byte

    def say(self, phase: str) -> None:
        self.byte[0] = PHASES.index(phase)

    def on_train_start(self, *given: Any) -> None:
        self.say("training")

    def on_train_batch_start(self, *given: Any) -> None:
        self.say("training")

    def on_validation_start(self, *given: Any) -> None:
        self.say("measuring")

    def on_validation_epoch_end(self, *given: Any) -> None:
        self.say("fitting, drawing, writing")

    def on_validation_end(self, *given: Any) -> None:
        self.say("writing a checkpoint")

    def on_train_end(self, *given: Any) -> None:
        self.say("ending")


def monitor() -> SaliencyMonitor:
    views = ViewSettings(pictures=2, thumbnails=4)
    return SaliencyMonitor(level=0.7, top_k=5, views=views, strict=True)


def run(folder: Path, byte: mmap.mmap | bytearray) -> None:
    """Fit and validate, from the last checkpoint in the folder if there is one."""
    torch.manual_seed(2)
    module = Module()
    module.net.head[0] = nn.Dropout(0.0)  # random numbers do not resume
    keep = ModelCheckpoint(folder / "checkpoints", save_last=True, save_on_train_epoch_end=False)
    work = trainer(
        folder, Phases(byte), monitor(), keep, max_epochs=EPOCHS, val_check_interval=BATCHES // 2,
        enable_checkpointing=True, logger=TensorBoardLogger(folder, name="", version=""),
        num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    data = Resumable(digits(8 * BATCHES), 8)
    work.fit(module, data, loader(), ckpt_path=last_checkpoint(folder))
    work.validate(module, loader(), verbose=False)


def last_checkpoint(folder: Path) -> Path | None:
    """Where a run goes on."""
    path = folder / "checkpoints" / "last.ckpt"
    return path if path.exists() else None


class Findings:
    """What was read in a folder, and what was wrong with it."""

    def __init__(self, folder: Path) -> None:
        self.troubles: list[str] = []
        self.checkpoints = self.files = self.events = self.cut_off = 0
        self.parts = len(list((folder / "salmon_logs").glob(".*.part")))
        for path in sorted(folder.glob("checkpoints/*")):
            self.checkpoints += self._holds(path, load_state)
        for path in sorted((folder / "salmon_logs").glob("[!.]*")):
            self.files += self._holds(path, read_file)
        for path in sorted(folder.glob("*tfevents*")):
            self.events += self._holds(path, read_events)
            self.cut_off += cut_off(path)
        if list((folder / "salmon_logs").glob("pass-*.json")):
            self._holds(folder, make_report)

    def _holds(self, path: Path, read: Any) -> bool:
        """Whether a file can be read."""
        try:
            read(path)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what is looked for
            self.troubles.append(f"{path.name}: {type(error).__name__}: {error}")
            return False
        return True


def load_state(path: Path) -> dict[str, Any]:
    """A checkpoint, of which a monitor takes its part."""
    found: dict[str, Any] = torch.load(path, weights_only=True)
    one = monitor()
    one.load_state_dict(found["callbacks"][one.state_key])
    for scope in one.state_dict()["fits"]:
        one.last_fit(Module(), scope)
    return found


def read_file(path: Path) -> Any:
    """A file of the monitor, by its name."""
    kind = path.name.partition("-")[0]
    if path.suffix in (".json", ".jsonl"):
        for line in path.read_text().splitlines():
            json.loads(line)
    if kind == "pass":
        return read_pass(path)
    if kind == "flagged":
        return list(read_flags(path, FLAG_SCHEMA))
    if kind == "pictures":
        return read_pictures(path)
    if kind == "fit":
        return load_fit(path, FilterIndex.from_model(Module()))
    raise ValueError("nothing of this name is written")


def read_events(path: Path) -> int:
    """The events of a file, to its end."""
    return sum(1 for _ in EventFileLoader(str(path)).Load())


def cut_off(path: Path) -> bool:
    """Whether the last record of an event file is not whole."""
    content, place = path.read_bytes(), 0
    while place < len(content):  # length, its checksum, the record, its checksum
        place += 16 + int.from_bytes(content[place : place + 8], "little")
    return place > len(content)


def make_report(folder: Path) -> None:
    """The report of a run that was killed."""
    write_report(folder / "report.html", gather(folder), "A run")


def results(folder: Path) -> dict[str, Any]:
    """Everything that a run ends with and that should not depend on whether it was broken."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "salmon_logs").glob("[!.]*")):
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            found[path.name] = {k: v for k, v in record.items() if k not in OWN}
        elif path.suffix == ".safetensors":
            found[path.name] = _bits(load_file(path))
        else:
            found[path.name] = path.read_bytes()
    checkpoint = load_state(folder / "checkpoints" / "last.ckpt")
    state = checkpoint["callbacks"][monitor().state_key]
    del state["run"]
    found["state of the monitor"] = _bits(state)
    for name in ("state_dict", "optimizer_states", "global_step"):
        found[name] = _bits(checkpoint[name])
    return found


def _bits(value: Any) -> Any:
    """Tensors as hashes, so that NaN equals NaN."""
    return pytree.tree_map_only(torch.Tensor, tensor_hash, value)


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    missing = object()
    names = sorted(set(one) | set(other))
    return [name for name in names if one.get(name, missing) != other.get(name, missing)]
