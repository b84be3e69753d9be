"""A weight as a matrix with one row per filter, and back."""

import torch
from torch import Tensor

from salmon.filters.index import FilterLayer


def filter_rows(weight: Tensor, layer: FilterLayer) -> Tensor:
    """Lay a weight out by filters.

    Returns:
        ``[filters, size]``, a view where the layout allows it.
    """
    if layer.transposed_groups:  # [groups * C_in, O per group, *kernel]
        weight = weight.unflatten(0, (layer.transposed_groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.reshape(layer.filters, layer.size)


def weight_of_rows(rows: Tensor, layer: FilterLayer, shape: torch.Size) -> Tensor:
    """Turn rows of filters back into a weight.

    Args:
        rows: ``[filters, size]``.

    Returns:
        The weight; the inverse of :func:`filter_rows`.
    """
    if not layer.transposed_groups:
        return rows.reshape(shape)
    groups = layer.transposed_groups
    by_group = rows.reshape(groups, shape[1], shape[0] // groups, *shape[2:])
    return by_group.transpose(1, 2).reshape(shape)
