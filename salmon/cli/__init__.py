"""The command line, from the first moment on: what ends it from outside, before anything is loaded.

Exit codes besides those of the commands: 130 after Ctrl-C, 143 after SIGTERM.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from salmon.errors import SalmonError

ERROR = 2


class _StopError(BaseException):
    """A signal came that ends the program."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; None takes those of the process.
    """
    with _signals() as came:
        try:
            # Loading torch takes seconds, in which a signal may come, too.
            from salmon.cli.main import run

            return run(arguments)
        except BaseException as error:  # noqa: BLE001
            # What a signal raises may arrive as something else: an extension module that was being
            # loaded makes an ImportError of it, Lightning ends the process.
            if not came and not isinstance(error, KeyboardInterrupt):
                return _failed(error)
    number = came[0] if came else signal.SIGINT
    word = "interrupted" if number == signal.SIGINT else "terminated"
    print(f"salmon: {word}; no file was left half-written.", file=sys.stderr)
    return 128 + number


def script() -> None:
    """Be the program ``salmon``."""
    code = main()
    for number in (signal.SIGINT, signal.SIGTERM):  # all is done; Python needs a moment to end
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(code)


def _failed(error: BaseException) -> int:
    """Say what went wrong: a line, for an error in the user's own code with its traceback."""
    if isinstance(error, SalmonError):
        print(f"salmon: {error}", file=sys.stderr)
    elif isinstance(error, Exception):
        # Python's own exit code 1 would say "rejected".
        traceback.print_exception(error)
        print(f"salmon: {type(error).__name__}: {error}", file=sys.stderr)
    else:
        raise error
    return ERROR


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM unwind the program, so that it cleans up; tells which of them came."""
    came: list[int] = []
    again: list[threading.Timer] = []
    said = sys.unraisablehook

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else _StopError

    def dropped(unraisable: Any) -> None:
        """Python drops what is raised in a finalizer: the signal comes again in a moment."""
        if came and isinstance(unraisable.exc_value, (KeyboardInterrupt, _StopError)):
            again.append(threading.Timer(0.01, os.kill, (os.getpid(), came[0])))
            again[-1].start()
        else:
            said(unraisable)

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is not heeded
        numbers.append(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.signal(number, stop) for number in numbers}
    sys.unraisablehook = dropped
    try:
        yield came
    finally:
        sys.unraisablehook = said
        for timer in again:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
