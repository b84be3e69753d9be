"""Progress in a real terminal, and a line now and then elsewhere."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

import pytest

from salmon.cli import main
from salmon.cli.table import print_table
from salmon.progress import Progress
from tests import ROOT


class Terminal:
    """A pseudo terminal: what is written to one end is read at the other."""

    def __init__(self) -> None:
        self._read, write = pty.openpty()
        size = struct.pack("HHHH", 30, 100, 0, 0)  # rows and columns; a new one has none
        fcntl.ioctl(write, termios.TIOCSWINSZ, size)
        self.file: TextIO = os.fdopen(write, "w")

    def shown(self) -> str:
        self.file.flush()
        self.file.close()
        parts = []
        while True:
            try:
                part = os.read(self._read, 65536)
            except OSError:  # Linux says so when the other end is closed
                break
            if not part:
                break
            parts.append(part)
        os.close(self._read)
        return b"".join(parts).decode()


def attached(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal as standard error; to be called in the test, since pytest sets its own before."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made.file)
    return made


def work(progress: Progress) -> None:
    for step in range(1, 4):
        progress("reading test data", step, 3)
    progress("searching", 1, 2)


def test_progress_is_drawn_as_a_bar_per_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = attached(monkeypatch)
    with Progress() as progress:
        work(progress)
    shown = terminal.shown()
    assert "reading test data: 100%" in shown
    assert "3/3" in shown
    assert "searching:  50%" in shown


def test_quiet_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = attached(monkeypatch)
    with Progress(quiet=True) as progress:
        work(progress)
    assert terminal.shown() == ""


def test_elsewhere_a_line_says_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 4.0, 11.0, 11.0, 12.0, 20.9, 21.1, 21.1])
    monkeypatch.setattr("salmon.progress.time.monotonic", lambda: next(clock))
    lines: list[str] = []
    for say in (lines.append, None):
        clock = iter([0.0, 4.0, 11.0, 11.0, 12.0, 20.9, 21.1, 21.1])
        with Progress() if say is None else Progress(say=say) as progress:
            for step in range(1, 6):
                progress("search", step, 5)
    assert lines == ["search: 2 of 5", "search: 5 of 5"]
    assert capsys.readouterr().err.splitlines() == lines


def fail() -> None:
    with Progress() as progress:
        work(progress)
        raise ZeroDivisionError


def test_progress_is_taken_away_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = attached(monkeypatch)
    with pytest.raises(ZeroDivisionError):
        fail()
    assert terminal.shown().endswith("\r")  # the line is free again


DIAGNOSE = [
    "diagnose", "--model", "tests.project_of_a_user:Net", "--ckpt_path", "none", "--data",
    "tests.project_of_a_user:loaders", "--out",
]  # fmt: skip


def test_a_command_in_a_pipe_prints_plain_tables_and_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main([*DIAGNOSE, str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "reading" not in shown.err
    for title in (
        "Share of each group among the top-4 filters",
        "right samples ranked alike",
        "Classes that are confused most",
    ):
        assert title in shown.out


def test_a_quiet_command_prints_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main([*DIAGNOSE, str(tmp_path / "out"), "--quiet"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_command_in_a_terminal_shows_progress_and_drawn_tables(tmp_path: Path) -> None:
    terminal = Terminal()
    done = subprocess.Popen(
        [Path(sys.executable).parent / "salmon", *DIAGNOSE, tmp_path / "out"],
        cwd=ROOT, stdout=terminal.file, stderr=terminal.file,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"},
    )  # fmt: skip
    shown = terminal.shown()
    assert done.wait(timeout=60) == 0
    assert "reading test data" in shown
    assert "┃" in shown


ODD = [["[red]a[/red]", "1"], ["[/nothing]", "2"], ["\x1b[2Jcleared\rover", "3"]]


@pytest.mark.parametrize("rich", [True, False])
def test_names_from_data_are_neither_markup_nor_commands_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, rich: bool
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: find_spec(name) if rich else None)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal.file)
    print_table("Classes [bold]", ["true", "[i]"], ODD)
    shown = terminal.shown()
    for text in ("Classes [bold]", "[i]", "[red]a[/red]", "[/nothing]", "?[2Jcleared?over"):
        assert text in shown
    assert "\x1b[2J" not in shown
