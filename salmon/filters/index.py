"""Which weights are filters, and each filter's layer, group and depth.

A filter is one output channel of a convolution weight, of shape ``(C_in/groups, kH, kW)`` for two
dimensions. Filters are numbered ``0..F-1`` in the order of ``named_parameters()``, channels inside.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter

from salmon.errors import InputError, StateError
from salmon.filters.groups import group_layers
from salmon.filters.names import clean_name

logger = logging.getLogger(__name__)

SHORTCUTS = ("*.downsample.*", "*.shortcut.*")
"""Patterns of residual shortcut convolutions, for ``exclude=``: the paper's counts omit them."""


@dataclass(frozen=True, slots=True)
class FilterLayer:
    """One convolution weight and the filters it holds."""

    weight: str  # parameter name, such as "layer1.0.conv1.weight"
    layer: str  # module path, such as "layer1.0.conv1"
    group: str  # such as "conv2_x"
    filters: int  # output channels
    size: int  # weights of one filter, such as 64*3*3
    channel_dim: int  # dimension of the weight that counts output channels


@dataclass(frozen=True, eq=False)
class FilterIndex:
    """All measured filters of one network, in a fixed order.

    Build it with :meth:`from_model`; two indices are interchangeable where their
    :meth:`fingerprint` is equal.
    """

    layers: tuple[FilterLayer, ...]
    scheme: str  # how groups were named: "resnet", "vgg", "depth" or "custom"

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        *,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        groups: Callable[[str], str] | None = None,
    ) -> "FilterIndex":
        """Index the convolution filters (1d, 2d, 3d) of a network.

        Args:
            model: Any module. Wrappers such as ``torch.compile`` are looked through.
            include: Shell patterns on module paths (``"layer3.*"``); None takes all.
            exclude: Shell patterns to leave out, applied after ``include``. ``SHORTCUTS`` leaves
                out the 1x1 convolutions of residual shortcuts, as the counts of the paper do.
            groups: Names the group of a module path; None names residual stages, blocks between
                poolings, or depth fifths, whichever fits the network.

        Returns:
            The index of the selected filters.

        Raises:
            InputError: If no convolution is selected, or a lazy one has no shape yet.
        """
        found = list(_convolutions(model))
        chosen = [
            (name, layer, module)
            for name, layer, module in found
            if _selected(layer, include, exclude)
        ]
        if not chosen:
            raise InputError(
                f"{type(model).__name__} has {len(found)} convolutions with a weight of their own, "
                f"of which include={include!r} and exclude={exclude!r} select none; at least one "
                "is needed. Change the patterns, or use a network with Conv1d, Conv2d or Conv3d."
            )
        if groups is None:
            names, scheme = group_layers(model, [layer for _, layer, _ in chosen])
        else:
            names, scheme = [groups(layer) for _, layer, _ in chosen], "custom"
        if scheme == "depth":
            logger.info(
                "%s has neither residual stages nor blocks between poolings; its layers are "
                "grouped by depth into %s. Pass groups= to name them yourself.",
                type(model).__name__,
                ", ".join(dict.fromkeys(names)),
            )
        return cls(
            layers=tuple(
                _layer(name, layer, group, module)
                for (name, layer, module), group in zip(chosen, names, strict=True)
            ),
            scheme=scheme,
        )

    def __len__(self) -> int:
        """Number of filters, F.

        Returns:
            F.
        """
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
        """Find the layer and output channel of a filter.

        Args:
            filter_number: In ``0..F-1``.

        Returns:
            The layer, and the channel inside it.

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
        """Name a filter, such as ``layer4.1.conv2[37]``.

        Args:
            filter_number: In ``0..F-1``.

        Returns:
            Module path and output channel.
        """
        layer, channel = self.locate(filter_number)
        return f"{layer.layer}[{channel}]"

    def labels(self) -> list[str]:
        """Name all filters.

        Returns:
            ``[F]`` labels as of :meth:`label`.
        """
        return [f"{layer.layer}[{c}]" for layer in self.layers for c in range(layer.filters)]

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """Describe what must agree for numbers of one network to be used with another.

        Returns:
            Weight name, number of filters and filter size of every layer; plain Python values.
        """
        return [(layer.weight, layer.filters, layer.size) for layer in self.layers]

    def check_fingerprint(self, other: Sequence[Sequence[Any]], *, source: str) -> None:
        """Refuse numbers that were made for another network.

        Args:
            other: What :meth:`fingerprint` gave when the numbers were made.
            source: What the numbers are, for the message.

        Raises:
            StateError: If the fingerprints differ.
        """
        mine = self.fingerprint()
        theirs = [tuple(row) for row in other]
        if mine == theirs:
            return
        odd = next((pair for pair in zip(mine, theirs, strict=False) if pair[0] != pair[1]), None)
        detail = f"first difference: here {odd[0]}, there {odd[1]}" if odd else "layers are missing"
        raise StateError(
            f"{source} was made for {sum(row[1] for row in theirs)} filters in {len(theirs)} "
            f"layers, but this network has {len(self)} in {len(mine)} ({detail}). Use the network, "
            "include= and exclude= it was made with, or make it anew."
        )


def _selected(layer: str, include: Sequence[str] | None, exclude: Sequence[str]) -> bool:
    """Whether a module path passes the patterns."""
    if include is not None and not any(fnmatchcase(layer, pattern) for pattern in include):
        return False
    return not any(fnmatchcase(layer, pattern) for pattern in exclude)


def _convolutions(model: nn.Module) -> Iterator[tuple[str, str, _ConvNd]]:
    """Yield parameter name, module path and module of every convolution, in parameter order."""
    owners = {
        id(module.weight): module
        for module in model.modules()
        if isinstance(module, _ConvNd) and "weight" in module._parameters
    }
    for name, parameter in model.named_parameters():
        module = owners.get(id(parameter))
        if module is not None:
            clean = clean_name(name)
            yield clean, clean.rpartition(".")[0], module


def _layer(name: str, layer: str, group: str, module: _ConvNd) -> FilterLayer:
    """Describe one convolution."""
    weight = module.weight
    if isinstance(weight, UninitializedParameter):
        raise InputError(
            f"{layer} is a lazy convolution without a shape; run one batch through the network "
            "before indexing its filters."
        )
    transposed = isinstance(module, _ConvTransposeNd)
    return FilterLayer(
        weight=name,
        layer=layer,
        group=group,
        filters=module.out_channels,
        size=weight.numel() // module.out_channels,
        channel_dim=1 if transposed else 0,
    )
