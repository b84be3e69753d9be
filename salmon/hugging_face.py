"""A callback for the Trainer of Hugging Face's transformers, which evaluates without gradients."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from salmon.diagnosis import Diagnosis, Pass, PassSettings
from salmon.errors import InputError, UnsupportedError
from salmon.filters import FilterIndex
from salmon.saliency import take_rows

logger = logging.getLogger(__name__)

_LABELS = ("labels", "label", "label_ids")


class SaliencyCallback(TrainerCallback):
    """Find the filters behind the mistakes of a network, after each evaluation.

    It goes over the evaluation's batches once more, with gradients, and leaves the network as it
    was. ``transformers.Trainer(callbacks=[SaliencyCallback(units=("heads", "linear"))])``.

    Attributes:
        diagnosis: What the last evaluation found; None before.
    """

    def __init__(
        self, settings: PassSettings | None = None, *, units: Sequence[str] = ("conv",)
    ) -> None:
        """Set up; nothing is measured before the first evaluation.

        Args:
            settings: Such as ``PassSettings(task="sequence")``; None takes the defaults.
            units: What to measure: ``"conv"``, ``"heads"`` (attention), ``"linear"``.
        """
        self.diagnosis: Diagnosis | None = None
        self._settings, self._units = settings, units

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Measure the batches of the evaluation.

        Raises:
            InputError: If a batch holds no labels, or they do not fit the task.
            UnsupportedError: If several processes share the evaluation.
        """
        if args.world_size > 1:
            raise UnsupportedError(
                f"{args.world_size} processes share the evaluation, and SaliencyCallback sees its "
                "own part only; run trainer.evaluate() in one process, or feed a salmon.Pass each."
            )
        model, loader, own = given["model"], given["eval_dataloader"], None
        for batch in loader:
            inputs, targets = _parted(pytree.tree_map_only(Tensor, partial(_to, args), batch))
            if own is None:
                one = take_rows(inputs, slice(0, 1), len(targets))
                index = FilterIndex.from_model(model, units=self._units, inputs=one)
                own = Pass(
                    model, self._settings, index=index, forward_context=partial(_context, args)
                )
            own.update(inputs, targets)
        if own is not None:
            self.diagnosis = own.compute()
            logger.info("Evaluation at step %d: %s", state.global_step, self.diagnosis)


def _to(args: TrainingArguments, tensor: Tensor) -> Tensor:
    return tensor.to(args.device)


def _parted(batch: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """What the network gets, without the labels, whose loss would be a mean; and these."""
    name = next((name for name in _LABELS if name in batch), None)
    if name is None:
        raise InputError(
            f"a batch of the evaluation holds {', '.join(batch)}; one of {', '.join(_LABELS)} is "
            "needed."
        )
    return {key: value for key, value in batch.items() if key != name}, batch[name]


def _context(args: TrainingArguments) -> AbstractContextManager[object]:
    """The precision of the evaluation."""
    if not (args.bf16 or args.fp16):
        return nullcontext()
    dtype = torch.bfloat16 if args.bf16 else torch.float16
    return torch.autocast(args.device.type, dtype=dtype)
