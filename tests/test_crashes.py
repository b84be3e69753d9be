"""Trainings that are killed: nothing is lost, and the resumed run ends as an unbroken one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KILLS = 8


@pytest.mark.slow
def test_a_killed_training_leaves_whole_files_and_ends_as_an_unbroken_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crashes", "--kills", str(KILLS), "--seed", "1"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    equal = re.search(r"(\d+) resumed runs equal to the unbroken one", done.stdout)
    assert equal is not None
    assert int(equal[1]) == KILLS
