"""Mean loss gradients of some weights over samples."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from salmon.filters import FilterIndex, filter_rows, parameters_by_name, weight_of_rows
from salmon.forward import call_network, eval_mode, gradients_on, no_trace
from salmon.repairs.evaluate import to_device
from salmon.repairs.samples import Batch, Samples
from salmon.saliency import sample_losses


def mean_gradients(
    model: nn.Module, samples: Samples, names: list[str], batch_size: int
) -> dict[str, Tensor]:
    """Gradients of the mean cross-entropy, in eval mode, leaving no trace.

    Args:
        samples: N of them, at least one.

    Returns:
        By name, float64 on the CPU, shaped like the weights; zero where the loss does not depend
        on one.
    """
    parameters = [parameters_by_name(model)[name] for name in names]
    sums = [torch.zeros(p.shape, dtype=torch.float64) for p in parameters]
    with (
        torch.inference_mode(mode=False),
        no_trace(model),
        eval_mode(model),
        gradients_on(parameters),
    ):
        for batch in samples.batches(batch_size):
            found = _summed(model, batch, parameters)
            for total, gradient in zip(sums, found, strict=True):
                if gradient is not None:
                    total.add_(gradient.double().cpu())
    return {name: total / len(samples) for name, total in zip(names, sums, strict=True)}


def sample_gradients(
    model: nn.Module, one: Samples, names: Sequence[str]
) -> dict[str, Tensor | None]:
    """Gradients of the cross-entropy of one sample, in eval mode, leaving no trace.

    Args:
        one: A sample.

    Returns:
        By name, in the type and on the device of the weight; None where the loss does not depend
        on one.
    """
    known = parameters_by_name(model)
    parameters = [known[name] for name in names]
    with (
        torch.inference_mode(mode=False),
        no_trace(model),
        eval_mode(model),
        gradients_on(parameters),
    ):
        found = _summed(model, (one.inputs, one.targets), parameters)
    return dict(zip(names, found, strict=True))


def _summed(
    model: nn.Module, batch: Batch, parameters: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Gradients of the summed loss of a batch."""
    with torch.enable_grad():
        output = call_network(model, to_device(batch[0], model))
        loss = sample_losses(output, to_device(batch[1], model), None).sum()
        return torch.autograd.grad(loss, parameters, allow_unused=True)


def without_conflict(
    index: FilterIndex, step: Mapping[str, Tensor], reference: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Take out of every filter's gradient what points against another one.

    The projection of A-GEM (Chaudhry et al. 2019, ICLR), filter by filter: a small step along the
    result lowers the reference loss, or leaves it, whichever filters are chosen.

    Returns:
        By weight of the index; ``step`` for filters where the two agree, else its part orthogonal
        to ``reference``.
    """
    found = {}
    for layer in index.layers:
        own, other = (filter_rows(g[layer.weight], layer) for g in (step, reference))
        inner = (own * other).sum(1, keepdim=True)
        square = other.square().sum(1, keepdim=True)
        against = (inner < 0) & (square > 0)
        kept = torch.where(against, own - inner / square * other, own)
        found[layer.weight] = weight_of_rows(kept, layer, step[layer.weight].shape)
    return found
