"""Kill a training again and again: ``python -m tests.crashes [--kills 50] [--seed 0]``.

Each time a fresh training is killed (SIGKILL) at a random moment, its files are looked at, and it
is resumed from its last checkpoint. Exit code 1 if a file cannot be read or the resumed run ends
with other fits, flags or records than an unbroken one. Children are forked to save their start.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from salmon import FilterIndex, SaliencyMonitor, ViewSettings
from salmon.ranking import SCHEMA
from salmon.tails import load_fit
from salmon.views.files import read_flags, read_pass, read_pictures
from tests.trainers import Module, digits, loader, trainer

VALIDATIONS = 6
LAST = Path("checkpoints") / "last.ckpt"


def network() -> Module:
    """Without dropout, since random numbers do not resume."""
    seed_everything(2, verbose=False)
    module = Module()
    module.net.head[0] = torch.nn.Dropout(0.0)
    return module


def train(folder: Path) -> None:
    """Train from the last checkpoint, or from the start where there is none."""
    monitor = SaliencyMonitor(level=0.7, top_k=5, strict=True, views=ViewSettings(pictures=1))
    keep = ModelCheckpoint(folder / LAST.parent, save_last=True, filename="best-{step}")
    # One validation an epoch: Lightning resumes an ordinary loader at the start of an epoch only.
    work = trainer(
        folder, monitor, keep, max_epochs=VALIDATIONS, enable_checkpointing=True,
        logger=TensorBoardLogger(folder, name="", version=""),
    )  # fmt: skip
    last = folder / LAST
    work.fit(network(), loader(digits(64)), loader(), ckpt_path=last if last.exists() else None)


def fork(task: Callable[[], object]) -> int:
    """Run a task in a child of its own, in silence; hand out its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        task()
        code = 0
    finally:
        os._exit(code)


def finished(child: int) -> bool:
    """Wait for a child; whether it ended well."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def look(folder: Path, index: FilterIndex) -> Counter[str]:
    """Read everything a killed run left; raises what a reader raises."""
    seen: Counter[str] = Counter()
    for path in folder.glob("checkpoints/*.ckpt"):
        torch.load(path, weights_only=True)
        seen["checkpoints"] += 1
    for path in folder.glob("*tfevents*"):
        for _ in EventFileLoader(str(path)).Load():
            seen["events"] += 1
    for path in (folder / "salmon").glob("*"):
        if path.name.startswith("."):
            seen["unfinished files"] += 1
        elif path.name.startswith("pass-"):
            read_pass(path)
            seen["passes"] += 1
        elif path.name.startswith("flagged-"):
            seen["flags"] += len(read_flags(path, SCHEMA))
            assert path.read_bytes().endswith(b"\n")
        elif path.name.startswith("pictures-"):
            seen["pictures"] += len(read_pictures(path))
        else:
            load_fit(path, index)
            seen["fits"] += 1
    return seen


def outcome(folder: Path) -> dict[str, Any]:
    """What a run ends with, as far as it does not depend on the clock."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "salmon").glob("[!.]*")):
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            found[path.name] = {k: v for k, v in record.items() if k not in ("seconds", "share")}
        elif path.suffix == ".jsonl":
            found[path.name] = path.read_text()
        else:
            fit = torch.load(path, weights_only=True)["fit"]
            found[path.name] = {
                k: repr(getattr(v, "tolist", lambda v=v: v)()) for k, v in fit.items()
            }
    return found


def main() -> int:
    """Kill, look, resume, compare; print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.crashes")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    index = FilterIndex.from_model(network())
    moments = random.Random(options.seed)
    counts: Counter[str] = Counter()
    troubles: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        start = time.perf_counter()
        assert finished(fork(partial(train, home / "whole")))
        duration = time.perf_counter() - start
        whole = outcome(home / "whole")
        assert len([file for file in whole if file.startswith("pass-")]) == VALIDATIONS
        number = 0
        while number < options.kills:
            folder, moment = home / "broken", moments.uniform(0, duration)
            shutil.rmtree(folder, ignore_errors=True)
            child = fork(partial(train, folder))
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)
            if finished(child):  # it was faster than the unbroken one
                continue
            number += 1
            counts["killed"] += 1
            try:
                counts += look(folder, index) if folder.exists() else Counter()
                counts["with a checkpoint"] += (folder / LAST).exists()
                if not finished(fork(partial(train, folder))):
                    troubles.append(f"{number}, at {moment:.2f} s: could not be resumed")
                elif outcome(folder) != whole:
                    odd = [k for k, v in outcome(folder).items() if whole.get(k) != v]
                    troubles.append(f"{number}, at {moment:.2f} s: differs in {odd}")
                else:
                    counts["resumed runs equal to the unbroken one"] += 1
            except Exception as error:  # noqa: BLE001
                troubles.append(f"{number}, at {moment:.2f} s: {type(error).__name__}: {error}")
    print(
        f"{options.kills} kills at random moments of a run of {duration:.1f} s, seed {options.seed}"
    )
    for what, count in counts.items():
        print(f"  {count:6} {what}")
    for trouble in troubles:
        print(f"  FAILED {trouble}")
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
