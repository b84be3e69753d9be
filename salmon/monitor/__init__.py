"""The Lightning callback; the only part of the package that knows Lightning."""

from salmon.monitor.batches import ids_of_batch, unpack_batch
from salmon.monitor.callback import SaliencyMonitor
from salmon.monitor.context import keeps_order
from salmon.monitor.output import write_diagnosis
from salmon.monitor.repairing import RepairInTraining
from salmon.monitor.run import Diagnosis, Run
from salmon.monitor.settings import Settings

__all__ = [
    "Diagnosis",
    "RepairInTraining",
    "Run",
    "SaliencyMonitor",
    "Settings",
    "ids_of_batch",
    "keeps_order",
    "unpack_batch",
    "write_diagnosis",
]
