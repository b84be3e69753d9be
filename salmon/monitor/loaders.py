"""Samples out of a loader, each with a number or name to find it again by."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils import _pytree as pytree
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    Sampler,
    SequentialSampler,
)

from salmon.errors import InputError
from salmon.monitor.batches import SampleIds, Unpack, ids_of_batch, unpack_batch
from salmon.repairs import Samples
from salmon.saliency import check_samples

BatchIds = Callable[[Any], list[int | str]]
"""``batch -> [N]`` ids of its samples."""


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


def whole_loader(loader: Any) -> Any:
    """A loader of all samples, where a process gets a part of them only.

    Args:
        loader: Such as a ``DataLoader``.
    """
    shared = sampler_of(loader)
    if not isinstance(shared, DistributedSampler):
        return loader
    chosen = None
    if shared.dataset is not loader.dataset:
        # Lightning shares out what a sampler of the user's gives, which may be a part of the data.
        chosen = getattr(shared.dataset, "_sampler", None)
        if not isinstance(chosen, Sampler):
            raise InputError(
                f"the samples of the loader are shared out by a {type(shared).__name__} of another "
                "data set, so that it is not known which ones belong to it; give a loader without "
                "a sampler, or with one that is not distributed."
            )
    return DataLoader(
        loader.dataset,
        loader.batch_size,
        sampler=chosen,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
    )


def batch_ids(
    loader: Any, what: str, *, unpack: Unpack = unpack_batch, function: SampleIds | None = None
) -> BatchIds | None:
    """How to find the ids in the batches of a loader, whose first batch is looked at.

    Args:
        loader: Such as a ``DataLoader``, or a list of batches.
        unpack: ``batch -> (inputs, targets)``.

    Returns:
        A function; None where batches hold no ids, so that the position has to do.
    """
    if isinstance(loader, Iterator):
        raise InputError(
            f"the {what} data are a {type(loader).__name__}, which can be read only once; a "
            "DataLoader or a list of batches is needed."
        )

    def find(batch: Any) -> Any:
        return ids_of_batch(batch, check_samples(*unpack(batch)), function)[0]

    first = next(iter(loader), None)
    if first is not None and find(first) is not None:
        return find
    if hasattr(loader, "batch_sampler") and not keeps_order(loader):
        raise InputError(
            f"the loader of the {what} data does not keep the order of its dataset and its batches "
            "hold no ids; use shuffle=False, or batches that are mappings with an 'id' (in the "
            "monitor also sample_ids=)."
        )
    return None


def collect_samples(
    loader: Any, what: str, *, most: int, seed: int,
    unpack: Unpack = unpack_batch, function: SampleIds | None = None,
) -> Samples:  # fmt: skip
    """Take the samples out of a loader.

    Args:
        unpack: ``batch -> (inputs, targets)``.
    """
    ids = batch_ids(loader, what, unpack=unpack, function=function)
    return Samples.collect(loader, unpack=unpack, ids=ids, most=most, seed=seed)
