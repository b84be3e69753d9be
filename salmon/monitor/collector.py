"""One validation or test of a trainer: its batches go to a pass per loader, and diagnoses come out.

Trouble with data, network or disk ends it with a warning, unless ``strict``; what cannot be written
or shown costs nothing else.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from salmon.diagnosis import Diagnosis, Pass
from salmon.errors import InputError, pass_on_interrupts
from salmon.filters import FilterIndex
from salmon.monitor.bases import logger, tolerated
from salmon.monitor.batches import ids_of_batch
from salmon.monitor.context import PassContext
from salmon.monitor.distributed import Numbering, PeerError
from salmon.monitor.facts import class_names
from salmon.monitor.output import (
    MEASURING,
    announce_coverage,
    log_cost,
    log_summary,
    publish_pass,
)
from salmon.monitor.step import StepWatch
from salmon.monitor.trainers import (
    expected_samples,
    forward_context,
    in_dataset_order,
    is_last_batch,
    loader_of,
    muted,
    numbering_of,
    ordinary_tensors,
    scope_of,
)
from salmon.saliency import Coverage, check_samples, take_rows


class Collector:
    """Of one validation or test."""

    def __init__(self, context: PassContext, coverage: Coverage | None = None) -> None:
        """Prepare; nothing is measured yet.

        Args:
            coverage: What was last announced as measured; another one will be announced.
        """
        self.coverage = coverage
        self._context = context
        self._settings, self._processes = context.settings, context.processes
        self._step = StepWatch(context.model)
        self._index: FilterIndex | None = None  # known from the first batch on
        self._passes: dict[int, Pass] = {}  # by loader
        self._numbering: dict[int, Numbering] = {}
        self._skipped = 0
        self._alive = True
        self._error: Exception | None = None  # that ended it here
        self._announced = False
        self._finishing = False

    def begin(self, batch: Any) -> None:
        """Watch what the user's step does with a batch."""
        if self._alive:
            with self._ending("could not look at a batch"), self._context.clock.part("watching"):
                self._step.begin(batch)

    def close(self) -> None:
        """Look no longer, however it ends."""
        self._step.close()

    def measure(self, batch: Any, number: int, loader: int) -> None:
        """Measure the chosen samples of a batch, given its number and that of its loader."""
        if self._alive:
            clock = self._context.clock
            with (
                self._ending("stopped measuring"), clock.part(f"loader {loader}"),
                clock.part(f"{MEASURING} {loader}"), ordinary_tensors(), muted(self._context.model),
            ):  # fmt: skip
                self._take(self._step.end(batch), number, loader)
                if is_last_batch(self._context.trainer, number, loader):
                    # Somebody else may give the network other weights before the epoch is over.
                    self._flush(number, loader)
        self._step.close()

    def finish(self) -> dict[str, Diagnosis]:
        """Fit, rank, log and write.

        Returns:
            A diagnosis per scope: the stage, with the loader's name behind where there are several.
        """
        found: dict[str, Diagnosis] = {}
        self._finishing = True
        self.close()
        with self._ending("stopped measuring"), ordinary_tensors(), muted(self._context.model):
            for loader in self._passes if self._alive else ():
                self._flush(-1, loader)
        measuring: dict[str, float] = {}  # seconds by scope
        loaders, skipped = self._agree()
        if self._ended():
            return found
        if not loaders and self._processes.first:
            logger.warning(
                "SaliencyMonitor measured no sample in %s pass %d (%d batches left out); nothing "
                "is fitted or logged.", self._context.stage, self._context.number, skipped,
            )  # fmt: skip
        for loader in loaders:
            if self._ended():  # in all processes, since what ends it is told to all
                break
            scope = scope_of(self._context.trainer, self._context.stage, loader)
            part = self._context.clock.part(f"loader {loader}")
            with self._ending(f"could not finish {scope}"), part, ordinary_tensors():
                found[scope] = self._conclude(scope, loader)
                measuring[scope] = self._context.clock.seconds(f"{MEASURING} {loader}")
        if found and not self._ended():
            with self._ending("could not log its cost"):
                log_cost(self._context)
        for scope, diagnosis in found.items() if self._processes.first else ():
            log_summary(scope, measuring[scope], self._context, diagnosis, skipped)
        return found

    def _take(self, batch: Any, number: int, loader: int) -> None:
        """Choose samples of a batch and measure them."""
        try:
            inputs, targets = self._settings.unpack(batch)
            samples = check_samples(inputs, targets)
            ids, source = ids_of_batch(batch, samples, self._settings.sample_ids)
            inputs, step = self._step.fed(inputs, samples)
        except InputError as error:
            self._skip(number, error)
            return
        if self._index is None:
            one = take_rows(inputs, slice(0, 1), samples)
            self._index = self._settings.build_index(self._context.model, one)
        own = self._pass_of(loader)
        numbering = self._numbering[loader]
        numbers, batch_number = numbering.next(samples), numbering.batch(number)
        try:
            own.update(
                inputs, targets, ids,
                id_source=source, numbers=numbers, batch=batch_number, step=step,
            )  # fmt: skip
        except (InputError, RuntimeError) as error:
            # What other batches went through is no fault of the network: a last batch of one,
            # for example, that a squeeze() in forward flattens.
            if not self._announced:
                raise
            self._skip(number, error)
            return
        if not step.outputs and self._step.overwritten:
            self._tell_once(
                "overwritten", "the step changes its batch in place and is not seen to run the "
                "network on it; what is measured is the batch as it is afterwards.",
            )  # fmt: skip
        self._announce(own)
        self._announce_task(own)
        if (book := self._context.book) is not None:
            trainer = self._context.trainer
            scope = scope_of(trainer, self._context.stage, loader)
            ordered = in_dataset_order(trainer, loader)
            try:
                book.add(
                    scope, inputs, targets, ids, numbers, ordered=ordered,
                    classes=partial(class_names, loader_of(trainer, loader), self._settings.views),
                )  # fmt: skip
            except InputError as error:  # said when the repair is looked for
                book.trouble = book.trouble or error

    def _flush(self, number: int, loader: int) -> None:
        """Measure what waits of a loader, after its batch of a number."""
        own = self._passes.get(loader)
        if own is None:
            return
        try:
            own.flush()
        except (InputError, RuntimeError) as error:
            if not self._announced:
                raise
            self._skip(number, error)
        self._announce(own)

    def _pass_of(self, loader: int) -> Pass:
        """The pass over a loader, begun at its first batch."""
        if loader not in self._passes:
            trainer, views = self._context.trainer, self._settings.views
            scope = scope_of(trainer, self._context.stage, loader)
            self._passes[loader] = Pass(
                self._context.model,
                self._settings,
                index=self._index,
                reference=self._settings.reference,
                expected=expected_samples(trainer, loader),
                accuracy=self._context.memory.accuracy(scope),
                pictures=views.pictures,
                thumbnails=views.thumbnails,
                id_source="sampler" if in_dataset_order(trainer, loader) else "position",
                forward_context=partial(forward_context, trainer),
            )
            self._numbering[loader] = numbering_of(trainer, loader)
        return self._passes[loader]

    def _announce(self, own: Pass) -> None:
        """Say what is measured, where it is not what was said last."""
        found = None if self._announced else own.coverage
        if found is None:
            return
        self._announced = True
        if own.was_training and self._context.number == 0:
            logger.warning(
                "SaliencyMonitor found modules in train mode during %s; saliency is measured "
                "in eval mode, and the modules were put back.", self._context.stage,
            )  # fmt: skip
        if found != self.coverage:
            self.coverage = found
            announce_coverage(self._context.trainer, self._context.stage, found, self._settings)

    def _announce_task(self, own: Pass) -> None:
        """Say which task was recognised, but for the usual one."""
        task = own.task if self._settings.task is None else None
        told = self._context.memory.told
        usual = task is None or task.name == "classification" or task.name in told
        if task is not None and not usual and self._processes.first:
            told.add(task.name)
            logger.info(
                "SaliencyMonitor takes this for the task %r: a mistake is %s. If it is another, "
                "give task=.", task.name, task.rule(),
            )  # fmt: skip

    def _skip(self, number: int, error: Exception) -> None:
        """Leave a batch out, say so once per pass, and count."""
        if self._settings.strict:
            raise error
        if self._skipped == 0:
            logger.warning("SaliencyMonitor left out batch %d: %s", number, error)
        self._skipped += 1

    def _agree(self) -> tuple[list[int], int]:
        """Loaders that gave a sample to any process, and batches left out; or the end of it all."""
        if self._processes.size == 1:
            return sorted(self._passes), self._skipped
        error = self._error
        text = None if error is None else f"{type(error).__name__}: {error}"
        states = self._processes.objects((text, list(self._passes), self._skipped, self._index))
        if error is not None and self._settings.strict:  # else it was told when it happened
            raise error
        if error is None and any(state[0] is not None for state in states):
            rank, trouble = next((r, s[0]) for r, s in enumerate(states) if s[0] is not None)
            with self._ending("stopped"):
                raise PeerError(f"rank {rank} of {self._processes.size} stopped ({trouble})")
        if self._index is None:  # no batch came to this process
            self._index = next((index for _, _, _, index in states if index is not None), None)
        loaders = {loader for _, passes, _, _ in states for loader in passes}
        return sorted(loaders), sum(count for _, _, count, _ in states)

    def _conclude(self, scope: str, loader: int) -> Diagnosis:
        """Merge what all processes measured of a loader, compute, and make it known."""
        processes = self._processes
        own = processes.together(lambda: self._pass_of(loader))
        processes.reduce(own, own.merge)
        diagnosis, compared = processes.on_first(lambda: (own.compute(), own.compared))
        publish_pass(self._context, scope, loader, diagnosis, own)
        self._judge(diagnosis, compared=compared)
        return diagnosis

    def _judge(self, diagnosis: Diagnosis, *, compared: bool) -> None:
        """Say what speaks against the numbers, once in a training."""
        if self._settings.strict and diagnosis.doubts:
            raise InputError(" ".join(diagnosis.doubts))
        for doubt in diagnosis.doubts:
            kind = doubt.partition(" (")[0]
            self._tell_once(kind, f"the numbers are not to be trusted. {doubt}")
        if not diagnosis.doubts and not compared:
            self._tell_once(
                "unseen", "the step was not seen to run the network (it is compiled, or no part of "
                "the module), so that it cannot be checked that it evaluates what was measured, "
                "which is forward on the inputs of the batch.",
            )  # fmt: skip

    def _tell_once(self, key: str, text: str) -> None:
        """Warn, unless it was done before."""
        if key not in self._context.memory.told and self._processes.first:
            self._context.memory.told.add(key)
            logger.warning(
                "SaliencyMonitor, %s pass %d: %s", self._context.stage, self._context.number, text
            )

    def _ended(self) -> bool:
        """Whether trouble ended it."""
        return not self._alive

    @contextmanager
    def _ending(self, what: str) -> Iterator[None]:
        """Turn trouble into a warning that ends it all, unless ``strict``."""
        before = sys.exception()
        try:
            yield
        except Exception as error:
            pass_on_interrupts(error, before)
            self._alive, self._error = False, error
            if self._settings.strict and self._processes.size > 1 and not self._finishing:
                return  # raised at the end of the pass, when the other processes know
            with tolerated(what, strict=self._settings.strict):
                raise
