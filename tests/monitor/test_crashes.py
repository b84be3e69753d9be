"""Trainings that are killed: nothing is lost, and the resumed run ends as an unbroken one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.tools.crash_run import PASSES, Findings, differences, results, run

KILLS = 8


@pytest.mark.slow
def test_a_killed_training_leaves_whole_files_and_ends_as_an_unbroken_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.crashes", "--kills", str(KILLS), "--seed", "1"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"resumed runs equal to the unbroken one +{KILLS} of {KILLS}\n", done.stdout)


@pytest.mark.slow
def test_the_checks_after_a_kill_find_what_is_broken(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, bytearray(1))
    whole = Findings(folder)
    assert whole.troubles == []
    # One event file of fit, one of validate.
    assert (whole.checkpoints, whole.events, whole.cut_off) == (2, 2, 0)
    assert whole.files == 2 * PASSES + 2
    before = results(folder)
    assert differences(before, results(folder)) == []

    last = folder / "salmon_logs" / f"flagged-validation-{PASSES - 1:06d}.jsonl"
    checkpoint = folder / "checkpoints" / "last.ckpt"
    for path in (checkpoint, folder / "salmon_logs" / "fit-validation.safetensors", last):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert any(path.name in trouble for trouble in Findings(folder).troubles)
        path.write_bytes(content)
    event_file = max(folder.glob("*tfevents*"))
    event_file.write_bytes(event_file.read_bytes()[:-7])
    (folder / "salmon_logs" / ".pass-validation-000009.json.abc.part").write_text("{")
    found = Findings(folder)
    assert (found.troubles, found.cut_off, found.parts) == ([], 1, 1)
    (folder / "salmon_logs" / "else").touch()
    last.write_text(last.read_text().replace('"sample"', '"other"', 1))
    assert Findings(folder).troubles == ["else: ValueError: nothing of this name is written"]
    assert differences(before, results(folder)) == ["else", last.name]
