"""What a pass leaves behind: metrics, files, charts and lines in the log."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer

from salmon.diagnosis import FEWEST, Diagnosis, Pass, batch_flags, mistakes_text, sample_flags
from salmon.files import json_text, write_atomically
from salmon.monitor.bases import logger, tolerated
from salmon.monitor.context import PassContext
from salmon.monitor.facts import class_names, origin
from salmon.monitor.images import confused_images, pictures_of
from salmon.monitor.memory import ViewMemory
from salmon.monitor.settings import Settings
from salmon.monitor.trainers import loader_of, rehearsal
from salmon.ranking import group_shares
from salmon.saliency import Coverage
from salmon.tails import save_fit
from salmon.views import (
    DETAILS,
    MOST_ROWS,
    Board,
    PassRecord,
    Picture,
    gather,
    pass_metrics,
    publish,
    record_pass,
    write_pass,
    write_pictures,
    write_report,
)

MEASURING = "measuring"
"""Part of the clock in which the network runs."""

LOGS = "salmon_logs"
"""Folder of the monitor's files; a folder ``salmon`` would be taken for the package."""


def publish_pass(
    context: PassContext, scope: str, loader: int, diagnosis: Diagnosis, own: Pass
) -> None:
    """Log, write and show what the pass over one loader found; all processes have to call.

    Args:
        scope: A key of the monitor's results.
    """
    settings, trainer, clock = context.settings, context.trainer, context.clock
    folder = folder_of(trainer, settings, context.memory)
    seconds = clock.seconds(f"loader {loader}")
    record = context.processes.on_first(
        lambda: record_pass(
            diagnosis,
            run=context.memory.run,
            stage=context.stage,
            loader=loader,
            number=context.number,
            step=trainer.global_step,
            seconds=seconds,
            share=seconds / clock.total,
            classes=class_names(loader_of(trainer, loader), settings.views),
            origin=_origin(context, loader),
        )
    )
    _log(context.model, metric_scope(scope), pass_metrics(record))
    history, before = context.memory.take(scope, record, diagnosis.index)

    def show() -> None:
        if context.number == 0:
            _check_names(settings.views.class_names, diagnosis)
        pictures: list[Picture] = []
        with _tolerated(settings, "picture the mistakes"), clock.part("pictures"):
            task = own.task
            if task is not None:  # else nothing was measured
                pictures = pictures_of(context, loader, diagnosis, own.worst, task, record.classes)
        with clock.part("views"):
            if folder is not None:
                _write(folder, scope, diagnosis, record, pictures)
            with _tolerated(settings, "show its views"):
                publish(
                    boards(trainer), metric_scope(scope), record, history,
                    before=before, pictures=pictures,
                    confused=confused_images(pictures, diagnosis),
                    figures=settings.views.figures, shown=context.memory.shown,
                    attempt=lambda what: _tolerated(settings, f"show its {what}"),
                )  # fmt: skip

    context.processes.together(lambda: show() if context.processes.first else None)


def _check_names(names: Sequence[str] | None, diagnosis: Diagnosis) -> None:
    """Say so if there are other classes than names for them."""
    classes = len(diagnosis.class_samples)
    if names is not None and diagnosis.has_classes and len(names) != classes:
        logger.warning(
            "class_names has %d names, but the network tells %d classes apart; what is shown may "
            "be called by the names of other classes.", len(names), classes,
        )  # fmt: skip


def _origin(context: PassContext, loader: int) -> dict[str, str]:
    """What a pass was made of, as far as it can be told."""
    found: dict[str, str] = {}
    with _tolerated(context.settings, "say what was measured"):
        data = loader_of(context.trainer, loader)
        found |= origin(context.trainer, context.model, data, context.settings)
    return found


def _tolerated(settings: Settings, what: str) -> AbstractContextManager[None]:
    """Go on without something that cannot be done, unless ``strict``."""
    return tolerated(f"could not {what}", strict=settings.strict)


def _write(
    folder: Path, scope: str, diagnosis: Diagnosis, record: PassRecord, images: list[Picture]
) -> None:
    """Write the files, or say which are missing."""
    try:
        write_diagnosis(folder, scope, diagnosis, record, images)
    except OSError as error:
        logger.warning(
            "SaliencyMonitor, %s pass %d, could not write %s; its metrics are logged all the "
            "same.", scope, record.number, error,
        )  # fmt: skip


def metric_scope(scope: str) -> str:
    """First part of the metric names of a pass.

    Args:
        scope: A key of the monitor's results, such as ``"validation"`` or ``"test/loader1"``.

    Returns:
        ``salmon`` for validation, ``salmon/test`` for test, with the loader behind.
    """
    stage, _, loader = scope.partition("/")
    return "/".join(
        ["salmon", *([stage] if stage != "validation" else []), *filter(None, [loader])]
    )


def announce_coverage(trainer: Trainer, scope: str, coverage: Coverage, settings: Settings) -> None:
    """Say what is measured, in the log and as a text in the loggers."""
    if trainer.is_global_zero:
        logger.info("SaliencyMonitor: %s.", coverage.summary())
    for board in boards(trainer):
        with _tolerated(settings, f"say in {board.name} what it measures"):
            board.text(
                f"{metric_scope(scope)}/coverage",
                f"{coverage.summary()}\n\n{coverage.markdown(MOST_ROWS)}",
                trainer.global_step,
            )


def log_cost(context: PassContext) -> None:
    """Log the seconds that the monitor took, and their share of the pass."""
    clock = context.clock
    metrics = {
        "cost/share": clock.busy / clock.total,
        f"{DETAILS}cost/seconds": clock.busy,
        f"{DETAILS}cost/pictures_seconds": clock.seconds("pictures"),
        f"{DETAILS}cost/views_seconds": clock.seconds("views"),
    }
    _log(context.model, metric_scope(context.stage), metrics)


def hand_in_report(trainer: Trainer, settings: Settings, memory: ViewMemory) -> None:
    """Give the report of a run to the loggers that keep files; all processes have to call."""
    folder = folder_of(trainer, settings, memory)
    if folder is None or not folder.is_dir() or not memory.histories:
        return
    for board in boards(trainer):
        with _tolerated(settings, f"give {board.name} its report"):
            if board.takes_files:
                with tempfile.TemporaryDirectory() as place:
                    path = Path(place) / "report.html"
                    write_report(path, gather(folder), "salmon")
                    board.file(path, "salmon")


def folder_of(trainer: Trainer, settings: Settings, memory: ViewMemory) -> Path | None:
    """The folder for files; all processes have to ask.

    Args:
        memory: What the user was told already; updated.

    Returns:
        ``salmon_logs`` in the run's folder, which need not exist; None where nothing is to be
        written.
    """
    if not settings.write_files or rehearsal(trainer):
        return None
    place = run_folder(trainer, memory.run)
    if is_local(place):
        return Path(place.removeprefix("file://")) / LOGS
    if trainer.is_global_zero and place not in memory.told:
        memory.told.add(place)
        logger.warning(
            "SaliencyMonitor writes no files, since %s is no folder of this machine; its metrics, "
            "charts and results are there all the same. A first logger with a local folder has the "
            "files, too; write_files=False says that none are wanted.", place,
        )  # fmt: skip
    return None


def run_folder(trainer: Trainer, run: str) -> str:
    """Where the files of a run belong; all processes have to ask.

    Returns:
        The folder of the first logger's run: its own, or ``save_dir/name/version`` as Lightning's
        checkpoints have it; without loggers the trainer's. Perhaps the address of another machine.
    """
    place = _run_folder(trainer, run) if trainer.is_global_zero else ""
    return str(trainer.strategy.broadcast(place))


def _run_folder(trainer: Trainer, run: str) -> str:
    """What the first process knows of it."""
    if not trainer.loggers:
        return str(trainer.default_root_dir)
    first: Any = trainer.loggers[0]
    own = getattr(first, "log_dir", None)
    if own is not None:
        return str(own)
    # A logger of the user's own may lack any of these; other processes wait for the answer.
    base = getattr(first, "save_dir", None) or trainer.default_root_dir
    if getattr(first, "version", None) is None:  # until its run has begun
        with suppress(Exception):
            _ = first.experiment
    version = getattr(first, "version", None)
    version = run if version is None else version
    place = version if isinstance(version, str) else f"version_{version}"
    return f"{str(base).rstrip('/')}/{getattr(first, 'name', None) or 'run'}/{place}"


def is_local(place: str) -> bool:
    """Tell folders of this machine from addresses of others.

    Args:
        place: Such as ``logs`` or ``s3://bucket/logs``.
    """
    return "://" not in place or place.startswith("file://")


def log_summary(
    scope: str, measuring: float, context: PassContext, diagnosis: Diagnosis, skipped: int
) -> None:
    """Say in the log what was found, what was left out, and what it cost.

    Args:
        scope: A key of the monitor's results.
        measuring: Seconds for measuring it.
    """
    clock, number = context.clock, context.number
    kept = len(diagnosis.mistakes.sample)
    shares = group_shares(diagnosis.rankings["pot"], diagnosis.index)
    top_k = diagnosis.rankings["pot"].filters.shape[1]
    stands_out = len(diagnosis.findings.filters) if diagnosis.findings.compared else None
    known = {name: share for name, share in shares.items() if share == share}  # not NaN
    spread = ", ".join(f"{name} {100 * share:.0f} %" for name, share in known.items())
    part = f" (filters of {kept} of them ranked)"
    measured = ""
    if diagnosis.measured < diagnosis.samples:
        times = diagnosis.samples / max(diagnosis.measured, 1)
        every = clock.busy + (times - 1) * measuring
        measured = (
            f" Measured were {diagnosis.measured}, which stand for all: every one would have taken "
            f"about {every:.1f} s."
        )
    logger.info(
        "SaliencyMonitor, %s pass %d: %d samples, %s%s. Filters that stand out: %s. "
        "Top %d of %d filters by POT: %s. Fits: %s.%s It took %.1f s (%.1f s of it for drawing), "
        "%.0f %% of the pass.%s",
        scope, number, diagnosis.samples, mistakes_text(diagnosis),
        "" if kept == diagnosis.misclassified else part,
        f"not tested ({kept} mistakes, {len(diagnosis.right.filters)} right samples; {FEWEST} of "
        "each are needed, with filters in their tails)" if stands_out is None else stands_out,
        top_k, len(diagnosis.index), spread or "none could be ranked",
        ", ".join(f"{n} {s.label}" for s, n in diagnosis.fit.counts().items() if n),
        f" Threshold: {diagnosis.level_reason}" if diagnosis.level_reason else "",
        clock.busy, clock.seconds("pictures") + clock.seconds("views"),
        100 * clock.busy / clock.total, measured,
    )  # fmt: skip
    unlabelled = "samples without a label"
    if diagnosis.has_classes:
        most = len(diagnosis.class_samples) - 1
        unlabelled += f" that counts and is a class of the network (0 to {most})"
    left_out = {
        "samples without a finite saliency": diagnosis.dropped,
        unlabelled: diagnosis.unlabelled,
        "batches": skipped,
    }
    if any(left_out.values()):
        logger.warning(
            "SaliencyMonitor, %s pass %d, left out %s.", scope, number,
            "; ".join(f"{count} {what}" for what, count in left_out.items() if count),
        )  # fmt: skip


def boards(trainer: Trainer) -> list[Board]:
    """Where views are put up.

    Returns:
        One per logger; none in a fast_dev_run, whose loggers are dummies, and none on other ranks
        than the first, whose loggers are, too.
    """
    silent = rehearsal(trainer) or not trainer.is_global_zero
    return [] if silent else [Board(each) for each in trainer.loggers]


def _log(pl_module: LightningModule, prefix: str, metrics: dict[str, float]) -> None:
    """Log numbers as they are, once per epoch; details in a section of their own."""
    details = prefix.replace("salmon", "salmon_details", 1)
    values = {
        f"{details if name.startswith(DETAILS) else prefix}/{name.removeprefix(DETAILS)}":
        torch.tensor(value)
        for name, value in metrics.items()
    }  # fmt: skip
    # All ranks hold the same values but for the costs, of which the mean is taken.
    several = pl_module.trainer.world_size > 1
    pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=several)


def write_diagnosis(
    folder: Path,
    scope: str,
    diagnosis: Diagnosis,
    record: PassRecord,
    images: Sequence[Picture],
) -> None:
    """Write the flags and the record of a pass, and its fits and images in place of the last ones.

    Args:
        folder: Where to; it is made if missing.
    """
    name, number = scope.replace("/", "-"), record.number
    flagged = folder / f"flagged-{name}-{number:06d}.jsonl"
    pictures, fits = folder / f"pictures-{name}.jsonl", folder / f"fit-{name}.safetensors"
    tasks: dict[Path, Callable[[Path], None] | None] = {flagged: None, pictures: None}
    if len(diagnosis.mistakes.sample):
        tasks[flagged] = lambda path: _write_flags(path, diagnosis, record)
    if images:
        tasks[pictures] = lambda path: write_pictures(path, number, images)
    tasks[fits] = lambda path: save_fit(path, diagnosis.fit, diagnosis.index)
    # Last, since a report is made of those passes that have a record.
    tasks[folder / f"pass-{name}-{number:06d}.json"] = lambda path: write_pass(path, record)
    missing: dict[str, OSError] = {}
    for path, write in tasks.items():
        stays = write is not None
        try:
            if write is not None:
                write(path)
        except OSError as error:
            missing[path.name] = error
            stays = path in (pictures, fits)  # of the last pass of which they could be written
        if not stays:  # what an earlier run left under this number is not of this pass
            with suppress(OSError):
                path.unlink()
    if missing:
        reason = next(iter(missing.values()))
        raise OSError(f"{', '.join(missing)} in {folder} ({reason})") from reason


def _write_flags(path: Path, diagnosis: Diagnosis, record: PassRecord) -> None:
    """Write the mistakes of a pass, a line each, and behind them their batches."""
    context = {
        "stage": record.stage, "loader": record.loader, "pass": record.number, "step": record.step,
    }  # fmt: skip
    flags = (*sample_flags(diagnosis), *batch_flags(diagnosis))
    lines = (f"{json_text(flag | context)}\n".encode() for flag in flags)
    write_atomically(path, lambda file: file.writelines(lines))
