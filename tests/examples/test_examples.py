"""The examples run as they stand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        ("with_lightning.py", "held-out digits are misclassified"),
        ("without_lightning.py", "noisy digits are misclassified"),
    ],
)
def test_an_example_runs_as_it_stands(script: str, shown: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / script], cwd=tmp_path, capture_output=True, text=True,
        check=False, env=os.environ | {"PYTHONWARNINGS": "default"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
