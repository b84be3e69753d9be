"""Pruning and fine-tuning curves, the paper's protocol (figures 3 to 5).

For each misclassified image by itself: its filters are ranked, then edited one after another, the
first k of them for k = 1, 2, ...; the gradient is that of this image at the original weights.

No weight of the network is written. A twin of it has every filter edited, and an edited network is
one that takes some filters from the twin. Since an output channel of a convolution depends on one
filter only, many of these networks run in one forward: convolutions of both run, and every row of
the batch takes the channels of its own edited filters from the twin's.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from salmon import FilterIndex, InputError, Samples
from salmon.filters import filter_rows, parameters_by_name, weight_of_rows
from salmon.ranking import top_filters
from salmon.repairs import to_device
from salmon.repairs.evidence import loss_gradients
from salmon.saliency import logits_of

BATCH = 16  # edited networks in one forward; more are slower on a CPU


def edit_curves(
    model: nn.Module,
    samples: Samples,
    rankings: Sequence[Tensor | None],
    index: FilterIndex,
    *,
    edit: str = "plain",
    rate: float = 0.001,
    counts: Sequence[int] = range(1, 26),
) -> Tensor:
    """Follow the paper's protocol.

    Args:
        model: A classifier whose indexed weights are read by the modules that hold them only.
        samples: M misclassified images.
        rankings: R times ``[M, K]`` numbers of filters, the first ones first, -1 for none. None
            ranks by what the edit does to the loss, to first order.
        edit: ``"plain"`` for one gradient step, ``"normalised"`` for one of equal relative
            size on each filter, ``"prune"`` for zeros.
        rate: Learning rate of a step.
        counts: C numbers of filters to edit; a sample with fewer ranked filters keeps those.

    Returns:
        ``[M, R, 3, 1 + C]`` float64 after 0 and then ``counts`` edited filters: change of the
        confidence of the class predicted at first, that of the true class, and 1 where the image is
        classified right.

    Raises:
        InputError: If ``edit`` is unknown.
        ValueError: If samples and rankings differ in number.
    """
    twin = deepcopy(model).eval()
    mine, others = parameters_by_name(model), parameters_by_name(twin)
    numbers = torch.tensor([0, *counts])
    curves = []
    lists = [repeat(None, len(samples)) if each is None else each for each in rankings]
    names = [layer.weight for layer in index.layers]
    with loss_gradients(model, names) as measure, torch.no_grad():
        for (image, target), *ranked in zip(samples.batches(1), *lists, strict=True):
            gradients, effects = measure((image, target)), []
            for layer in index.layers:
                old = filter_rows(mine[layer.weight], layer)
                slope = filter_rows(gradients[layer.weight], layer)
                step = _step(edit, rate, old, slope)
                weight = others[layer.weight]
                weight.copy_(weight_of_rows(old - step, layer, weight.shape))
                effects.append((step * slope).sum(1, dtype=torch.float64).abs().cpu())
            strongest = top_filters(torch.cat(effects).unsqueeze(0), max(counts))[0][0]
            place = torch.full((len(rankings), len(index) + 1), torch.inf)  # one more, for -1
            for places, filters in zip(place, ranked, strict=True):
                first = strongest if filters is None else filters
                places[first] = torch.arange(len(first)).float()
            masks = (place[:, None, :-1] < numbers[:, None]).flatten(0, 1).split(BATCH)
            seen = to_device(image, model)
            logits = torch.cat([_mixed(model, twin, index, seen, part) for part in masks])
            p = logits.double().cpu().softmax(1).unflatten(0, (len(rankings), len(numbers)))
            change, true = p - p[:, :1], int(target)
            right = (p.argmax(2) == true) & p.isfinite().all(2)
            wrong = int(p[0, 0].argmax())
            curves.append(torch.stack([change[..., wrong], change[..., true], right.double()], 1))
    return torch.stack(curves)


def _step(edit: str, rate: float, old: Tensor, slope: Tensor) -> Tensor:
    """What an edit takes from ``[filters, size]`` weights with these gradients."""
    if edit == "prune":
        return old
    if edit == "normalised":
        norm = slope.norm(dim=1, keepdim=True)
        slope = slope * torch.where(norm > 0, old.norm(dim=1, keepdim=True) / norm, 0.0)
    elif edit != "plain":
        raise InputError(f"edit is {edit!r}; one of plain, normalised, prune is needed.")
    return rate * slope


def _mixed(
    model: nn.Module, twin: nn.Module, index: FilterIndex, image: Tensor, masks: Tensor
) -> Tensor:
    """``[E, K]`` logits of an image, by networks with the twin's filters where a mask has them."""
    sizes = [layer.filters for layer in index.layers]
    chosen = masks.to(image.device).split(sizes, 1)
    modules = [[net.get_submodule(layer.layer) for layer in index.layers] for net in (model, twin)]
    if not all(isinstance(module, _ConvNd) for module in modules[0]):  # attention: one by one
        mine, others, logits = parameters_by_name(model), parameters_by_name(twin), []
        for own in zip(*chosen, strict=True):
            weights = {}
            for layer, mask in zip(index.layers, own, strict=True):
                rows = mask.repeat_interleave(layer.rows).unsqueeze(1)
                weights[layer.weight] = torch.where(rows, others[layer.weight], mine[layer.weight])
            logits.append(logits_of(functional_call(model, weights, (image,))))
        return torch.cat(logits)
    with ExitStack() as hooks:
        for module, other, mask in zip(*modules, chosen, strict=True):
            if bool(mask.any()):
                hooks.enter_context(module.register_forward_hook(partial(_take, other, mask)))
        return logits_of(model(image.expand(len(masks), *image.shape[1:])))


def _take(twin: nn.Module, mask: Tensor, _: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """A convolution's output, with the masked channels of its twin's."""
    return torch.where(mask.view(*mask.shape, *(1,) * (output.ndim - 2)), twin(*inputs), output)
