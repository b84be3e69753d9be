"""A repair inside a training: which loaders, when, and what becomes of the outcome."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer

from salmon.errors import InputError
from salmon.files import publish_folder
from salmon.forward import keep_rng
from salmon.monitor.bases import logger
from salmon.monitor.distributed import Processes
from salmon.monitor.loaders import collect_samples, flat_loaders, whole_loader
from salmon.monitor.memory import ViewMemory
from salmon.monitor.output import is_local, run_folder
from salmon.monitor.settings import Settings
from salmon.monitor.trainers import ordinary_tensors, rehearsal
from salmon.progress import Progress
from salmon.repairs import ACCEPTED, Outcome, RepairSettings, Samples, repair, write_outcome

Loaders = Callable[[Trainer], tuple[Any, Any | None]]
"""``trainer -> (loader of the new data, loader of the reference data or None)``."""


def validation_loaders(trainer: Trainer) -> tuple[Any, Any | None]:
    """Find new and reference data among the validation loaders.

    Returns:
        With one loader, that one as new data and none as reference; with several, the second as
        new and the first as reference.
    """
    if trainer.val_dataloaders is None:
        raise InputError("the trainer has no validation loader; pass RepairInTraining(loaders=).")
    found = flat_loaders(trainer.val_dataloaders)
    return (found[1], found[0]) if len(found) > 1 else (found[0], None)


@dataclass(frozen=True, kw_only=True)  # without slots, which jsonargparse cannot read
class RepairInTraining:
    """A repair that the monitor looks for by itself.

    Attributes:
        settings: Of the repair.
        after: "fit", once at its end, or "validation", after every one.
        apply: Whether an accepted repair changes the weights in memory; else it is only written.
        loaders: Which data; the default takes validation loaders, see :func:`validation_loaders`.
    """

    settings: RepairSettings = field(default_factory=RepairSettings)
    after: str = "fit"
    apply: bool = False
    loaders: Loaders = validation_loaders

    def __post_init__(self) -> None:
        """Refuse an unknown time."""
        if self.after not in ("fit", "validation"):
            raise InputError(f"after is {self.after!r}; 'fit' or 'validation' is needed.")


def repair_in_training(
    trainer: Trainer,
    module: LightningModule,
    settings: Settings,
    wanted: RepairInTraining,
    memory: ViewMemory,
    processes: Processes,
) -> Outcome:
    """Look for a repair, write it beside the checkpoints, and say so in the log.

    Args:
        module: Its network; changed only where ``wanted.apply`` and the repair is accepted.
        processes: All of them; the first one looks, and all get the outcome.
    """
    # Asks the first rank, so all have to call.
    place = _folder(trainer, memory)
    folder = Path(place) / f"salmon-repair-{trainer.global_step:06d}"
    written = settings.write_files and not rehearsal(trainer) and is_local(place)

    def look() -> Outcome:
        found = _look(trainer, module, settings, wanted)
        if written:  # as a whole, so that no patch of an earlier look at this step stays behind
            publish_folder(
                folder,
                lambda part: write_outcome(part, found, {"model": type(module).__name__}),
                force=True,
            )
        return found

    outcome = processes.on_first(look)  # which looks at all samples; the others wait
    if processes.first:
        _tell(trainer, outcome, folder if written else None)
    if wanted.apply and outcome.status == ACCEPTED and outcome.patch is not None:
        outcome.patch.apply(module)
        logger.warning(
            "SaliencyMonitor changed %d filters of the network in memory, as apply=True asks; the "
            "optimizer's state belongs to the old weights.", outcome.patch.edit.filters,
        )  # fmt: skip
    return outcome


def _look(
    trainer: Trainer, module: LightningModule, settings: Settings, wanted: RepairInTraining
) -> Outcome:
    """Look for a repair on all samples of the loaders."""
    progress = Progress(say=lambda text: logger.info("SaliencyMonitor, repair: %s", text))
    # A loader draws a seed when it is iterated; in Trainer.validate it gives inference tensors.
    with keep_rng(), ordinary_tensors(), progress:
        new, reference = wanted.loaders(trainer)
        return repair(
            module,
            _samples(trainer, new, "new", settings, wanted.settings),
            None if reference is None else _samples(
                trainer, reference, "reference", settings, wanted.settings
            ),
            wanted.settings,
            index=settings.build_index(module),
            progress=progress,
        )  # fmt: skip


def _tell(trainer: Trainer, outcome: Outcome, folder: Path | None) -> None:
    """Say in the log what was found."""
    verdict = outcome.verdict
    gain = "" if verdict is None else (
        f" On samples that nothing was chosen by: new data {100 * verdict.new.before:.1f} % to "
        f"{100 * verdict.new.after:.1f} %, reference data {100 * verdict.reference.before:.1f} % "
        f"to {100 * verdict.reference.after:.1f} %, by {verdict.trial.filters} filters."
    )  # fmt: skip
    logger.info(
        "SaliencyMonitor, repair at step %d: %s (%s).%s %s",
        trainer.global_step, outcome.status, outcome.reason, gain,
        "Nothing was written." if folder is None else f"Written: {folder}.",
    )  # fmt: skip


def _samples(
    trainer: Trainer, loader: Any, what: str, settings: Settings, wanted: RepairSettings
) -> Samples:
    """The samples of a loader, as the hooks that transfer batches hand them to a step."""

    def unpack(batch: Any) -> Any:
        return settings.unpack(trainer.strategy.batch_to_device(batch))

    return collect_samples(
        whole_loader(loader), what, most=wanted.max_samples, seed=wanted.seed,
        unpack=unpack, function=settings.sample_ids,
    )  # fmt: skip


def _folder(trainer: Trainer, memory: ViewMemory) -> str:
    """Where the checkpoints are, or the logs where there are none."""
    checkpoints = getattr(trainer.checkpoint_callback, "dirpath", None)
    logs = run_folder(trainer, memory.run)  # which all processes have to ask for
    return str(checkpoints or logs)
