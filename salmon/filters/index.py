"""Which weights are filters, and each filter's layer, group and depth.

A filter is one output channel of a convolution weight, of shape ``(C_in/groups, kH, kW)`` for two
dimensions; or, if asked for, the rows of an attention head or one row of a linear layer. Filters
are numbered ``0..F-1`` in the order of ``named_parameters()``, channels inside. Group names of
residual networks follow He et al. (2016), table 1.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

from salmon.errors import InputError, StateError
from salmon.filters.discover import UNITS, FilterLayer, clean_name, discover, parameters_by_name
from salmon.records import record_of

logger = logging.getLogger(__name__)

Fingerprint = list[tuple[str, int, int]]
"""Weight name, number of filters and filter size of every layer; plain Python values."""

_NAMED = 8  # names in a message
_DEPTH_PARTS = 5
_STAGE = re.compile(r"(?:^|\.)layer(\d+)(?=\.|$)")

SHORTCUTS = ("*.downsample.*", "*.shortcut.*")
"""Patterns of residual shortcut convolutions, for ``exclude=``: the paper's counts omit them."""


@dataclass(frozen=True, eq=False)
class FilterIndex:
    """All measured filters of one network, in a fixed order.

    Build it with :meth:`from_model`; two indices are interchangeable where their
    :meth:`fingerprint` is equal.
    """

    layers: tuple[FilterLayer, ...]
    scheme: str  # how groups were named: "resnet", "vgg", "strides", "depth" or "custom"

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        *,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        groups: Callable[[str], str] | None = None,
        units: Sequence[str] = ("conv",),
        inputs: Any = None,
    ) -> "FilterIndex":
        """Index the filters of a network.

        Args:
            model: Any module. Wrappers such as ``torch.compile`` are looked through.
            include: Shell patterns on module paths (``"layer3.*"``); None takes all.
            exclude: Shell patterns to leave out, applied after ``include``. ``SHORTCUTS`` leaves
                out the 1x1 convolutions of residual shortcuts, as the counts of the paper do.
            groups: Names the group of a module path; None names residual stages, blocks between
                poolings, stages between the strides of a list of blocks, or depth fifths, whichever
                fits the network.
            units: What counts as a filter: ``"conv"``, output channels of convolutions, 1d to 3d;
                ``"heads"``, the query, key and value rows of each attention head; ``"linear"``,
                rows of other linear layers.
            inputs: A batch, as of :func:`salmon.filter_saliency`. With one, the network is run once
                and weights are found by their use, too: those of modules of your own that call
                ``torch.nn.functional.conv2d`` and its kin. None finds torch's modules only.

        Returns:
            The index of the selected filters.

        Raises:
            InputError: If no filter is selected, a unit is unknown, or a lazy layer has no shape.
        """
        for name, given in (("include", include), ("exclude", exclude), ("units", units)):
            if isinstance(given, str):
                raise InputError(
                    f"{name} is the string {given!r}; a list of strings is needed, such as "
                    f"[{given!r}]."
                )
        check_units(units)
        found = discover(model, tuple(units), inputs)
        chosen = [f for f in found if _selected(f.layer, include, exclude)]
        if not found:
            raise InputError(_nothing_found(model, tuple(units), looked_at_use=inputs is not None))
        if not chosen:
            raise InputError(
                f"{type(model).__name__} has {len(found)} layers of the units {tuple(units)}, of "
                f"which include={include!r} and exclude={exclude!r} select none; at least one is "
                f"needed. Change the patterns (layers are {_some([f.layer for f in found])})."
            )
        if groups is None:
            names, scheme = _group_layers(model, [f.layer for f in chosen])
        else:
            names, scheme = [groups(f.layer) for f in chosen], "custom"
        if scheme == "depth":
            logger.info(
                "%s has neither residual stages, blocks between poolings nor one list of blocks "
                "with strides; its layers are grouped by depth into %s. Pass groups= to name them "
                "yourself.",
                type(model).__name__,
                ", ".join(dict.fromkeys(names)),
            )
        pairs = zip(chosen, names, strict=True)
        return cls(tuple(replace(layer, group=group) for layer, group in pairs), scheme)

    def __len__(self) -> int:
        """Number of filters, F."""
        return self.starts[-1]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """``[L + 1]`` number of the first filter of each layer, and F at the end."""
        return tuple(accumulate((layer.filters for layer in self.layers), initial=0))

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """``[G]`` group names in order of first appearance."""
        return tuple(dict.fromkeys(layer.group for layer in self.layers))

    @cached_property
    def layer_of(self) -> Tensor:
        """``[F]`` int64 layer number of each filter, which is also its depth."""
        counts = torch.tensor([layer.filters for layer in self.layers])
        return torch.repeat_interleave(torch.arange(len(self.layers)), counts)

    @cached_property
    def group_of(self) -> Tensor:
        """``[F]`` int64 position in :attr:`groups` of each filter."""
        numbers = torch.tensor([self.groups.index(layer.group) for layer in self.layers])
        return numbers[self.layer_of]

    @cached_property
    def group_sizes(self) -> Tensor:
        """``[G]`` int64 number of filters of each group."""
        return torch.bincount(self.group_of, minlength=len(self.groups))

    def locate(self, filter_number: int) -> tuple[FilterLayer, int]:
        """Find the layer of a filter ``0..F-1``, and its output channel inside the layer.

        Raises:
            InputError: If ``filter_number`` is out of range.
        """
        if not 0 <= filter_number < len(self):
            raise InputError(
                f"filter_number is {filter_number} but the index holds filters 0..{len(self) - 1}."
            )
        position = int(self.layer_of[filter_number])
        return self.layers[position], filter_number - self.starts[position]

    def label(self, filter_number: int) -> str:
        """Name a filter ``0..F-1`` by module path and output channel: ``layer4.1.conv2[37]``."""
        layer, channel = self.locate(filter_number)
        return f"{layer.layer}[{layer.channel_label(channel)}]"

    def labels(self) -> list[str]:
        """``[F]`` names of all filters, as of :meth:`label`."""
        return [self.label(number) for number in range(len(self))]

    def fingerprint(self) -> Fingerprint:
        """Describe what must agree for numbers of one network to be used with another."""
        return [(layer.weight, layer.filters, layer.size) for layer in self.layers]

    def fits(self, model: nn.Module) -> bool:
        """Tell whether a network has all weights of this index, by name and size."""
        sizes = {name: value.numel() for name, value in parameters_by_name(model).items()}
        return all(sizes.get(each.weight) == each.filters * each.size for each in self.layers)

    def check_fingerprint(self, other: Any, *, source: str) -> None:
        """Refuse numbers that were made for another network.

        Args:
            other: What :meth:`fingerprint` gave when the numbers were made, perhaps from a file.
            source: What the numbers are, for the message.

        Raises:
            StateError: If the fingerprints differ, or it is none.
        """
        mine = self.fingerprint()
        theirs = record_of(Fingerprint, other, f"{source}: filters")
        if mine == theirs:
            return
        odd = next((pair for pair in zip(mine, theirs, strict=False) if pair[0] != pair[1]), None)
        detail = "layers are missing"
        if odd:
            detail = f"first difference: here {odd[0]}, there {odd[1]}"
        raise StateError(
            f"{source} was made for {sum(row[1] for row in theirs)} filters in "
            f"{len(theirs)} layers, but this network has {len(self)} in {len(mine)} ({detail}). "
            "Use the network, include= and exclude= it was made with, or make it anew."
        )


def check_units(units: Sequence[str]) -> None:
    """Refuse units that there are none of."""
    if set(units) - set(UNITS) or not units:
        raise InputError(f"units is {units!r}; some of {', '.join(UNITS)} are needed.")


def _group_layers(model: nn.Module, layers: Sequence[str]) -> tuple[list[str], str]:
    """Name the group of every layer, given by module paths in network order.

    Returns:
        ``[L]`` group names, and the scheme: ``"resnet"`` (stages ``layerN``), ``"vgg"`` (blocks
        between the poolings of nested ``nn.Sequential``), ``"strides"`` (stages of one flat list of
        blocks), or ``"depth"`` (fifths of the layers, for networks of unknown shape).
    """
    stages = _residual_stages(layers)
    if stages is not None:
        return stages, "resnet"
    blocks = _pooling_blocks(model, layers)
    if blocks is not None:
        return blocks, "vgg"
    strides = _strided_stages(model, layers)
    if strides is not None:
        return strides, "strides"
    parts = min(_DEPTH_PARTS, len(layers))
    names = [f"depth{i * parts // len(layers) + 1}of{parts}" for i in range(len(layers))]
    return names, "depth"


def _residual_stages(layers: Sequence[str]) -> list[str] | None:
    """``conv1`` and then ``conv(N+1)_x`` for ``layerN``, None where fewer than two stages exist."""
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
        if isinstance(module, _MaxPoolNd | _AvgPoolNd) and in_sequential(path):
            block, filled = block + filled, False
        elif path in wanted:
            names[path], filled = f"conv{block}_x", True
    return [names[layer] for layer in layers] if len(set(names.values())) > 1 else None


def _strided_stages(model: nn.Module, layers: Sequence[str]) -> list[str] | None:
    """Stages of the same resolution of the blocks in a list, which run in its order.

    A block that strides begins the next stage as a whole, as in a residual network; the layers
    before the list are blocks of their own, and those behind it are ``head``. None where fewer than
    two stages exist, where the network has no such list or several (or nested ones), and where the
    resolution rises again.
    """
    modules = {clean_name(path): module for path, module in model.named_modules()}
    if any(isinstance(module, _ConvTransposeNd | nn.Upsample) for module in modules.values()):
        return None
    lists = []
    for path, module in modules.items():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            sizes = Counter(_element(layer, path) for layer in layers)
            sizes.pop("", None)
            if sum(size > 1 for size in sizes.values()) > 1:
                lists.append(path)
    if len(lists) != 1:
        return None
    inside = [_element(layer, lists[0]) for layer in layers]
    first = next(number for number, block in enumerate(inside) if block)
    prefix = f"{lists[0]}." if lists[0] else ""
    elements = [prefix + name for name, _ in modules[lists[0]].named_children()]
    names: dict[str, str] = {}
    stage, filled = 1, False
    for block in (*layers[:first], *elements):
        if _strides(modules.get(block)):
            stage, filled = stage + filled, False
        names[block] = f"conv{stage}_x" if stage > 1 else "conv1"
        filled |= block not in elements or block in inside
    chosen = zip(inside, layers, strict=True)
    found = [names.get(block or layer, "head") for block, layer in chosen]
    return found if len(set(found) - {"head"}) > 1 else None


def _element(layer: str, path: str) -> str:
    """The element of the list at ``path`` that holds the layer, "" where none does."""
    prefix = f"{path}." if path else ""
    inside = layer.startswith(prefix)
    return prefix + layer.removeprefix(prefix).partition(".")[0] if inside else ""


def _strides(module: nn.Module | None) -> bool:
    """Tell whether a convolution or pooling inside lowers the resolution."""
    for each in () if module is None else module.modules():
        if isinstance(each, _ConvNd | _MaxPoolNd | _AvgPoolNd):
            stride: Any = each.stride  # an int or several
            if max(stride if isinstance(stride, list | tuple) else (stride,)) > 1:
                return True
    return False


def _selected(layer: str, include: Sequence[str] | None, exclude: Sequence[str]) -> bool:
    if include is not None and not any(fnmatchcase(layer, pattern) for pattern in include):
        return False
    return not any(fnmatchcase(layer, pattern) for pattern in exclude)


def _nothing_found(model: nn.Module, units: tuple[str, ...], *, looked_at_use: bool) -> str:
    """What was looked at, where no weight holds filters."""
    kinds = sorted({type(module).__name__ for module in model.modules()})
    weights = [name for name, p in parameters_by_name(model).items() if p.ndim > 1]
    elsewhere = [unit for unit in UNITS if unit not in units and discover(model, (unit,))]
    advice = "" if looked_at_use else (
        "Weights that modules of your own hand to torch.nn.functional are found if inputs= gives a "
        "batch. "
    )  # fmt: skip
    advice += f"To measure what it has, give units={elsewhere!r}." if elsewhere else ""
    return (
        f"{type(model).__name__} has no layers of the units {units}, of which at least one is "
        f"needed; looked at were {len(weights)} weights ({_some(weights)}) of the modules "
        f"{_some(kinds)}{' and what forward does with them' if looked_at_use else ''}. {advice}"
    ).rstrip()


def _some(names: Sequence[str]) -> str:
    """The first of many names."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more if names else "none"


def filter_rows(weight: Tensor, layer: FilterLayer) -> Tensor:
    """Lay a weight out as ``[filters, size]``, in a view where possible."""
    if layer.transposed_groups:  # [groups * C_in, O per group, *kernel]
        weight = weight.unflatten(0, (layer.transposed_groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.reshape(layer.filters, layer.size)


def weight_of_rows(rows: Tensor, layer: FilterLayer, shape: torch.Size) -> Tensor:
    """Turn ``[filters, size]`` back into a weight: the inverse of :func:`filter_rows`."""
    if not layer.transposed_groups:
        return rows.reshape(shape)
    groups = layer.transposed_groups
    by_group = rows.reshape(groups, shape[1], shape[0] // groups, *shape[2:])
    return by_group.transpose(1, 2).reshape(shape)
