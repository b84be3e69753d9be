"""The command line, from the first moment on: what ends it from outside, before anything is loaded.

Exit codes besides those of the commands: 130 after Ctrl-C, 143 after SIGTERM.
"""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


class _TerminatedError(BaseException):
    """SIGTERM came."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; None takes those of the process.
    """
    try:
        with _terminable():
            # Loading torch takes seconds, in which a signal may come, too.
            from salmon.cli.main import run

            return run(arguments)
    except _TerminatedError:
        code = 128 + signal.SIGTERM
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except SystemExit as error:  # which Lightning makes of Ctrl-C
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        code = 128 + signal.SIGINT
    word = "interrupted" if code == 128 + signal.SIGINT else "terminated"
    print(f"salmon: {word}; no file was left half-written.", file=sys.stderr)
    return code


def script() -> None:
    """Be the program ``salmon``."""
    code = main()
    for number in (signal.SIGINT, signal.SIGTERM):  # all is done; Python needs a moment to end
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(code)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the program, so that it cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
