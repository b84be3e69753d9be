"""What filters respond to: their output maps, to be looked at over images."""

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
    modules = {clean_name(name): module for name, module in model.named_modules()}
    seen: dict[str, list[Tensor]] = {}

    def catch(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            # A copy, since what follows may change it in place.
            own = output[0].detach().to("cpu", torch.float32, copy=True)
            seen.setdefault(name, []).append(own)

    layers = {index.locate(number)[0].layer for number in filters}
    handles = [
        modules[name].register_forward_hook(partial(catch, name)) for name in layers & set(modules)
    ]
    try:
        with torch.no_grad(), no_trace(model), eagerly(), forward_context():
            for inputs in batches:
                call_network(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[int, list[Tensor]] = {}
    for number in filters:
        layer, channel = index.locate(number)
        outputs = seen.get(layer.layer, [])
        # A module that is used more than once, or not for every sample, has no one map.
        if len(outputs) != len(batches) or any(len(out) != layer.filters for out in outputs):
            continue
        maps = [out[channel] for out in outputs]
        usual = torch.cat([each.flatten() for each in maps]).median()
        far = [(each - usual).abs() for each in maps]
        most = torch.stack([each.amax() for each in far]).amax()
        if bool(torch.isfinite(most)) and float(most) > 0:
            found[number] = far
    return found
