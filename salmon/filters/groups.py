"""Names for the depth of a layer: residual stages, blocks between poolings, or depth fifths.

Input is a list of layer paths in network order, such as ``layer1.0.conv1``; output is one group
name per layer, and the scheme that named them. Group names of residual networks follow He et al.
(2016), table 1: the stem is ``conv1`` and ``layerN`` is ``conv(N+1)_x``.
"""

import re
from collections.abc import Sequence

from torch import nn
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

from salmon.filters.discover import clean_name

DEPTH_PARTS = 5

_STAGE = re.compile(r"(?:^|\.)layer(\d+)(?=\.|$)")
_POOLINGS = (_MaxPoolNd, _AvgPoolNd)


def group_layers(model: nn.Module, layers: Sequence[str]) -> tuple[list[str], str]:
    """Name the group of every layer.

    Args:
        model: The network that ``layers`` belong to.
        layers: ``[L]`` module paths in network order.

    Returns:
        ``[L]`` group names, and the scheme: ``"resnet"`` (stages ``layerN``), ``"vgg"`` (blocks
        between the poolings of nested ``nn.Sequential``), or ``"depth"`` (fifths of the layers, for
        networks of unknown shape).
    """
    stages = _residual_stages(layers)
    if stages is not None:
        return stages, "resnet"
    blocks = _pooling_blocks(model, layers)
    if blocks is not None:
        return blocks, "vgg"
    return _depth_parts(len(layers)), "depth"


def _residual_stages(layers: Sequence[str]) -> list[str] | None:
    """Groups by ``layerN`` path components, or None where fewer than two stages exist."""
    numbers = [_STAGE.search(layer) for layer in layers]
    if len({match[1] for match in numbers if match}) < 2:
        return None
    names = []
    inside = False
    for match in numbers:
        if match:
            inside = True
            names.append(f"conv{int(match[1]) + 1}_x")
        else:
            names.append("head" if inside else "conv1")
    return names


def _pooling_blocks(model: nn.Module, layers: Sequence[str]) -> list[str] | None:
    """Groups between poolings; only where every layer runs in the order of its Sequential."""
    modules = {clean_name(path): module for path, module in model.named_modules()}

    def in_sequential(path: str) -> bool:
        parent = modules.get(path.rpartition(".")[0])
        return isinstance(parent, nn.Sequential)

    if not all(in_sequential(layer) for layer in layers):
        return None
    wanted = set(layers)
    names: dict[str, str] = {}
    block, filled = 1, False
    for path, module in modules.items():
        if isinstance(module, _POOLINGS) and in_sequential(path):
            block, filled = block + filled, False
        elif path in wanted:
            names[path], filled = f"conv{block}_x", True
    return [names[layer] for layer in layers] if len(set(names.values())) > 1 else None


def _depth_parts(count: int) -> list[str]:
    """``depth1of5`` .. ``depth5of5``, in equal numbers of layers."""
    parts = min(DEPTH_PARTS, count)
    return [f"depth{i * parts // count + 1}of{parts}" for i in range(count)]
