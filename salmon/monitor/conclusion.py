"""The end of a pass: fit and rank, then log, write and show what was found."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from pytorch_lightning import LightningModule, Trainer

from salmon.monitor.bases import logger
from salmon.monitor.context import Clock, forward_context, guarded, loader_of, muted
from salmon.monitor.facts import class_names, normalisation
from salmon.monitor.imaging import FlaggedImages, flagged_images
from salmon.monitor.memory import ViewMemory
from salmon.monitor.output import (
    boards,
    folder_of,
    log_metrics,
    metric_scope,
    pass_context,
    write_diagnosis,
)
from salmon.monitor.ranks import ALONE, Ranks
from salmon.monitor.run import Run
from salmon.monitor.settings import Settings
from salmon.ranking import Diagnosis
from salmon.views import Board, History, PassRecord, add_layout, publish, record_pass


class Conclusion:
    """Of one pass, loader by loader. What cannot be written or shown costs nothing else."""

    def __init__(
        self,
        settings: Settings,
        number: int,
        passing: Clock,
        memory: ViewMemory,
        ranks: Ranks = ALONE,
    ) -> None:
        """Prepare.

        Args:
            settings: Of the monitor.
            number: Of the pass.
            passing: Of the pass.
            memory: What the views know of the passes before; updated.
            ranks: All processes; the first one writes and shows.
        """
        self.picturing = Clock()
        """Of the pictures of mistakes, saliency maps for the most part."""
        self.showing = Clock()
        """Of drawing and writing views."""
        self._settings = settings
        self._number = number
        self._passing = passing
        self.memory = memory
        """What the views know of the passes before, and what the user was told."""
        self._ranks = ranks

    def conclude(
        self, trainer: Trainer, model: LightningModule, scope: str, loader: int, run: Run,
        measuring: Clock,
    ) -> Diagnosis:  # fmt: skip
        """Conclude the run of one loader.

        Args:
            trainer: The trainer.
            model: The network.
            scope: A key of the monitor's results.
            loader: The loader's number.
            run: What was measured.
            measuring: Runs while this loader is measured or concluded.

        Returns:
            What it found.
        """
        classes = self._ranks.together(
            lambda: class_names(loader_of(trainer, loader), self._settings.views)
        )
        diagnosis = run.finish(self._ranks)
        folder = folder_of(
            trainer, self._settings, self.memory
        )  # asks the first rank, so all have to call

        def tell() -> None:
            record = record_pass(
                diagnosis,
                **pass_context(trainer, scope, self._number, loader),
                given_fit=self._settings.reference is not None,
                run=self.memory.run,
                seconds=measuring.busy,
                share=measuring.busy / max(self._passing.total, 1e-9),
                classes=classes,
            )
            log_metrics(model, scope, record)
            history, before = self.memory.take(scope, record, diagnosis.index)
            if self._ranks.first:
                images = FlaggedImages()
                with guarded(self._settings, "could not picture the mistakes"), self.picturing:
                    images = self._picture(trainer, model, loader, run, diagnosis, classes)
                self._write(folder, scope, diagnosis, record, images)
                with guarded(self._settings, "could not show its views"), self.showing:
                    self._show(trainer, scope, record, history, before, images)

        self._ranks.together(tell)
        return diagnosis

    def _picture(
        self,
        trainer: Trainer,
        model: LightningModule,
        loader: int,
        run: Run,
        diagnosis: Diagnosis,
        classes: Sequence[str] | None,
    ) -> FlaggedImages:
        """Make images of the worst mistakes."""
        settings, data = self._settings, loader_of(trainer, loader)
        with muted(model):
            images = flagged_images(
                model, diagnosis, run.worst, settings,
                classes=classes, normalisation=normalisation(data, settings.views),
                maps=not self.memory.without_maps,
                forward_context=partial(forward_context, trainer),
            )  # fmt: skip
        self.memory.without_maps |= images.without_maps
        return images

    def _write(
        self, folder: Path | None, scope: str, diagnosis: Diagnosis, record: PassRecord,
        images: FlaggedImages,
    ) -> None:  # fmt: skip
        """Write the files."""
        if folder is None:
            return
        try:
            with self.showing:
                write_diagnosis(folder, scope, diagnosis, record, images)
        except OSError as error:
            logger.warning(
                "SaliencyMonitor, %s pass %d, could not write %s; its metrics are logged all the "
                "same.", scope, record.number, error,
            )  # fmt: skip

    def _show(
        self, trainer: Trainer, scope: str, record: PassRecord, history: History,
        before: Mapping[str, int] | None, images: FlaggedImages,
    ) -> None:  # fmt: skip
        """Put charts, tables and pictures up."""
        views, found, tags = self._settings.views, boards(trainer), metric_scope(scope)

        def guard(what: str) -> AbstractContextManager[None]:
            return guarded(self._settings, f"could not show its {what}")

        for board in found if views.layout else ():
            with guard(f"layout in {board.name}"):
                self._lay_out(board, tags)
        publish(
            found, tags, record, history,
            before=before, pictures=images.pictures, figures=views.figures,
            shown=self.memory.shown, guard=guard,
        )  # fmt: skip

    def _lay_out(self, board: Board, tags: str) -> None:
        """Put a layout up, once per run."""
        run = (str(getattr(board.experiment, "log_dir", "")), tags)
        if run in self.memory.laid_out:
            return
        self.memory.laid_out.add(run)
        if add_layout(board.experiment, [tags]) == "joined":
            logger.info(
                "SaliencyMonitor put its charts behind the custom scalars that this run has; "
                "ViewSettings(layout=False) leaves them out."
            )
