"""Labelled samples out of a trainer's own loop, as the network gets them there, for a repair."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from salmon.diagnosis import Evidence
from salmon.errors import InputError
from salmon.forward import call_network, eval_mode, no_trace
from salmon.monitor.bases import CallbackBase
from salmon.monitor.batches import ids_of_batch
from salmon.monitor.distributed import Numbering
from salmon.monitor.facts import class_names
from salmon.monitor.settings import Settings
from salmon.monitor.step import StepWatch
from salmon.monitor.trainers import (
    forward_context,
    in_dataset_order,
    loader_of,
    muted,
    ordinary_tensors,
    scope_of,
)
from salmon.repairs import Gathering
from salmon.saliency import check_samples, prediction_of, take_rows


class SampleBook:
    """Labelled samples of one validation or test, by scope, as its network got them."""

    def __init__(self, *, most: int, seed: int) -> None:
        """Start empty.

        Args:
            most: Samples kept of each loader.
            seed: Of their choice.
        """
        self.gathered: dict[str, Gathering] = {}
        """By scope, as the results of a monitor."""
        self.trouble: InputError | None = None
        """Why a batch could not be added."""
        self._most, self._seed = most, seed

    def add(
        self, scope: str, inputs: Any, targets: Tensor, ids: Sequence[int | str] | None,
        numbers: Tensor, *, ordered: bool, classes: Callable[[], Sequence[str] | None],
    ) -> None:  # fmt: skip
        """Take a batch of N samples up.

        Args:
            scope: Where it belongs.
            inputs: What the network got.
            targets: ``[N, ...]``.
            ids: ``[N]`` of the samples; None takes their positions.
            numbers: ``[N]`` positions; those below 0 are repeats and left out.
            ordered: Whether positions are the same in every pass.
            classes: Tells their names, if they are known; asked once.

        Raises:
            InputError: If the samples cannot be told apart.
        """
        if ids is None and not ordered:
            raise InputError(
                f"the loader of {scope!r} does not keep the order of its dataset and its batches "
                "hold no ids; use shuffle=False, or batches that are mappings with an 'id' (in the "
                "monitor also sample_ids=)."
            )
        rows = (numbers >= 0).nonzero().squeeze(1)
        if len(rows) == 0:
            return
        names = [int(numbers[row]) if ids is None else ids[row] for row in rows.tolist()]
        if len(rows) < len(numbers):
            inputs, targets = take_rows((inputs, targets), rows, len(numbers))
        if scope not in self.gathered:
            self.gathered[scope] = Gathering(
                most=self._most, seed=self._seed, classes=classes() or ()
            )
        self.gathered[scope].add(inputs, targets, names)

    def merge(self, other: "SampleBook") -> None:
        """Take over what another process collected."""
        self.trouble = self.trouble or other.trouble
        for scope, theirs in other.gathered.items():
            if scope in self.gathered:
                self.gathered[scope].merge(theirs)
            else:
                self.gathered[scope] = theirs


class SampleCollector(CallbackBase):
    """Collects what a validation or test feeds to its network, without measuring it."""

    def __init__(
        self, settings: Settings, *, most: int, seed: int, columns: Sequence[str] = ()
    ) -> None:
        """Start empty.

        Args:
            settings: How batches are unpacked, and where ids come from.
            most: Samples kept of each loader.
            seed: Of their choice.
            columns: Entries of the batches, which are mappings then, to be noted of every sample.
        """
        super().__init__()
        self.book = SampleBook(most=most, seed=seed)
        self.columns: dict[str, dict[int | str, tuple[object, ...]]] = {}
        """By scope and id, the values of the columns."""
        self._names = tuple(columns)
        self._settings = settings
        self._numbering: dict[str, Numbering] = {}
        self._watch: StepWatch | None = None

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Watch what the step does with a batch."""
        self._watch = self._watch or StepWatch(pl_module)
        self._watch.begin(batch)

    on_test_batch_start = on_validation_batch_start

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any,
        batch_idx: int, dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keep its samples."""
        assert self._watch is not None
        stage = "test" if trainer.testing else "validation"
        scope = scope_of(trainer, stage, dataloader_idx)
        with ordinary_tensors():
            batch = self._watch.end(batch)
            inputs, targets = self._settings.unpack(batch)
            samples = check_samples(inputs, targets)
            ids, _ = ids_of_batch(batch, samples, self._settings.sample_ids)
            inputs, step = self._watch.fed(inputs, samples)
            if batch_idx == 0:
                with (
                    eval_mode(pl_module), no_trace(pl_module), muted(pl_module),
                    forward_context(trainer),
                ):  # fmt: skip
                    output = call_network(pl_module, inputs)
                evidence = Evidence(ambiguous=int(step.ambiguous))
                evidence.weigh(prediction_of(output), step.predictions(samples))
                if evidence.doubts():
                    raise InputError(evidence.doubts()[0])
            numbers = self._numbering.setdefault(scope, Numbering()).next(samples)
            ordered = in_dataset_order(trainer, dataloader_idx)
            loader = loader_of(trainer, dataloader_idx)
            classes = partial(class_names, loader, self._settings.views)
            self.book.add(scope, inputs, targets, ids, numbers, ordered=ordered, classes=classes)
            if self._names:
                names = numbers.tolist() if ids is None else ids
                values = zip(*(_column(batch, n, samples) for n in self._names), strict=True)
                self.columns.setdefault(scope, {}).update(zip(names, values, strict=True))
            self._watch.close()

    on_test_batch_end = on_validation_batch_end


def _column(batch: Any, name: str, samples: int) -> list[object]:
    """``[N]`` plain values of an entry of a batch."""
    values = batch.get(name) if isinstance(batch, Mapping) else None
    values = values.tolist() if isinstance(values, Tensor) else values
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != samples:
        raise InputError(
            f"the batch has no entry {name!r} with a value for each of its {samples} samples; "
            "slices need batches that are mappings, such as {'image': ..., 'label': ..., "
            f"{name!r}: [...]}}."
        )
    return list(values)
