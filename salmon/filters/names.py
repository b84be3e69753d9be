"""Names of parameters and modules as the user wrote them: a weight keeps one name.

Wrappers, parametrisations and pruning store a weight under other names: ``torch.compile`` puts
``_orig_mod`` into paths; ``torch.nn.utils.parametrizations`` makes of ``weight`` a
``parametrizations.weight.original``, pruning and the older spectral norm ``weight_orig``, the older
weight norm ``weight_v``.
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn

_PARAMETRISED = re.compile(r"(?P<path>.*?)parametrizations\.(?P<name>[^.]+)\.original(?P<part>\d*)")

_TOGETHER = {"orig": ("mask", "u"), "v": ("g",)}
"""Ends of names that stand for a weight where another tensor has one of these ends."""


def clean_name(name: str) -> str:
    """Strip what ``torch.compile`` adds to parameter and module names.

    Args:
        name: A dotted name.

    Returns:
        The name without ``_orig_mod`` components.
    """
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
    found: dict[str, Tensor] = {}
    largest = {
        name: max(theirs, key=lambda each: plain[each].numel())
        for name, theirs in _parts_by_weight(plain).items()
        if name not in plain
    }
    weight_of = {part: name for name, part in largest.items()}
    for name, tensor in plain.items():
        found[weight_of.get(name, name)] = tensor
    return found


def _parts_by_weight(names: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """By name of a weight, the names of what it is computed from."""
    parts: dict[str, list[str]] = {}
    for name in names:
        match = _PARAMETRISED.fullmatch(name)
        stem, _, end = name.rpartition("_")
        if match is not None:
            parts.setdefault(match["path"] + match["name"], []).append(name)
        elif any(f"{stem}_{other}" in names for other in _TOGETHER.get(end, ())):
            parts.setdefault(stem, []).append(name)
    return parts


def parameters_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Parameters of a network under the names of the weights they stand for.

    Returns:
        By clean name, in the order of ``named_parameters()``.
    """
    parameters = dict(model.named_parameters())
    known = {id(value) for value in parameters.values()}
    every = by_clean_name(parameters | dict(model.named_buffers()))
    return {name: value for name, value in every.items() if id(value) in known}
