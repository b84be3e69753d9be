"""Discovery: which parameters of a network hold filters, and how many each.

- ``conv``: one filter per output channel of a convolution, 1d to 3d, transposed ones included;
- ``heads``: one per attention head and projection: the rows of the query, key or value weight that
  belong to the head (the paper's appendix A);
- ``linear``: one per output row of the linear layers that hold no heads.

A re-parametrised weight (``torch.nn.utils.parametrizations``, pruning, the older weight and
spectral norm) is measured at the parameter that has its shape. Weights that a module of the user's
own hands to ``torch.nn.functional.conv2d`` and the like are found by running a batch.

A weight keeps the name that the user wrote, though it is stored under others: ``torch.compile``
puts ``_orig_mod`` into paths; ``torch.nn.utils.parametrizations`` makes of ``weight`` a
``parametrizations.weight.original``, pruning and the older spectral norm ``weight_orig``, the older
weight norm ``weight_v``.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from salmon.errors import InputError
from salmon.forward import call_network, eagerly, eval_mode, gradients_on, no_trace
from salmon.torch_internals import behind, weights_read

CONVOLUTIONS: Mapping[Callable[..., Any], int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
TRANSPOSED: Mapping[Callable[..., Any], int] = {
    torch.conv_transpose1d: 1, torch.conv_transpose2d: 2, torch.conv_transpose3d: 3,
}  # fmt: skip
"""Functions by their number of spatial dimensions."""

_SCRIPTED = tuple(f"Conv{kind}{n}d" for kind in ("", "Transpose") for n in (1, 2, 3))

UNITS = ("conv", "heads", "linear")

_FUSED = ("qkv", "in_proj", "Wqkv")
_SEPARATE = (("q", "k", "v"), ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"),
             ("to_q", "to_k", "to_v"), ("wq", "wk", "wv"))  # fmt: skip
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")

_PARAMETRISED = re.compile(r"(?P<path>.*?)parametrizations\.(?P<name>[^.]+)\.original\d*")

_TOGETHER = {"orig": ("mask", "u"), "v": ("g",)}
"""Ends of names that stand for a weight where another tensor has one of these ends."""

_Cut = tuple[Tensor | None, str, tuple[str, ...], int]  # weight, child, parts, heads


@dataclass(frozen=True, slots=True)
class FilterLayer:
    """One weight and the filters it holds."""

    weight: str  # parameter name, such as "layer1.0.conv1.weight"
    layer: str  # module path, such as "layer1.0.conv1"
    group: str  # such as "conv2_x"
    unit: str  # "conv", "heads" or "linear"
    filters: int  # output channels, heads or rows
    size: int  # weights of one filter, such as 64*3*3
    rows: int  # output channels or rows of the weight in one filter; 1 but for heads
    parts: tuple[str, ...]  # names of the equal parts that the filters come in, such as Q, K, V
    transposed_groups: int  # groups of a transposed convolution, else 0

    def channel_label(self, channel: int) -> str:
        """Name the filter ``0..filters-1``, such as ``37``, or ``K3`` for the fourth key head."""
        per_part = self.filters // len(self.parts)
        return f"{self.parts[channel // per_part]}{channel % per_part}"


def discover(model: nn.Module, units: tuple[str, ...], inputs: Any = None) -> list[FilterLayer]:
    """Find the parameters that hold filters.

    Args:
        inputs: A batch as :func:`salmon.forward.call_network` takes it, to run the network with;
            None finds the weights of torch's own modules only.

    Returns:
        What was found, in the order of ``named_parameters()``, without a group.
    """
    names = {id(parameter): name for name, parameter in parameters_by_name(model).items()}
    attention = {layer.weight: layer for layer in _heads(model, names)}
    found = dict(attention) if "heads" in units else {}
    own = (*_of_modules(model, names), *(() if inputs is None else _used(model, names, inputs)))
    for layer in own:
        if layer.unit in units and layer.weight not in attention:
            found.setdefault(layer.weight, layer)
    return [found[name] for name in names.values() if name in found]


def _layer(
    weight: str,
    parameter: Tensor,
    layer: str,
    unit: str,
    filters: int,
    *,
    parts: tuple[str, ...] = ("",),
    transposed: bool = False,
) -> FilterLayer:
    return FilterLayer(
        weight=weight,
        layer=layer,
        group="",
        unit=unit,
        filters=filters,
        size=parameter.numel() // filters,
        rows=parameter.shape[0] // filters if unit == "heads" else 1,
        parts=parts,
        transposed_groups=filters // parameter.shape[1] if transposed else 0,
    )


def _of_modules(model: nn.Module, names: Mapping[int, str]) -> Iterator[FilterLayer]:
    """Weights of torch's convolutions and linear layers."""
    for path, module in model.named_modules():
        kind = getattr(module, "original_name", "")  # of a scripted module
        if isinstance(module, _ConvNd) or kind in _SCRIPTED:
            unit, filters = "conv", module.out_channels
        elif isinstance(module, nn.Linear) or kind == "Linear":
            unit, filters = "linear", module.out_features
        else:
            continue
        parameter = _source(module)
        if parameter is None or id(parameter) not in names or not filters:
            continue
        if isinstance(parameter, UninitializedParameter):
            raise InputError(
                f"{path} is lazy and has no shape yet; run one batch through the network before "
                "indexing its filters."
            )
        transposed = isinstance(module, _ConvTransposeNd) or "Transpose" in kind
        weight = names[id(parameter)]
        yield _layer(weight, parameter, clean_name(path), unit, int(filters), transposed=transposed)


def _used(model: nn.Module, names: Mapping[int, str], inputs: Any) -> Iterator[FilterLayer]:
    """Weights that convolutions and linear operations read in a forward, however it calls them."""
    parameters = list(model.parameters())
    with (
        torch.inference_mode(mode=False), no_trace(model), eval_mode(model), torch.enable_grad(),
        gradients_on(parameters), eagerly(),
    ):  # fmt: skip
        leaves = pytree.tree_leaves(call_network(model, inputs))
        # Objects that are no nesting of tensors have the output of most of the network in logits.
        leaves += [getattr(leaf, "logits", None) for leaf in leaves]
        ends = [leaf.grad_fn for leaf in leaves if isinstance(leaf, Tensor)]
        for node in behind(ends):
            for parameter, unit, outputs, transposed in weights_read(node):
                if id(parameter) in names and outputs:
                    weight = names[id(parameter)]
                    layer = weight.removesuffix(".weight")  # a module may have several
                    yield _layer(weight, parameter, layer, unit, outputs, transposed=transposed)


def _source(module: nn.Module) -> Tensor | None:
    """The parameter behind a module's weight that has the weight's shape."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    if weight is not None:
        return weight
    if parametrize.is_parametrized(module, "weight"):
        candidates = list(module.get_submodule("parametrizations.weight").parameters(recurse=False))
    else:
        candidates = list(module.parameters(recurse=False))
    shape = getattr(module, "weight", None)
    if not isinstance(shape, Tensor):
        return None
    return next((p for p in candidates if p.shape == shape.shape), None)


def _heads(model: nn.Module, names: Mapping[int, str]) -> Iterator[FilterLayer]:
    """Query, key and value weights of attention modules, cut into heads."""
    for path, module in model.named_modules():
        cuts = _other_heads(module)
        if isinstance(module, nn.MultiheadAttention):
            cuts = _torch_heads(module)
        for weight, child, parts, count in cuts:
            if weight is None or id(weight) not in names or weight.shape[0] % count:
                continue
            layer = ".".join(filter(None, [clean_name(path), child]))
            yield _layer(names[id(weight)], weight, layer, "heads", count, parts=parts)


def _torch_heads(module: nn.MultiheadAttention) -> Iterator[_Cut]:
    """Weights of torch's own attention: one for all three, or one each."""
    fused = module._parameters.get("in_proj_weight")
    yield fused, "", ("Q", "K", "V"), 3 * module.num_heads
    for part in ("q", "k", "v"):
        weight = module._parameters.get(f"{part}_proj_weight")
        yield weight, "", (part.upper(),), module.num_heads


def _other_heads(module: nn.Module) -> Iterator[_Cut]:
    """Weights of attention made of linear layers, under the names in use."""
    heads = _count(module, _HEADS)
    if heads is None:
        return
    for name in _FUSED:
        child = getattr(module, name, None)
        if isinstance(child, nn.Linear):
            yield _source(child), name, ("Q", "K", "V"), 3 * heads
    for trio in _SEPARATE:
        children = [getattr(module, name, None) for name in trio]
        for name, part, child in zip(trio, "QKV", children, strict=True):
            if isinstance(child, nn.Linear):
                count = heads if part == "Q" else _count(module, _KV_HEADS) or heads
                yield _source(child), name, (part,), count


def _count(module: nn.Module, names: tuple[str, ...]) -> int | None:
    """The first of several attributes that is a number."""
    values = (getattr(module, name, None) for name in names)
    return next((v for v in values if isinstance(v, int) and v > 0), None)


def clean_name(name: str) -> str:
    """Strip the ``_orig_mod`` that ``torch.compile`` adds to names of parameters and modules."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def by_clean_name(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a network, or of its state dict, under the names of the weights they stand for.

    Args:
        tensors: By name; parameters and buffers, since only buffers tell a pruned ``weight_orig``
            from a parameter of that name.

    Returns:
        By clean name, in the same order. Of several tensors that one weight is computed from, the
        largest has its name, which is the one of its shape.
    """
    plain = {clean_name(name): tensor for name, tensor in tensors.items()}
    weight_of = {
        max(parts, key=lambda each: plain[each].numel()): name
        for name, parts in _parts_by_weight(plain).items()
        if name not in plain
    }
    return {weight_of.get(name, name): tensor for name, tensor in plain.items()}


def _parts_by_weight(names: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """By name of a weight, the names of what it is computed from."""
    parts: dict[str, list[str]] = defaultdict(list)
    for name in names:
        match = _PARAMETRISED.fullmatch(name)
        stem, _, end = name.rpartition("_")
        if match is not None:
            parts[match["path"] + match["name"]].append(name)
        elif any(f"{stem}_{other}" in names for other in _TOGETHER.get(end, ())):
            parts[stem].append(name)
    return parts


def parameters_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Parameters under the names of the weights they stand for, as ``named_parameters()`` goes."""
    parameters = dict(model.named_parameters())
    known = {id(value) for value in parameters.values()}
    every = by_clean_name(parameters | dict(model.named_buffers()))
    return {name: value for name, value in every.items() if id(value) in known}
