"""Ctrl-C and SIGTERM end a command with one line and leave nothing half-written."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest

from tests import ROOT

SALMON = Path(sys.executable).parent / "salmon"

PROJECT = [
    "--model", "tests.project_of_a_user:Net", "--data", "tests.project_of_a_user:loaders",
    "--ckpt_path", "none",
]  # fmt: skip
COMMANDS = {
    "diagnose": ["diagnose", *PROJECT],
    "repair": ["repair", *PROJECT],
    "demo": ["demo"],
}
CODES = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}


def heeds_ctrl_c() -> None:
    """What is started in the background of a shell does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stopped(command: list[str], out: Path, after: float, number: signal.Signals) -> tuple[int, str]:
    """Exit code and errors of a command that gets a signal so many seconds after its start."""
    process = subprocess.Popen(
        [SALMON, *command, "--out", out], cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=heeds_ctrl_c,  # noqa: PLW1509
    )  # fmt: skip
    time.sleep(after)
    process.send_signal(number)
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()  # if it is there still
    return process.returncode, errors


@cache
def seconds_of(name: str) -> float:
    """How long a command takes when nothing stops it."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [SALMON, *COMMANDS[name], "--out", Path(folder) / "out"], cwd=ROOT,
            capture_output=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    return time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shares"), [("diagnose", (0.25, 0.6, 0.9)), ("repair", (0.6, 0.3))]
)
@pytest.mark.parametrize("number", CODES)
def test_a_signal_at_any_time_ends_a_command_with_one_line(
    tmp_path: Path, name: str, shares: tuple[float, ...], number: signal.Signals
) -> None:
    for share in shares:
        out, after = tmp_path / f"{share}", share * seconds_of(name)
        while (ended := stopped(COMMANDS[name], out, after, number))[0] in (0, 1):
            shutil.rmtree(out)  # it was there before the signal: faster than when it was timed
            after /= 2
        expected, word = CODES[number]
        code, errors = ended
        assert (code, errors.splitlines()[-1:]) == (
            expected, [f"salmon: {word}; no file was left half-written."],
        ), errors  # fmt: skip
        assert "Traceback" not in errors
        assert not out.exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
def test_a_signal_in_the_training_of_the_demo_ends_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    code, errors = stopped(["demo", "--images", "400"], tmp_path / "out", 20, number)
    assert code == CODES[number][0], errors
    assert "no file was left half-written" in errors.splitlines()[-1]


SWALLOWING = {
    "a module being loaded": """
import os, signal
try:
    os.kill(os.getpid(), signal.{name})
    os.sched_yield()
except BaseException:
    raise ImportError("initialization failed")
""",
    "a finalizer": """
import os, signal, time
class Mine:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        os.sched_yield()
Mine()
time.sleep(60)
""",
}


@pytest.mark.parametrize("where", SWALLOWING)
@pytest.mark.parametrize("number", CODES)
def test_a_signal_that_something_swallows_still_ends_a_command(
    tmp_path: Path, number: signal.Signals, where: str
) -> None:
    (tmp_path / "mine.py").write_text(SWALLOWING[where].format(name=number.name))
    ended = subprocess.run(
        [SALMON, "diagnose", "--model", "mine:Net", "--data", "mine:Data"], cwd=tmp_path,
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        preexec_fn=heeds_ctrl_c,
    )  # fmt: skip
    code, word = CODES[number]
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.splitlines()[-1] == f"salmon: {word}; no file was left half-written."
    assert "Traceback" not in ended.stderr
