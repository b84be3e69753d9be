"""The package's exceptions: one base, one class per kind of trouble.

Every message says what came, what was needed and what to do.
"""


class SalmonError(Exception):
    """Base of every exception that this package raises on purpose."""


class InputError(SalmonError, ValueError):
    """An argument or a batch that does not fit."""


class StateError(SalmonError, ValueError):
    """Saved state that does not fit this model, or a file that cannot be read as such."""


class UnsupportedError(SalmonError, RuntimeError):
    """A network or trainer for which exact per-sample saliency is not available."""


def pass_on_interrupts(error: Exception, before: BaseException | None) -> None:
    """Raise the Ctrl-C that a tolerated error hides, if there is one.

    What fails while it is left (torch's own modes do) puts its error in the place of what left it.

    Args:
        before: ``sys.exception()`` before what raised the error began: what somebody is dealing
            with already.

    Raises:
        BaseException: a KeyboardInterrupt, say, that the error was raised in handling.
    """
    hidden: BaseException | None = error
    while hidden is not None and hidden is not before:
        if not isinstance(hidden, Exception | GeneratorExit):
            raise hidden
        hidden = hidden.__context__
