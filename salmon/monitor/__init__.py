"""The Lightning callback; the only part of the package that knows Lightning."""

from salmon.monitor.callback import SaliencyMonitor
from salmon.monitor.run import Diagnosis

__all__ = ["Diagnosis", "SaliencyMonitor"]
