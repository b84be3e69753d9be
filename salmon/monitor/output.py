"""What a pass leaves behind: metrics, histograms, files and a line in the log."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer

from salmon.files import json_text, write_atomically
from salmon.monitor.bases import logger
from salmon.monitor.context import Clock, rehearsal
from salmon.monitor.run import Diagnosis
from salmon.monitor.settings import Settings
from salmon.ranking import batch_flags, sample_flags
from salmon.saliency import Coverage
from salmon.tails import save_fit
from salmon.views import (
    TEXT_ROWS,
    fit_metrics,
    share_metrics,
    write_depth_histograms,
    write_text,
)


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


def log_metrics(model: LightningModule, scope: str, diagnosis: Diagnosis) -> None:
    """Log the numbers of a pass through ``self.log``, where EarlyStopping and others see them.

    Args:
        model: The network.
        scope: A key of the monitor's results.
        diagnosis: What the pass found.
    """
    metrics: dict[str, float] = {
        "samples": float(diagnosis.samples),
        "dropped": float(diagnosis.dropped),
        "misclassified": float(diagnosis.misclassified),
    }
    metrics |= share_metrics(diagnosis.rankings, diagnosis.index) | fit_metrics(diagnosis.fit)
    _log(model, metric_scope(scope), metrics)


def announce_coverage(trainer: Trainer, scope: str, coverage: Coverage) -> None:
    """Say what is measured, in the log and as a text in TensorBoard.

    Args:
        trainer: The trainer.
        scope: The stage.
        coverage: Of the network.
    """
    logger.info("SaliencyMonitor: %s.", coverage.summary())
    for experiment in _experiments(trainer):
        write_text(
            experiment,
            f"{metric_scope(scope)}/coverage",
            f"{coverage.summary()}\n\n{coverage.markdown(TEXT_ROWS)}",
            trainer.global_step,
        )


def log_cost(model: LightningModule, stage: str, clock: Clock) -> None:
    """Log the seconds that the monitor took, and their share of the pass.

    Args:
        model: The network.
        stage: ``"validation"`` or ``"test"``.
        clock: Of the pass.
    """
    _log(model, metric_scope(stage), {"cost/seconds": clock.busy, "cost/share": clock.share})


def write_outputs(
    trainer: Trainer, scope: str, number: int, diagnosis: Diagnosis, settings: Settings
) -> None:
    """Write histograms and files.

    Args:
        trainer: The trainer.
        scope: A key of the monitor's results.
        number: Of the pass, counted per stage from 0.
        diagnosis: What it found.
        settings: Of the monitor.
    """
    rankings, index = diagnosis.rankings, diagnosis.index
    for experiment in _experiments(trainer):
        write_depth_histograms(
            experiment, metric_scope(scope), rankings, index, trainer.global_step
        )
    if settings.write_files and not rehearsal(trainer) and trainer.log_dir is not None:
        context: dict[str, Any] = {
            "stage": scope.partition("/")[0],
            "loader": int(scope.partition("/loader")[2] or 0),
            "pass": number,
            "step": trainer.global_step,
        }
        try:
            folder = Path(str(trainer.log_dir)) / "salmon"
            write_diagnosis(folder, scope, number, diagnosis, context, settings.top_k)
        except OSError as error:
            logger.warning(
                "SaliencyMonitor could not write the flagged samples and fits of %s pass %d (%s); "
                "its metrics are logged all the same.", scope, number, error,
            )  # fmt: skip


def log_summary(scope: str, number: int, diagnosis: Diagnosis, clock: Clock, skipped: int) -> None:
    """Say in the log what was found, what was left out, and what it cost.

    Args:
        scope: A key of the monitor's results.
        number: Of the pass.
        diagnosis: What it found.
        clock: Of the pass.
        skipped: Batches left out.
    """
    kept = len(diagnosis.mistakes.sample)
    shares = share_metrics({"pot": diagnosis.rankings["pot"]}, diagnosis.index)
    spread = ", ".join(f"{name.rpartition('/')[2]} {100 * x:.0f} %" for name, x in shares.items())
    part = f" (profiles of {kept} of {diagnosis.misclassified} kept within memory_mb)"
    logger.info(
        "SaliencyMonitor, %s pass %d: %d samples, %d misclassified%s. Top filters by POT: %s. "
        "Fits: %s. It took %.1f s, %.0f %% of the pass.",
        scope, number, diagnosis.samples, diagnosis.misclassified,
        "" if kept == diagnosis.misclassified else part,
        spread or "none could be ranked",
        ", ".join(f"{n} {s.label}" for s, n in diagnosis.fit.counts().items() if n),
        clock.busy, 100 * clock.share,
    )  # fmt: skip
    if diagnosis.dropped or skipped:
        logger.warning(
            "SaliencyMonitor, %s pass %d: %d samples had no finite saliency and do not count (%d "
            "of them for a class number out of range), and %d batches were left out.",
            scope, number, diagnosis.dropped, diagnosis.unlabelled, skipped,
        )  # fmt: skip


def _experiments(trainer: Trainer) -> list[Any]:
    """What the loggers write with; nothing in a fast_dev_run, whose loggers are dummies."""
    if rehearsal(trainer):
        return []
    return [getattr(each, "experiment", None) for each in trainer.loggers]


def _log(pl_module: LightningModule, prefix: str, metrics: dict[str, float]) -> None:
    """Log numbers as they are, once per epoch."""
    values = {f"{prefix}/{name}": torch.tensor(value) for name, value in metrics.items()}
    pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1)


def write_diagnosis(
    folder: Path,
    scope: str,
    number: int,
    diagnosis: Diagnosis,
    context: dict[str, Any],
    top_k: int,
) -> None:
    """Write the flags of a pass, and its fits in place of the last ones.

    Args:
        folder: Where to; it is made if missing.
        scope: Part of the names of the files.
        number: Of the pass.
        diagnosis: What it found.
        context: Plain values added to every flag.
        top_k: Filters per flagged batch.

    Raises:
        OSError: If a file cannot be written.
    """
    name = scope.replace("/", "-")
    index, fit, mistakes = diagnosis.index, diagnosis.fit, diagnosis.mistakes
    if len(mistakes.sample):
        flags = (
            *(
                flag | {"id_source": diagnosis.id_source}
                for flag in sample_flags(
                    mistakes, diagnosis.rankings["pot"], index, fit, diagnosis.ids
                )
            ),
            *batch_flags(mistakes, diagnosis.profile, index, fit, top_k),
        )
        lines = (f"{json_text(flag | context)}\n".encode() for flag in flags)
        path = folder / f"flagged-{name}-{number:06d}.jsonl"
        write_atomically(path, lambda file: file.writelines(lines))
    save_fit(folder / f"fit-{name}.pt", fit, index)
