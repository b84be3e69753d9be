"""A repair inside a training: which loaders, when, and what becomes of the outcome."""

from dataclasses import dataclass, field
from pathlib import Path

from pytorch_lightning import LightningModule, Trainer

from salmon.errors import InputError
from salmon.files import publish_folder
from salmon.forward import keep_rng
from salmon.monitor.bases import logger, tolerated
from salmon.monitor.distributed import Processes
from salmon.monitor.memory import ViewMemory
from salmon.monitor.output import boards, is_local, run_folder
from salmon.monitor.sampling import SampleBook
from salmon.monitor.settings import Settings
from salmon.monitor.trainers import ordinary_tensors, rehearsal
from salmon.progress import Progress
from salmon.repairs import (
    ACCEPTED,
    Outcome,
    RepairSettings,
    comment,
    headline,
    repair,
    write_outcome,
)


@dataclass(frozen=True, kw_only=True)  # without slots, which jsonargparse cannot read
class RepairInTraining:
    """A repair that the monitor looks for by itself.

    Attributes:
        settings: Of the repair; by default one gradient step on the filters that POT ranks first.
        after: "fit", once at its end, or "validation", after every one.
        apply: Whether an accepted repair changes the weights in memory; else it is only written.
        new: Which validation loader holds the new data, as named in the monitor's results, such as
            "loader1" or "loader_photo"; None takes the second, or the only one.
        reference: The same of the data that the network serves already; None takes the first of
            several, and with one loader the new data serve as both.
    """

    settings: RepairSettings = field(default_factory=lambda: RepairSettings(prefer="step"))
    after: str = "fit"
    apply: bool = False
    new: str | None = None
    reference: str | None = None

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
    book: SampleBook,
) -> Outcome:
    """Look for a repair, write it beside the checkpoints, and say so in the log.

    Args:
        module: Its network; changed only where ``wanted.apply`` and the repair is accepted.
        book: The samples of the last validation, in this process.
        processes: All of them; the first one looks, and all get the outcome.
    """
    processes.reduce(book, book.merge)
    if processes.first:
        logger.info(
            "SaliencyMonitor looks for a repair at step %d, on the samples of the last validation.",
            trainer.global_step,
        )
    # Asks the first rank, so all have to call.
    place = _folder(trainer, memory)
    folder = Path(place) / f"salmon-repair-{trainer.global_step:06d}"
    written = settings.write_files and not rehearsal(trainer) and is_local(place)

    def look() -> Outcome:
        found = _look(module, settings, wanted, book)
        if written:  # as a whole, so that no patch of an earlier look at this step stays behind
            publish_folder(
                folder,
                lambda part: write_outcome(part, found, {"model": type(module).__name__}),
                force=True,
            )
        return found

    outcome = processes.on_first(look)  # which looks at all samples; the others wait
    if processes.first:
        _tell(trainer, outcome, folder if written else None, settings)
    if wanted.apply and outcome.status == ACCEPTED and outcome.patch is not None:
        outcome.patch.apply(module)
        logger.warning(
            "SaliencyMonitor changed %d weights of the network in memory, as apply=True asks; the "
            "optimizer's state belongs to the old weights.", outcome.patch.edit.weights,
        )  # fmt: skip
    return outcome


def _look(
    module: LightningModule, settings: Settings, wanted: RepairInTraining, book: SampleBook
) -> Outcome:
    """Look for a repair on the samples of the last validation."""
    if book.trouble is not None:
        raise book.trouble
    known = {scope.partition("/")[2]: each.samples() for scope, each in book.gathered.items()}
    names = list(known)
    if not names:
        raise InputError("the last validation gave no sample that could be used; see above.")
    new = names[1 if len(names) > 1 else 0] if wanted.new is None else wanted.new
    reference = wanted.reference or (names[0] if names[0] != new else None)
    for name in (new, *([] if reference is None else [reference])):
        if name not in known:
            raise InputError(
                f"RepairInTraining names the loader {name!r}; the validation has {names}."
            )
    reference = None if reference == new else reference
    progress = Progress(say=lambda text: logger.info("SaliencyMonitor, repair: %s", text))
    with keep_rng(), ordinary_tensors(), progress:
        return repair(
            module,
            known[new],
            None if reference is None else known[reference],
            wanted.settings,
            task=settings.task,
            loss=settings.loss,
            index=settings.build_index(module),
            progress=progress,
        )


def _tell(trainer: Trainer, outcome: Outcome, folder: Path | None, settings: Settings) -> None:
    """Say what was found, in the log and to the loggers."""
    logger.info(
        "SaliencyMonitor, repair at step %d: %s. %s %s",
        trainer.global_step, outcome.status, headline(outcome),
        "Nothing was written." if folder is None else f"Written: {folder}.",
    )  # fmt: skip
    numbers = {"repair/accepted": float(outcome.status == ACCEPTED)}
    if outcome.winner is not None:
        verdict = outcome.winner.verdict
        for name, found in (("new", verdict.new), ("reference", verdict.reference)):
            numbers |= {f"repair/{name}_before": found.before, f"repair/{name}_after": found.after}
    for each in () if rehearsal(trainer) else trainer.loggers:
        each.log_metrics(numbers, step=trainer.global_step)
    for board in boards(trainer):
        with tolerated(f"could not show the repair in {board.name}", strict=settings.strict):
            board.text("repair", comment(outcome), trainer.global_step)


def _folder(trainer: Trainer, memory: ViewMemory) -> str:
    """Where the checkpoints are, or the logs where there are none."""
    checkpoints = getattr(trainer.checkpoint_callback, "dirpath", None)
    logs = run_folder(trainer, memory.run)  # which all processes have to ask for
    return str(checkpoints or logs)
