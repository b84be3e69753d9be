"""The examples run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from salmon import verify
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "least"),
    [
        ("binary", 0.85), ("multilabel", 0.35), ("segmentation", 0.4), ("regression", 0.5),
        ("sequence", 0.6),
    ],
)  # fmt: skip
def test_each_task_has_a_network_that_makes_real_mistakes(
    task: str, least: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from examples import tasks

    for name, value in {"TRAINED": 4000, "HELD_OUT": 400, "EPOCHS": 4, "SCRAMBLED": 2}.items():
        monkeypatch.setattr(tasks, name, value)
    tasks.main(task)
    shown = capsys.readouterr().out
    found = re.match(rf"{task}: (\S+) of 1 on 400 .*\n  400 samples, (\d+) mi", shown)
    assert found is not None
    assert float(found[1]) > least
    assert 10 < int(found[2]) < 250
    assert len(re.findall(r"filled with noise: .* it is number \d+ of 14\d\n", shown)) == 2


def test_a_detector_s_losses_are_measured_as_one_by_one() -> None:
    from examples import detection

    torch.manual_seed(0)
    digits, labels = torch.rand(20, 28, 28), torch.randint(10, (20,))
    images, boxes, classes = detection.scenes(2, digits, labels)
    net = detection.Judged(detection.detector()).eval()
    found = verify(net, (images, boxes, classes), classes, loss=detection.TASK.losses)
    assert max(found.values()) < 1e-6
    assert len(found) == 7


@pytest.mark.slow
def test_a_detector_makes_real_mistakes_and_is_diagnosed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "detection.py"], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    right = re.search(r"^(\d+) of 200 images have every box right", done.stdout)
    assert right is not None
    assert 80 < int(right[1]) < 190
    assert len(re.findall(r"^image \d+: \d+ wrong boxes; detector\.", done.stdout, re.M)) == 3
