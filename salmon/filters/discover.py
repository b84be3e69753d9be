"""Discovery: which parameters of a network hold filters, and how many each.

- ``conv``: one filter per output channel of a convolution, 1d to 3d, transposed ones included;
- ``heads``: one per attention head and projection: the rows of the query, key or value weight that
  belong to the head (the paper's appendix A);
- ``linear``: one per output row of the linear layers that hold no heads.

A re-parametrised weight (``torch.nn.utils.parametrizations``, pruning, the older weight and
spectral norm) is measured at the parameter that has its shape.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from salmon.errors import InputError
from salmon.filters.names import clean_name

UNITS = ("conv", "heads", "linear")

_FUSED = ("qkv", "in_proj", "Wqkv")
_SEPARATE = (("q", "k", "v"), ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"),
             ("to_q", "to_k", "to_v"), ("wq", "wk", "wv"))  # fmt: skip
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")

_Cut = tuple[nn.Parameter | None, str, tuple[str, ...], int]  # weight, child, parts, heads


@dataclass(frozen=True, slots=True)
class Found:
    """One parameter that holds filters."""

    weight: str  # parameter name
    layer: str  # module path
    unit: str  # one of UNITS
    parts: tuple[str, ...]  # names of what the rows are cut into, such as Q, K, V; "" where whole
    filters: int
    parameter: Tensor
    transposed: bool = False


def discover(model: nn.Module, units: tuple[str, ...]) -> list[Found]:
    """Find the parameters that hold filters.

    Args:
        model: The network.
        units: Which kinds to find.

    Returns:
        What was found, in the order of ``named_parameters()``.

    Raises:
        InputError: If a convolution is lazy and has no shape yet.
    """
    names = {id(parameter): clean_name(name) for name, parameter in model.named_parameters()}
    order = {key: place for place, key in enumerate(names)}
    found: dict[int, Found] = {}
    attention = {id(f.parameter): f for f in _heads(model, names)}
    if "heads" in units:
        found |= attention
    for path, module in model.named_modules():
        if isinstance(module, _ConvNd):
            unit, filters = "conv", module.out_channels
        elif isinstance(module, nn.Linear):
            unit, filters = "linear", module.out_features
        else:
            continue
        parameter = _source(module)
        if unit not in units or parameter is None or id(parameter) not in names:
            continue
        if id(parameter) in attention or id(parameter) in found:
            continue
        if isinstance(parameter, UninitializedParameter):
            raise InputError(
                f"{path} is lazy and has no shape yet; run one batch through the network before "
                "indexing its filters."
            )
        found[id(parameter)] = Found(
            weight=names[id(parameter)],
            layer=clean_name(path),
            unit=unit,
            parts=("",),
            filters=filters,
            parameter=parameter,
            transposed=isinstance(module, _ConvTransposeNd),
        )
    return sorted(found.values(), key=lambda f: order[id(f.parameter)])


def _source(module: nn.Module) -> nn.Parameter | None:
    """The parameter behind a module's weight that has the weight's shape."""
    weight = module._parameters.get("weight")
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


def _heads(model: nn.Module, names: dict[int, str]) -> Iterator[Found]:
    """Query, key and value weights of attention modules, cut into heads."""
    for path, module in model.named_modules():
        cuts = (
            _torch_heads(module)
            if isinstance(module, nn.MultiheadAttention)
            else _other_heads(module)
        )
        for weight, child, parts, count in cuts:
            if weight is None or id(weight) not in names or weight.shape[0] % count:
                continue
            yield Found(
                weight=names[id(weight)],
                layer=".".join(filter(None, [clean_name(path), child])),
                unit="heads",
                parts=parts,
                filters=count,
                parameter=weight,
            )


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
