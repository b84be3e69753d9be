"""One measured validation or test: from batches to logged and written diagnoses, one per loader."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from salmon.errors import InputError, StateError
from salmon.filters import FilterIndex
from salmon.forward import eval_mode
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
    muted,
    numbering_of,
    ordinary_tensors,
    scope_of,
)
from salmon.monitor.memory import ViewMemory
from salmon.monitor.output import (
    announce_coverage,
    log_cost,
    log_summary,
)
from salmon.monitor.ranks import ALONE, PeerError, Ranks
from salmon.monitor.run import Run
from salmon.monitor.settings import Settings
from salmon.monitor.step import Fed, StepWatch, differing
from salmon.monitor.trust import Evidence
from salmon.ranking import Diagnosis
from salmon.saliency import (
    Coverage,
    check_samples,
    class_numbers,
    coverage_of,
    measure,
    nan_where_unlabelled,
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
        """Prepare; nothing is measured yet.

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
        self._alive = True
        self._error: Exception | None = None  # that ended the pass here
        self._announced = False
        self._finishing = False
        self._model = model
        self._step = StepWatch(model)
        self._index: FilterIndex | None = None  # known from the first batch on
        self._reference: TailFit | None = None

    def begin(self, batch: Any) -> None:
        """Watch what the user's step does with a batch.

        Args:
            batch: What the loader gave.
        """
        if self._alive:
            with self._guarded("could not look at a batch"), self._clock:
                self._step.begin(batch)

    def close(self) -> None:
        """Look no longer, however the pass ends."""
        self._step.close()

    def measure(self, trainer: Trainer, batch: Any, number: int, loader: int) -> None:
        """Measure the chosen samples of a batch.

        Args:
            trainer: The trainer.
            batch: What the loader gave.
            number: Of the batch in its loader.
            loader: The loader's number.
        """
        if self._alive:
            with (
                self._guarded("stopped measuring"), self._clock, self._clocks[loader],
                ordinary_tensors(), muted(self._model),
            ):  # fmt: skip
                self._take(trainer, self._step.end(batch), number, loader)
        self._step.close()

    def _take(self, trainer: Trainer, batch: Any, number: int, loader: int) -> None:
        """Choose samples of a batch and measure them."""
        try:
            inputs, targets = self._settings.unpack(batch)
            samples = check_samples(inputs, targets)
            ids, source = ids_of_batch(batch, samples, self._settings.sample_ids)
            fed = self._step.fed(inputs, samples)
        except InputError as error:
            self._skip(number, error)
            return
        if class_numbers(targets) is not None:
            targets = targets.long()  # a GPU cannot choose rows of every other type
        if self._index is None:
            one = take_rows(fed.inputs, slice(0, 1), samples)
            self._use(self._settings.build_index(self._model, one))
        run = self._run(trainer, loader)
        if ids is not None:
            run.id_source = source
        rows = run.choose(samples)
        if len(rows) == 0:
            return
        inputs = fed.inputs
        if len(rows) < samples:
            inputs, targets = take_rows((inputs, targets), rows, samples)
        try:
            with eval_mode(self._model) as was_training:
                measurement = measure(
                    self._model,
                    inputs,
                    targets,
                    index=self._index,
                    loss=nan_where_unlabelled(self._settings.loss),
                    forward_context=partial(forward_context, trainer),
                )
            off = differing(measurement.output, fed.seen, rows, samples)
            run.add(measurement, targets, rows, samples, number, ids, inputs)
        except (InputError, RuntimeError) as error:
            # What other batches went through is no fault of the network: a last batch of one,
            # for example, that a squeeze() in forward flattens.
            if not self._announced:
                raise
            self._skip(number, error)
            return
        if was_training and number == 0:
            logger.warning(
                "SaliencyMonitor found modules in train mode during %s; saliency is measured "
                "in eval mode, and the modules were put back.", self._stage,
            )  # fmt: skip
        self._announce(trainer, measurement.methods)
        self._weigh(run.evidence, fed, off, len(rows))

    def _weigh(self, evidence: Evidence, fed: Fed, off: Tensor | None, samples: int) -> None:
        """Count what speaks for another function in the step than the one measured."""
        evidence.prepared += not fed.as_loaded
        evidence.ambiguous += fed.ambiguous
        if off is not None:
            evidence.compared += samples
            evidence.differing = evidence.differing + off.sum()
        elif not fed.seen and self._step.overwritten:
            self._tell_once(
                "overwritten", "the step changes its batch in place and is not seen to run the "
                "network on it; what is measured is the batch as it is afterwards.",
            )  # fmt: skip

    def _use(self, index: FilterIndex) -> None:
        """Measure the filters of an index, and rank with the reference, if there is one."""
        self._reference, self._index = _load_reference(self._settings, index), index

    def finish(self, trainer: Trainer, model: LightningModule) -> dict[str, Diagnosis]:
        """Fit, rank, log and write.

        Args:
            trainer: The trainer.
            model: The network.

        Returns:
            A diagnosis per scope: the stage, with the loader's name behind where there are several.
        """
        found: dict[str, Diagnosis] = {}
        self._finishing = True
        self.close()
        loaders, skipped = self._agree()
        if self._ended():
            return found
        if not loaders and self._ranks.first:
            logger.warning(
                "SaliencyMonitor measured no sample in %s pass %d (%d batches left out); nothing "
                "is fitted or logged.", self._stage, self._number, skipped,
            )  # fmt: skip
        for loader in loaders:
            if self._ended():  # on all ranks, since what ends it is told to all
                break
            scope = scope_of(trainer, self._stage, loader)
            own = self._clocks[loader]
            with self._guarded(f"could not finish {scope}"), self._clock, own, ordinary_tensors():
                run = self._run(trainer, loader)
                found[scope] = self._conclusion.conclude(trainer, model, scope, loader, run, own)
                self._judge(found[scope], run)
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
        states = self._ranks.objects((text, list(self._runs), self._skipped, self._index))
        if error is not None and self._settings.strict:  # else it was told when it happened
            raise error
        if error is None and any(state[0] is not None for state in states):
            rank, trouble = next((r, s[0]) for r, s in enumerate(states) if s[0] is not None)
            with self._guarded("stopped"):
                raise PeerError(f"rank {rank} of {self._ranks.size} stopped ({trouble})")
        known = next((index for _, _, _, index in states if index is not None), None)
        if self._index is None and known is not None:  # no batch came to this process
            with self._guarded("could not read its reference"):
                self._use(known)
        loaders = {loader for _, runs, _, _ in states for loader in runs}
        return sorted(loaders), sum(count for _, _, count, _ in states)

    def _judge(self, diagnosis: Diagnosis, run: Run) -> None:
        """Say what speaks against the numbers, once in a training."""
        if self._settings.strict and diagnosis.doubts:
            raise InputError(" ".join(diagnosis.doubts))
        for doubt in diagnosis.doubts:
            kind = doubt.partition(" (")[0]
            self._tell_once(kind, f"the numbers are not to be trusted. {doubt}")
        if not diagnosis.doubts and not run.evidence.compared:
            self._tell_once(
                "unseen", "the step was not seen to run the network (it is compiled, or no part of "
                "the module), so that it cannot be checked that it evaluates what was measured, "
                "which is forward on the inputs of the batch.",
            )  # fmt: skip

    def _tell_once(self, key: str, text: str) -> None:
        """Warn, unless it was done before."""
        told = self._conclusion.memory.told
        if key not in told and self._ranks.first:
            told.add(key)
            logger.warning("SaliencyMonitor, %s pass %d: %s", self._stage, self._number, text)

    def _announce(self, trainer: Trainer, methods: list[str]) -> None:
        """Say what is measured, where it is not what was said last."""
        if self._announced:
            return
        self._announced = True
        assert self._index is not None
        found = coverage_of(self._model, self._index, methods)
        if found != self.coverage:
            self.coverage = found
            announce_coverage(trainer, self._stage, found, self._settings)

    def _run(self, trainer: Trainer, loader: int) -> Run:
        """The run of a loader, begun at its first batch."""
        if loader not in self._runs:
            assert self._index is not None
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

    def _skip(self, number: int, error: Exception) -> None:
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
