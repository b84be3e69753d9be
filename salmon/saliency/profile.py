"""The saliency profile of a batch: mean absolute per-sample gradient of every filter (eq. 1).

    s_k(x, y) = 1/|I_k| * sum_{i in I_k} | dL(f(x), y) / d theta_i |

One forward and one backward serve all samples of the batch. Samples must not influence each other,
so the network has to be in eval mode. Parameters, ``.grad``, hooks and modes stay as they are.
"""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from salmon.errors import InputError, SalmonError, UnsupportedError, pass_on_interrupts
from salmon.filters import FilterIndex, filter_rows, parameters_by_name
from salmon.forward import call_network, eagerly, gradients_on, no_trace
from salmon.saliency.backward import Backward, IndexedWeight, Known, LayoutError, Layouts
from salmon.saliency.catch import Catcher
from salmon.saliency.losses import Loss, check_samples, prediction_of, sample_losses, take_rows

logger = logging.getLogger(__name__)

_layouts: WeakKeyDictionary[nn.Module, Layouts] = WeakKeyDictionary()
_fitting: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Numbers of samples that memory is enough for."""
_as_given: WeakSet[nn.Module] = WeakSet()
"""Networks that failed with the channels of their images last in memory."""

PROBED = 4
"""Samples by which is found out where the samples are in the inputs of the layers."""

_SHORT = ("out of memory", "can't allocate memory", "could not create a memory object")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurement:
    """What one batch gave; detached, on the device of the network."""

    profile: Tensor  # [N, F] mean |dL_n/dW[o]|, in the unit of loss / weight
    output: Any  # of the network
    losses: Tensor  # [N]
    methods: list[str]  # [L] how each layer was measured


def filter_saliency(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    index: FilterIndex | None = None,
    loss: Loss | None = None,
) -> Tensor:
    """Measure how strongly the loss of every sample pulls at every filter.

    Args:
        model: The network, in eval mode.
        inputs: ``[N, ...]`` tensor, or a tuple or mapping of tensors that are passed to ``model``
            as positional or named arguments.
        targets: ``[N]`` class numbers, ``[N, K]`` class probabilities, or what ``loss`` needs.
        index: The filters to measure; None takes all convolutions.
        loss: Per-sample loss; None takes the cross-entropy of the logits.

    Returns:
        ``[N, F]`` profile on the device of the network; float64 for float64 networks, else float32.
        A filter without influence on the loss has saliency 0; a sample with a NaN loss has NaN.

    Raises:
        InputError: If the network is in train mode, or targets, logits or losses do not fit.
        UnsupportedError: If a weight is used in a way that cannot be measured exactly; the message
            names it. Nothing is measured approximately.
    """
    return measure(model, inputs, targets, index=index, loss=loss).profile


def measure(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    index: FilterIndex | None = None,
    loss: Loss | None = None,
    forward_context: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Measurement:
    """Measure a batch, and hand out the network's output and losses with the profile.

    Where memory is short, the batch is measured in halves, or quarters and so on, and so are later
    batches of this network; the numbers are the same.

    Args:
        forward_context: Makes a context around forward and loss only, such as that of autocast.
    """
    index, before = index or index_of(model, inputs, targets), sys.exception()
    check_eval_mode(model)
    samples = check_samples(inputs, targets)
    step = max(1, min(samples, _fitting.get(model, samples)))
    parts: list[Measurement] = []
    while len(parts) * step < samples or not parts:
        part = slice(len(parts) * step, min((len(parts) + 1) * step, samples))
        try:
            rows, labels = inputs, targets
            if step < samples:
                rows, labels = take_rows((inputs, targets), part, samples)
            parts.append(_measure(model, rows, labels, index, loss, forward_context))
        except LayoutError:
            continue
        except (RuntimeError, AssertionError) as error:
            pass_on_interrupts(error, before)
            if not _is_out_of_memory(error):
                if model in _as_given or isinstance(error, SalmonError):
                    _as_given.discard(model)  # that was not the reason
                    raise
                _as_given.add(model)  # it may view what it took for contiguous
                continue
            if step == 1:
                raise
            parts, step = [], -(-step // 2)
            _fitting[model] = step
            logger.warning(
                "Memory is short for the saliency of %d samples at once; going on with %d.",
                part.stop - part.start, step,
            )  # fmt: skip
    return parts[0] if len(parts) == 1 else _join(parts)


def index_of(model: nn.Module, inputs: Any, targets: Tensor) -> FilterIndex:
    """Index all convolutions, also those that only a forward of one sample shows."""
    samples = check_samples(inputs, targets)
    return FilterIndex.from_model(model, inputs=take_rows(inputs, slice(0, 1), samples))


def _join(parts: list[Measurement]) -> Measurement:
    sizes = [len(part.losses) for part in parts]
    return replace(
        parts[0],
        profile=torch.cat([part.profile for part in parts]),
        output=_join_outputs([part.output for part in parts], sizes),
        losses=torch.cat([part.losses for part in parts]),
    )


def _join_outputs(outputs: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Join tensors with a row per sample; other values are those of the first part.

    Of an object that is no nesting of tensors comes what it predicts, joined.
    """

    def join(*leaves: Any) -> Any:
        rows = all(
            isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size
            for leaf, size in zip(leaves, sizes, strict=True)
        )
        return torch.cat(leaves) if rows else leaves[0]

    if isinstance(outputs[0], Tensor | Mapping | tuple | list):
        return pytree.tree_map(join, *outputs)
    parts = [part for part in map(prediction_of, outputs) if part is not None]
    if len(parts) < len(outputs):
        raise UnsupportedError(
            f"memory is short for a batch at once, and {type(outputs[0]).__name__} cannot be put "
            "together from parts of it; use smaller batches."
        )
    return torch.cat(parts)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is short, on a GPU or the CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(message in str(error) for message in _SHORT)


def _measure(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    index: FilterIndex,
    loss: Loss | None,
    forward_context: Callable[[], AbstractContextManager[object]],
) -> Measurement:
    weights = indexed_weights(model, index)
    parameters = [weight.parameter for weight in weights]
    catcher = Catcher(parameters, len(targets))
    with torch.inference_mode(mode=False), no_trace(model), gradients_on(parameters):
        try:
            with torch.enable_grad(), eagerly(), forward_context(), catcher:
                output = call_network(model, inputs, channels_last=model not in _as_given)
                losses = sample_losses(output, targets, loss)
            layouts = _layouts.setdefault(model, Layouts())
            probe = partial(_probe, model, inputs, targets, weights, loss, forward_context)
            backward = Backward(catcher, weights, len(targets), layouts, probe)
            backward.run(losses)
        finally:
            catcher.release()
        losses = losses.detach()
        return Measurement(
            profile=_assemble(backward.sums, losses, index),
            output=pytree.tree_map_only(Tensor, lambda t: t.detach().as_subclass(Tensor), output),
            losses=losses,
            methods=backward.methods,
        )


def _probe(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    weights: list[IndexedWeight],
    loss: Loss | None,
    forward_context: Callable[[], AbstractContextManager[object]],
) -> Known:
    """Where the samples are in the inputs of a network's layers, by the first few of a batch."""
    if len(targets) < 2 * PROBED:
        return {}
    rows, labels = take_rows((inputs, targets), slice(0, PROBED), len(targets))
    catcher = Catcher([weight.parameter for weight in weights], PROBED)
    before = sys.exception()
    try:
        with torch.enable_grad(), eagerly(), forward_context(), catcher:
            output = call_network(model, rows, channels_last=model not in _as_given)
            losses = sample_losses(output, labels, loss)
        if not bool(torch.isfinite(losses).all()):
            return {}  # their gradients would agree with anything
        return Backward(catcher, weights, PROBED, Layouts()).look(losses)
    except Exception as error:  # noqa: BLE001
        pass_on_interrupts(error, before)
        return {}  # so few may be too few for the network; all samples of the batch tell
    finally:
        catcher.release()


def _assemble(sums: dict[int, Tensor], losses: Tensor, index: FilterIndex) -> Tensor:
    """Put the sums of all layers side by side, as means."""
    dtype = torch.promote_types(losses.dtype, torch.float32)
    profile = losses.new_zeros((len(losses), len(index)), dtype=dtype)
    for position, values in sums.items():
        layer = index.layers[position]
        by_row = values.unflatten(1, (layer.filters, layer.rows))
        by_filter = by_row.sum(2) if layer.rows > 1 else values
        start, end = index.starts[position], index.starts[position + 1]
        torch.div(by_filter, layer.size, out=profile[:, start:end])
    # The gradient of a NaN loss can be finite; such a sample has no saliency.
    return profile.masked_fill_(~torch.isfinite(losses).unsqueeze(1), torch.nan)


def check_eval_mode(model: nn.Module) -> None:
    """Refuse networks in which samples of a batch influence each other."""
    for name, module in model.named_modules():
        where = name or type(model).__name__
        if module.training:
            raise InputError(
                f"{where} ({type(module).__name__}) is in train mode; saliency is defined for the "
                "network in eval mode, where samples do not influence each other. Call "
                "model.eval() first."
            )
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if batch_norm and module.running_mean is None and module.running_var is None:
            raise InputError(
                f"{where} is a BatchNorm without running statistics, so each sample's loss depends "
                "on the whole batch; use track_running_stats=True."
            )


def indexed_weights(model: nn.Module, index: FilterIndex) -> list[IndexedWeight]:
    """Find the ``[L]`` weights of an index in a network."""
    parameters = parameters_by_name(model)
    weights = []
    for layer in index.layers:
        weight = parameters.get(layer.weight)
        if weight is None or weight.numel() != layer.filters * layer.size:
            found = "nothing" if weight is None else f"shape {tuple(weight.shape)}"
            raise InputError(
                f"the index expects {layer.filters} filters of {layer.size} weights in "
                f"{layer.weight} but {type(model).__name__} has {found} there; build the index "
                "from this network with FilterIndex.from_model."
            )
        weights.append(IndexedWeight(layer, weight))
    return weights


def profile_row(gradients: Sequence[Tensor | None], weights: Sequence[IndexedWeight]) -> Tensor:
    """The profile of one sample by its definition, from whole gradients.

    Args:
        gradients: ``[L]`` of the sample's loss; None where a weight has no influence.

    Returns:
        ``[F]`` mean ``|gradient|``, at least float32; differentiable where the gradients are.
    """
    parts = []
    for weight, gradient in zip(weights, gradients, strict=True):
        full = torch.zeros_like(weight.parameter) if gradient is None else gradient
        sizes = filter_rows(full, weight.layer).abs()
        parts.append(sizes.mean(1, dtype=torch.promote_types(sizes.dtype, torch.float32)))
    return torch.cat(parts)
