"""What all parts of one measured validation or test know."""

from dataclasses import dataclass

from pytorch_lightning import LightningModule, Trainer

from salmon.monitor.clock import Clock
from salmon.monitor.distributed import Processes
from salmon.monitor.memory import ViewMemory
from salmon.monitor.sampling import SampleBook
from salmon.monitor.settings import Settings


@dataclass(frozen=True, slots=True, eq=False)
class PassContext:
    """One validation or test that is measured."""

    settings: Settings
    stage: str  # "validation" or "test"
    number: int  # counted per stage from 0
    trainer: Trainer  # in that stage
    model: LightningModule
    memory: ViewMemory  # what is known of the passes before; updated
    processes: Processes
    clock: Clock
    book: SampleBook | None = None  # gets the samples that a repair will be looked for on
