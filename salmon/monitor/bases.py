"""What all of the monitor stands on: Lightning's Callback, the logger, and trouble as a warning.

``pytorch_lightning`` and ``lightning.pytorch`` are the same code under two names, and each accepts
only its own ``Callback`` in some places. A class that inherits both works everywhere.
"""

import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytorch_lightning

from salmon.errors import SalmonError, pass_on_interrupts

if TYPE_CHECKING:

    class CallbackBase(pytorch_lightning.Callback):
        """What type checkers see: the callback of either package."""

elif importlib.util.find_spec("lightning") is not None:
    import lightning.pytorch

    class CallbackBase(pytorch_lightning.Callback, lightning.pytorch.Callback):
        """A callback of both packages."""

else:

    class CallbackBase(pytorch_lightning.Callback):
        """A callback of the only package there is."""


# A child of Lightning's logger, so that messages appear where Lightning's own do.
logger = logging.getLogger("pytorch_lightning.callbacks.salmon")


@contextmanager
def tolerated(what: str, *, strict: bool) -> Iterator[None]:
    """Turn trouble into a warning that says what could not be done, unless ``strict``."""
    before = sys.exception()
    try:
        yield
    except Exception as error:
        # Anything may come out of a user's forward, loss or logger; it must not end a training.
        pass_on_interrupts(error, before)
        if strict:
            raise
        logger.warning(
            "SaliencyMonitor %s (%s: %s). The trainer goes on without it until the next "
            "pass; strict=True raises instead.", what, type(error).__name__, error,
            exc_info=not isinstance(error, SalmonError),
        )  # fmt: skip
