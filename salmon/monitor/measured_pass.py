"""One measured validation or test: from batches to logged and written diagnoses, one per loader."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pytorch_lightning import LightningModule, Trainer

from salmon.errors import InputError, StateError
from salmon.filters import FilterIndex
from salmon.gpd import TailFit
from salmon.monitor.bases import logger
from salmon.monitor.batches import ids_of_batch
from salmon.monitor.conclusion import Conclusion
from salmon.monitor.context import (
    Clock,
    expected_samples,
    forward_context,
    guarded,
    in_dataset_order,
    loader_count,
    muted,
    numbering_of,
    ordinary_tensors,
)
from salmon.monitor.memory import ViewMemory
from salmon.monitor.output import (
    announce_coverage,
    log_cost,
    log_summary,
)
from salmon.monitor.ranks import ALONE, PeerError, Ranks
from salmon.monitor.run import Run, lenient_cross_entropy
from salmon.monitor.settings import Settings
from salmon.ranking import Diagnosis
from salmon.saliency import (
    Coverage,
    check_samples,
    coverage_of,
    eval_mode,
    measure,
    take_rows,
)
from salmon.tails import load_fit


class MeasuredPass:
    """Trouble with data, network or disk ends the pass with a warning, unless ``strict``."""

    def __init__(
        self,
        settings: Settings,
        stage: str,
        number: int,
        model: LightningModule,
        coverage: Coverage | None = None,
        memory: ViewMemory | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Index the filters and read the reference.

        Args:
            settings: Of the monitor.
            stage: ``"validation"`` or ``"test"``.
            number: Of the pass, counted per stage from 0.
            model: The network.
            coverage: What was last announced as measured; another one will be announced.
            memory: What the views know of the passes before; updated.
            ranks: All processes.
        """
        self.coverage = coverage
        self._settings = settings
        self._stage = stage
        self._number = number
        self._clock = Clock()
        self._clocks: defaultdict[int, Clock] = defaultdict(Clock)  # by loader
        self._ranks = ranks
        self._conclusion = Conclusion(settings, number, self._clock, memory or ViewMemory(), ranks)
        self._runs: dict[int, Run] = {}
        self._skipped = 0
        self._alive = False
        self._error: Exception | None = None  # that ended the pass here
        self._announced = False
        self._finishing = False
        with self._guarded("could not start"), self._clock:
            self._index = settings.build_index(model)
            self._reference = _load_reference(settings, self._index)
            self._alive = True

    def measure(
        self, trainer: Trainer, model: LightningModule, batch: Any, number: int, loader: int
    ) -> None:
        """Measure the chosen samples of a batch.

        Args:
            trainer: The trainer.
            model: The network.
            batch: What the loader gave.
            number: Of the batch in its loader.
            loader: The loader's number.
        """
        if not self._alive:
            return
        own = self._clocks[loader]
        with self._guarded("stopped measuring"), self._clock, own, ordinary_tensors():
            try:
                inputs, targets = self._settings.unpack(batch)
                samples = check_samples(inputs, targets)
                ids, source = ids_of_batch(batch, samples, self._settings.sample_ids)
            except InputError as error:
                self._skip(number, error)
                return
            run = self._run(trainer, loader)
            rows = run.choose(samples)
            if len(rows) == 0:
                return
            if len(rows) < samples:
                inputs, targets = take_rows((inputs, targets), rows, samples)
            loss = self._settings.loss
            if loss is None and targets.ndim == 1 and not targets.is_floating_point():
                loss = lenient_cross_entropy
            with eval_mode(model) as was_training, muted(model):
                measurement = measure(
                    model,
                    inputs,
                    targets,
                    index=self._index,
                    loss=loss,
                    forward_context=partial(forward_context, trainer),
                )
            if was_training and number == 0:
                logger.warning(
                    "SaliencyMonitor found modules in train mode during %s; saliency is measured "
                    "in eval mode, and the modes were put back.", self._stage,
                )  # fmt: skip
            self._announce(trainer, model, measurement.methods)
            if ids is not None:
                run.id_source = source
            run.add(measurement, targets, rows, samples, number, ids, inputs)

    def finish(self, trainer: Trainer, model: LightningModule) -> dict[str, Diagnosis]:
        """Fit, rank, log and write.

        Args:
            trainer: The trainer.
            model: The network.

        Returns:
            A diagnosis per scope: the stage, with ``/loaderN`` behind where there are several.
        """
        found: dict[str, Diagnosis] = {}
        self._finishing = True
        loaders, skipped = self._agree()
        if self._ended():
            return found
        if not loaders and self._ranks.first:
            logger.warning(
                "SaliencyMonitor measured no sample in %s pass %d (%d batches left out); nothing "
                "is fitted or logged.", self._stage, self._number, skipped,
            )  # fmt: skip
        several = loader_count(trainer) > 1
        for loader in loaders:
            if self._ended():  # on all ranks, since what ends it is told to all
                break
            scope = f"{self._stage}/loader{loader}" if several else self._stage
            own = self._clocks[loader]
            with self._guarded(f"could not finish {scope}"), self._clock, own, ordinary_tensors():
                run = self._run(trainer, loader)
                found[scope] = self._conclusion.conclude(trainer, model, scope, loader, run, own)
        if found and not self._ended():
            with self._guarded("could not log its cost"):
                end = self._conclusion
                log_cost(model, self._stage, self._clock, end.picturing, end.showing)
        for scope, diagnosis in found.items() if self._ranks.first else ():
            log_summary(scope, self._number, diagnosis, self._clock, skipped)
        return found

    def _ended(self) -> bool:
        """Whether trouble ended the pass."""
        return not self._alive

    def _agree(self) -> tuple[list[int], int]:
        """Loaders that gave a sample to any rank, and batches left out; or the end of the pass."""
        if self._ranks.size == 1:
            return sorted(self._runs), self._skipped
        error = self._error
        text = None if error is None else f"{type(error).__name__}: {error}"
        states = self._ranks.objects((text, list(self._runs), self._skipped))
        if error is not None and self._settings.strict:  # else it was told when it happened
            raise error
        if error is None and any(trouble is not None for trouble, _, _ in states):
            rank, trouble = next((r, s[0]) for r, s in enumerate(states) if s[0] is not None)
            with self._guarded("stopped"):
                raise PeerError(f"rank {rank} of {self._ranks.size} stopped ({trouble})")
        loaders = {loader for _, runs, _ in states for loader in runs}
        return sorted(loaders), sum(count for _, _, count in states)

    def _announce(self, trainer: Trainer, model: LightningModule, methods: list[str]) -> None:
        """Say what is measured, where it is not what was said last."""
        if self._announced:
            return
        self._announced = True
        found = coverage_of(model, self._index, methods)
        if found != self.coverage:
            self.coverage = found
            announce_coverage(trainer, self._stage, found, self._settings)

    def _run(self, trainer: Trainer, loader: int) -> Run:
        """The run of a loader, begun at its first batch."""
        if loader not in self._runs:
            self._runs[loader] = Run(
                self._index,
                self._settings,
                reference=self._reference,
                expected=expected_samples(trainer, loader),
                numbering=numbering_of(trainer, loader),
            )
            if in_dataset_order(trainer, loader):
                self._runs[loader].id_source = "sampler"
        return self._runs[loader]

    def _skip(self, number: int, error: InputError) -> None:
        """Leave a batch out, say so once per pass, and count."""
        if self._settings.strict:
            raise error
        if self._skipped == 0:
            logger.warning("SaliencyMonitor left out batch %d: %s", number, error)
        self._skipped += 1

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Turn trouble into a warning and end the pass, unless ``strict``."""
        try:
            yield
        except Exception as error:
            self._alive, self._error = False, error
            if self._settings.strict and self._ranks.size > 1 and not self._finishing:
                return  # raised at the end of the pass, when the other ranks know
            with guarded(self._settings, what):
                raise


def _load_reference(settings: Settings, index: FilterIndex) -> TailFit | None:
    """The fits to rank with, if they are given."""
    reference = settings.reference
    if reference is None:
        return None
    fit = reference if isinstance(reference, TailFit) else load_fit(reference, index)
    if fit.threshold.numel() != len(index):
        raise StateError(
            f"reference fits {fit.threshold.numel()} filters but this network has {len(index)}; "
            "use the network, include= and exclude= it was made with."
        )
    return fit
