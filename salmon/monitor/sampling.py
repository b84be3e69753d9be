"""Labelled samples out of a trainer's own loop, as the network gets them there, for a repair."""

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer

from salmon.diagnosis.evidence import Evidence, differing
from salmon.errors import InputError
from salmon.forward import call_network, eval_mode, no_trace
from salmon.monitor.bases import CallbackBase
from salmon.monitor.batches import ids_of_batch
from salmon.monitor.settings import Settings
from salmon.monitor.step import StepWatch
from salmon.monitor.trainers import in_dataset_order, muted, ordinary_tensors, scope_of
from salmon.repairs import Gathering
from salmon.saliency import check_samples


class SampleCollector(CallbackBase):
    """Collects what a validation or test feeds to its network, by loader."""

    def __init__(self, what: str, settings: Settings, *, most: int, seed: int) -> None:
        """Start empty."""
        super().__init__()
        self.gathered: dict[str, Gathering] = {}
        """By scope, as the results of a monitor."""
        self._what, self._settings, self._most, self._seed = what, settings, most, seed
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
            if ids is None and not in_dataset_order(trainer, dataloader_idx):
                raise InputError(
                    f"the loader of the {self._what} data does not keep the order of its dataset "
                    "and its batches hold no ids; use shuffle=False, or batches that are mappings "
                    "with an 'id' (in the monitor also sample_ids=)."
                )
            inputs, step = self._watch.fed(inputs, samples)
            if batch_idx == 0:
                with eval_mode(pl_module), no_trace(pl_module), muted(pl_module):
                    output = call_network(pl_module, inputs)
                evidence, rows = Evidence(), torch.arange(samples)
                evidence.weigh(step, differing(output, step.outputs, rows, samples), samples)
                if evidence.doubts():
                    raise InputError(evidence.doubts()[0])
            own = self.gathered.setdefault(scope, Gathering(most=self._most, seed=self._seed))
            own.add(inputs, targets, ids)
            self._watch.close()

    on_test_batch_end = on_validation_batch_end
