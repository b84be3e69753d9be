"""What filters respond to: their output maps, to be looked at over images."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from salmon.filters import FilterIndex, clean_name
from salmon.forward import call_network, eagerly, no_trace
from salmon.saliency.profile import check_eval_mode


def filter_responses(
    model: nn.Module,
    batches: Sequence[Any],
    index: FilterIndex,
    filters: Sequence[int],
    *,
    forward_context: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> dict[int, list[Tensor]]:
    """Map how far the output of filters lies from its usual value, place by place.

    The sign of a convolution's output means nothing before a normalisation, so that the distance
    from the median over all places of all samples is taken.

    Args:
        model: In eval mode.
        batches: Inputs of one sample each, which may differ in size.
        filters: Numbers of filters.

    Returns:
        By filter a float32 ``[H', W']`` for each sample, on the CPU, in the unit of the output.
        Filters whose layer is no module with an output of ``[N, O, H', W']``, or whose output is
        constant or not finite, are left out.
    """
    check_eval_mode(model)
    if not batches:
        return {}
    modules = {clean_name(name): module for name, module in model.named_modules()}
    seen: dict[int, list[Tensor]] = {}

    def catch(numbers: list[int], _module: nn.Module, _inputs: Any, output: Any) -> None:
        layer, _ = index.locate(numbers[0])
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[1] == layer.filters:
            for number in numbers:
                own = output[0, index.locate(number)[1]].detach()
                # A copy, since what follows may change it in place.
                seen.setdefault(number, []).append(own.to("cpu", torch.float32, copy=True))

    by_layer: dict[str, list[int]] = {}
    for number in filters:
        by_layer.setdefault(index.locate(number)[0].layer, []).append(number)
    handles = [
        modules[name].register_forward_hook(partial(catch, numbers))
        for name, numbers in by_layer.items()
        if name in modules
    ]
    try:
        with torch.no_grad(), no_trace(model), eagerly(), forward_context():
            for inputs in batches:
                call_network(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    # A module that is used more than once, or not for every sample, has no one map.
    far = {n: _distances(maps) for n, maps in seen.items() if len(maps) == len(batches)}
    most = {number: max(float(each.amax()) for each in maps) for number, maps in far.items()}
    return {number: far[number] for number in filters if 0 < most.get(number, 0) < math.inf}


def _distances(maps: list[Tensor]) -> list[Tensor]:
    """From the median of all."""
    usual = torch.cat([each.flatten() for each in maps]).median()
    return [(each - usual).abs() for each in maps]
