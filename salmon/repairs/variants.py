"""Many edited versions of one network on one sample, in one forward where its layers allow it.

The sample is repeated once per version. A convolution runs with its weight as it is, and then the
output channels that a version edits are computed anew from that version's input, so that the cost
of a version is that of one more sample in a batch.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from salmon.filters import CONVOLUTIONS, FilterIndex, parameters_by_name
from salmon.forward import call_network, eval_mode, no_trace
from salmon.repairs.edit import Change, Edit, edited
from salmon.repairs.evaluate import predict, to_device
from salmon.repairs.samples import Samples
from salmon.saliency import logits_of, measure

_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def can_join(model: nn.Module, one: Samples, index: FilterIndex) -> bool:
    """Whether edited versions of a network can share a forward.

    Args:
        one: A sample.

    Returns:
        Whether every weight is read once, as a whole, by a convolution.
    """
    inputs, targets = to_device((one.inputs, one.targets), model)
    with eval_mode(model):
        methods = measure(model, inputs, targets, index=index).methods
    plain = all(layer.unit == "conv" and not layer.transposed_groups for layer in index.layers)
    return plain and all(method == "fast" for method in methods)


def variant_logits(
    model: nn.Module, one: Samples, edits: Sequence[Edit], *, join: bool, batch_size: int
) -> Tensor:
    """Logits of every edited version.

    Args:
        model: The network; as before when this returns.
        one: A sample.
        edits: E of them, each of the original weights.
        join: What :func:`can_join` said; without it, or where a weight turns out to be read
            otherwise, the versions run one by one.

    Returns:
        ``[E, K]`` float64 on the CPU.
    """
    found = []
    for start in range(0, len(edits), batch_size):
        part = edits[start : start + batch_size]
        joined = _together(model, one, part) if join else None
        found.append(_one_by_one(model, one, part) if joined is None else joined)
    return torch.cat(found)


def _one_by_one(model: nn.Module, one: Samples, edits: Sequence[Edit]) -> Tensor:
    """Write each edit into the weights, run, and put the weights back."""
    found = []
    for edit in edits:
        with edited(model, edit):
            found.append(predict(model, one, 1).logits)
    return torch.cat(found)


def _together(model: nn.Module, one: Samples, edits: Sequence[Edit]) -> Tensor | None:
    """All versions in one forward; None where a weight is not read as :class:`_Versions` needs."""
    repeated = one.take(torch.zeros(len(edits), dtype=torch.int64))
    with torch.inference_mode(mode=False), torch.no_grad(), no_trace(model), eval_mode(model):
        versions = _Versions(model, edits)
        inputs = to_device(repeated.inputs, model)
        with versions:
            output = call_network(model, inputs)
        return logits_of(output).double().cpu() if versions.complete else None


class _Versions(TorchFunctionMode):
    """Context of one forward, in which row i of the batch sees the weights of edit i."""

    def __init__(self, model: nn.Module, edits: Sequence[Edit]) -> None:
        """Sort the changes by weight."""
        super().__init__()
        self._rows = len(edits)
        self._changes: dict[int, list[tuple[int, Change]]] = {}
        parameters = parameters_by_name(model)
        for row, edit in enumerate(edits):
            for change in edit.changes:
                weight = parameters[change.layer.weight]
                self._changes.setdefault(id(weight), []).append((row, change))
        self._reads: Counter[int] = Counter()
        self._fits = True

    @property
    def complete(self) -> bool:
        """Whether every change took effect, once."""
        return self._fits and self._reads == Counter(dict.fromkeys(self._changes, 1))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Pass every call on; redo the edited channels of convolutions.

        Args:
            types: Types of its overriding arguments; unused.

        Returns:
            What the function returned, with the edited channels of every version.
        """
        output = func(*args, **(kwargs or {}))
        if func in CONVOLUTIONS:
            call = dict(zip(_ARGUMENTS, args, strict=False)) | (kwargs or {})
            changes = self._changes.get(id(call["weight"]))
            if changes is not None:
                self._redo(func, call, output, changes)
        return output

    def _redo(
        self,
        func: Callable[..., Any],
        call: dict[str, Any],
        output: Tensor,
        changes: list[tuple[int, Change]],
    ) -> None:
        """Compute the edited channels anew, in place."""
        inputs, weight, bias = call["input"], call["weight"], call.get("bias")
        self._reads[id(weight)] += 1
        batched = inputs.ndim == CONVOLUTIONS[func] + 2 and len(inputs) == self._rows
        if not batched or call.get("groups", 1) != 1:
            self._fits = False
            return
        for row, change in changes:
            channels = change.channels.to(weight.device)
            own = {
                "input": inputs[row : row + 1],
                "weight": change.new.to(weight).reshape(len(channels), *weight.shape[1:]),
                "bias": None if bias is None else bias[channels],
            }
            output[row, channels] = func(**(call | own))[0]
