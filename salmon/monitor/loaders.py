"""Loaders: their order, their names, and whether they keep the order of their samples."""

import re
from typing import Any

from torch.utils import _pytree as pytree
from torch.utils.data import BatchSampler, DistributedSampler, SequentialSampler


def flat_loaders(loaders: Any) -> list[Any]:
    """Loaders in the order in which Lightning numbers them."""
    return [loader for _, loader in pytree.tree_flatten_with_path(loaders)[0]]


def loader_names(loaders: Any) -> list[str]:
    """Names of loaders, as parts of those of results, metrics and files.

    Returns:
        ``loader0`` and so on for a list; for mappings with the names in them, such as
        ``loader_photo`` or ``loader_photo.dark``. No two are the same.
    """
    names: list[str] = []
    for path, _ in pytree.tree_flatten_with_path(loaders)[0]:
        keys = [getattr(step, "key", getattr(step, "idx", "")) for step in path]
        plain = [re.sub(r"[^\w-]+", "-", str(key)) for key in keys]
        named = any(hasattr(step, "key") for step in path)
        name = f"loader{'_' if named else ''}{'.'.join(plain)}"
        while name in names:
            name = f"{name}-{len(names)}"
        names.append(name)
    return names


def keeps_order(loader: Any) -> bool:
    """Whether a loader gives the samples of its dataset in order.

    Args:
        loader: Such as a ``DataLoader``.
    """
    # The sampler of a loader with its own batch_sampler is a placeholder.
    if type(getattr(loader, "batch_sampler", None)) is not BatchSampler:
        return False
    sampler = sampler_of(loader)
    if isinstance(sampler, DistributedSampler):
        return not sampler.shuffle and sampler.dataset is loader.dataset
    return isinstance(sampler, SequentialSampler)


def sampler_of(loader: Any) -> Any:
    """The sampler that a loader's batches are made from.

    Args:
        loader: Such as a ``DataLoader``.

    Returns:
        The sampler, or None.
    """
    batches = getattr(loader, "batch_sampler", None)
    return getattr(batches, "sampler", None)
