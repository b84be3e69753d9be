"""The Callback bases and the logger: whichever of the two Lightning packages are installed.

``pytorch_lightning`` and ``lightning.pytorch`` are the same code under two names, and each accepts
only its own ``Callback`` in some places. A class that inherits both works everywhere.
"""

import importlib.util
import logging
from typing import TYPE_CHECKING

import pytorch_lightning

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
