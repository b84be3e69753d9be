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
