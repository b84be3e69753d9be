"""A callback for the Trainer of Hugging Face's transformers, which evaluates without gradients."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from salmon.diagnosis import Diagnosis, Pass, PassSettings
from salmon.errors import InputError, SalmonError, UnsupportedError
from salmon.filters import FilterIndex
from salmon.forward import keep_rng
from salmon.saliency import take_rows
from salmon.tasks import SequenceLabelling

logger = logging.getLogger(__name__)

_LABELS = ("labels", "label", "label_ids")
_CAUSAL = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


class SaliencyCallback(TrainerCallback):
    """Find the filters behind the mistakes of a network, after each evaluation.

    It goes over the evaluation's batches once more, with gradients, and leaves all as it was.
    Trouble is logged, and the training goes on.

    Attributes:
        diagnosis: What the last evaluation found; None before.
    """

    def __init__(
        self, settings: PassSettings | None = None, *, units: Sequence[str] = ("conv",)
    ) -> None:
        """Set up; nothing is measured before the first evaluation.

        Args:
            settings: Such as ``PassSettings(task="multilabel")``; None takes the defaults.
            units: What to measure: ``"conv"``, ``"heads"`` (attention), ``"linear"``.
        """
        self.diagnosis: Diagnosis | None = None
        self._settings, self._units = settings or PassSettings(), units

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Measure the batches of the evaluation."""
        try:
            with keep_rng():  # a loader draws a seed, whatever it does with it
                own = self._measured(args, given["model"], given["eval_dataloader"])
            self.diagnosis = own.compute()
        except (SalmonError, RuntimeError) as error:
            logger.warning("SaliencyCallback measured nothing (%s). The training goes on.", error)
            return
        logger.info("Evaluation at step %d, %s: %s", state.global_step, own.task, self.diagnosis)

    def _measured(self, args: TrainingArguments, model: nn.Module, loader: Iterable[Any]) -> Pass:
        if args.world_size > 1:
            raise UnsupportedError(
                f"{args.world_size} processes share the evaluation; run trainer.evaluate() in one "
                "process, or feed a salmon.Pass in each, and merge them"
            )
        settings, index = self._settings, None
        if settings.task is None and type(model).__name__ in _CAUSAL:
            settings = replace(settings, task=SequenceLabelling(tolerated=None, shift=True))
        own = Pass(model, settings, forward_context=partial(_context, args))
        for batch in loader:
            inputs, targets = _parted(pytree.tree_map_only(Tensor, partial(_to, args), batch))
            if index is None:
                one = take_rows(inputs, slice(0, 1), len(targets))
                index = FilterIndex.from_model(model, units=self._units, inputs=one)
                own = Pass(model, settings, index=index, forward_context=partial(_context, args))
            own.update(inputs, targets)
        return own


def _to(args: TrainingArguments, tensor: Tensor) -> Tensor:
    return tensor.to(args.device)


def _parted(batch: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """What the network gets, without the labels, whose loss would be a mean; and these."""
    name = next((name for name in _LABELS if name in batch), None)
    if name is None:
        raise InputError(f"batches hold {', '.join(batch)}; {', '.join(_LABELS)} are looked for")
    return {key: value for key, value in batch.items() if key != name}, batch[name]


def _context(args: TrainingArguments) -> AbstractContextManager[object]:
    """The precision of the evaluation."""
    dtype = torch.bfloat16 if args.bf16 else torch.float16
    return torch.autocast(args.device.type, dtype) if args.bf16 or args.fp16 else nullcontext()
