"""The Lightning callback; the only part of the package that knows Lightning."""

from salmon.monitor.callback import SaliencyMonitor
from salmon.monitor.repairing import RepairInTraining

__all__ = ["RepairInTraining", "SaliencyMonitor"]
