"""Samples, logits and losses of a batch: N of them, with K classes, checked against its labels."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from salmon.errors import InputError, UnsupportedError

_TABLE = 2  # dimensions

Loss = Callable[[Any, Tensor], Tensor]
"""``(output of the network, targets [N, ...]) -> [N]`` losses."""


def check_samples(inputs: Any, targets: Any) -> int:
    """Count the samples of a batch, N."""
    if not isinstance(targets, Tensor) or targets.ndim == 0:
        raise InputError(
            f"targets are {type(targets).__name__} without a sample dimension; a tensor [N] or "
            "[N, K] is needed (in the monitor, unpack= can make one of the batch)."
        )
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    sizes = {tensor.shape[0] for tensor in tensors if tensor.ndim > 0}
    if len(targets) not in sizes:
        raise InputError(
            f"targets hold {len(targets)} samples but inputs hold {sorted(sizes)}; one label per "
            "input is needed (in the monitor, unpack= can pair them; images of different size in a "
            "list have to be brought to one size)."
        )
    return len(targets)


def take_rows(values: Any, rows: Tensor | slice, samples: int) -> Any:
    """Select samples of everything that has them.

    Args:
        rows: ``[M]`` row numbers, or a slice.
        samples: N; tensors whose first dimension is another pass unchanged.
    """

    def take(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or tensor.shape[0] != samples:
            return tensor
        return tensor[rows if isinstance(rows, slice) else rows.to(tensor.device)]

    return pytree.tree_map_only(Tensor, take, values)


def _cross_entropy(output: Any, targets: Tensor) -> Tensor:
    """``[N]`` losses of class numbers ``[N]`` or ``[N, 1]``, or of probabilities ``[N, K]``."""
    logits = logits_of(output)
    classes = class_numbers(targets)
    if classes is None:
        _check_probabilities(targets, logits)
        classes = targets.to(logits.dtype)
    elif logits.device.type == "cpu":  # on a GPU the check would wait for the device
        check_labels(classes, logits.shape[1])
    return nn.functional.cross_entropy(logits, classes, reduction="none")


def sample_losses(output: Any, targets: Tensor, loss: Loss | None) -> Tensor:
    """``[N]`` losses with their graph, a plain tensor whatever type the network works with.

    Args:
        targets: ``[N, ...]`` labels; the loss gets a copy, which it may change.
        loss: Per-sample loss; None takes the cross-entropy of the logits.

    Raises:
        InputError: If the loss gives something else.
        UnsupportedError: If they have no graph although gradients are on.
    """
    losses = (loss or _cross_entropy)(output, targets.clone())
    samples = len(targets)
    if not isinstance(losses, Tensor) or tuple(losses.shape) != (samples,):
        found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise InputError(
            f"loss gave {found} but one loss per sample, [{samples}], is needed; use "
            "reduction='none' and average over what is not the batch."
        )
    if torch.is_grad_enabled() and not losses.requires_grad:
        raise UnsupportedError(
            "the loss has no gradient: forward or loss detach it, or run under torch.no_grad. "
            "Remove that, or measure another network."
        )
    return losses.as_subclass(Tensor)


def class_numbers(targets: Tensor) -> Tensor | None:
    """Read class numbers ``[N]`` or ``[N, 1]``, of any integer type or bool.

    Returns:
        ``[N]`` int64; None of anything else, such as probabilities.
    """
    single = targets.ndim == 1 or (targets.ndim == 2 and targets.shape[1] == 1)
    if not single or targets.is_floating_point() or targets.is_complex():
        return None
    return targets.reshape(-1).long().as_subclass(Tensor)


def labels_of(targets: Tensor, logits: Tensor, loss: Loss | None) -> tuple[Tensor, Tensor]:
    """Tell which class every sample belongs to, and which samples have none.

    Args:
        targets: ``[N]`` or ``[N, 1]`` class numbers, or ``[N, K]`` class probabilities.
        logits: ``[N, K]``.
        loss: Whose ``ignore_index``, if it has one, stands for no class.

    Returns:
        ``[N]`` int64 classes, and ``[N]`` bool, false where the number is no class of the network
        or ignored.
    """
    classes = class_numbers(targets)
    if classes is None:
        _check_probabilities(targets, logits)
        classes = targets.argmax(1).as_subclass(Tensor)
        return classes, torch.ones_like(classes, dtype=torch.bool)
    labelled = (classes >= 0) & (classes < logits.shape[1])
    ignored = getattr(loss, "ignore_index", None)
    return classes, labelled if ignored is None else labelled & (classes != ignored)


def _check_probabilities(targets: Tensor, logits: Tensor) -> None:
    """Refuse labels that are no probabilities of classes, as far as half precision can tell."""
    if targets.shape == logits.shape:
        off = (targets.double().sum(1) - 1).abs()
        if bool((off < 1e-2).all()) and not bool((targets < 0).any()):
            return
    raise InputError(
        f"targets are {targets.dtype} of shape {tuple(targets.shape)} and logits have shape "
        f"{tuple(logits.shape)}; integer class numbers [N], or class probabilities [N, K] that add "
        "up to 1, are needed (in the monitor, unpack= can make them of the batch). For several "
        "labels of each sample give task='multilabel', for numbers task='regression'."
    )


def check_labels(targets: Tensor, classes: int) -> None:
    """Refuse class numbers out of range."""
    if targets.numel() and not (int(targets.min()) >= 0 and int(targets.max()) < classes):
        raise InputError(
            f"targets lie in {int(targets.min())}..{int(targets.max())} but the network has "
            f"{classes} classes; class numbers 0..{classes - 1} are needed."
        )


def are_probabilities(logits: Tensor) -> Tensor:
    """``[N]`` bool: in which rows nothing is negative, and the sum is 1 but for rounding."""
    rounding = 1e-4 if logits.dtype in (torch.float32, torch.float64) else 1e-2
    wide = logits.double()
    return (wide >= 0).all(1) & ((wide.sum(1) - 1).abs() < rounding)


def prediction_of(output: Any) -> Tensor | None:
    """Find what a network predicts in what it returned.

    Args:
        output: A tensor, a mapping or object with the entry ``logits`` or ``out``, or a mapping,
            tuple or list with one tensor in it that can be a prediction.

    Returns:
        A tensor of floating-point numbers; None where there is none, or not only one.
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits", output.get("out"))
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", getattr(output, "out", None))
    if found is None and isinstance(output, Mapping | tuple | list):
        parts = list(output.values() if isinstance(output, Mapping) else output)
        several = [x for x in parts if isinstance(x, Tensor) and x.is_floating_point() and x.ndim]
        if len(several) > 1:
            several = [each for each in several if each.ndim == _TABLE]
        found = several[0] if len(several) == 1 else None
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.ndim == 0:
        return None
    return found.as_subclass(Tensor)


def logits_of(output: Any) -> Tensor:
    """Find the ``[N, K]`` class logits in what a network returned.

    Args:
        output: As for :func:`prediction_of`.
    """
    logits = prediction_of(output)
    if logits is None:
        raise InputError(
            f"the network returned {_described(output)}; a tensor of logits [N, K], a mapping or "
            "object with the entry 'logits', or a tuple with one such tensor is needed. Let "
            "forward return that, or a mapping {'logits': ..., ...} of all it has."
        )
    if not _could_be_logits(logits):
        raise InputError(
            f"the network returned logits of shape {tuple(logits.shape)}; [N, K] with at least 2 "
            "classes is needed, one prediction per sample. squeeze() in forward takes the first "
            "dimension of a batch of one away, which squeeze(1) does not. Where this is not a "
            "class for each sample, give task=, such as 'binary' for one logit, or 'segmentation'."
        )
    return logits


def _could_be_logits(tensor: Tensor) -> bool:
    return tensor.ndim == 2 and tensor.shape[1] >= 2 and tensor.is_floating_point()


def _described(output: Any) -> str:
    """What a network returned, in a few words."""
    if isinstance(output, tuple | list):
        inner = (tuple(e.shape) if isinstance(e, Tensor) else type(e).__name__ for e in output)
        return f"a {type(output).__name__} of {', '.join(map(str, inner))}"
    if isinstance(output, Mapping):
        return f"a mapping with the keys {', '.join(map(str, output))}"
    return f"{type(output).__name__}"
