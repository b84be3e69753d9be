"""The Lightning callback; the only part of the package that knows Lightning."""

from salmon.monitor.batches import unpack_batch
from salmon.monitor.callback import SaliencyMonitor
from salmon.monitor.context import Clock
from salmon.monitor.facts import class_names, normalisation
from salmon.monitor.imaging import flagged_images
from salmon.monitor.loaders import batch_ids, collect_samples
from salmon.monitor.memory import new_run
from salmon.monitor.output import write_diagnosis
from salmon.monitor.repairing import RepairInTraining
from salmon.monitor.run import Run
from salmon.monitor.settings import Settings
from salmon.ranking import Diagnosis

__all__ = [
    "Clock",
    "Diagnosis",
    "RepairInTraining",
    "Run",
    "SaliencyMonitor",
    "Settings",
    "batch_ids",
    "class_names",
    "collect_samples",
    "flagged_images",
    "new_run",
    "normalisation",
    "unpack_batch",
    "write_diagnosis",
]
