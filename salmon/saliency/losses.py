"""Losses and logits: what a network returned, checked against its labels."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from salmon.errors import InputError, UnsupportedError

Loss = Callable[[Any, Tensor], Tensor]
"""``(output of the network, targets [N, ...]) -> [N]`` losses."""


def check_samples(inputs: Any, targets: Any) -> int:
    """Count the samples of a batch.

    Args:
        inputs: Tensor, or tuple or mapping of tensors.
        targets: Labels.

    Returns:
        N.

    Raises:
        InputError: If targets are no tensor with samples, or their number is not that of inputs.
    """
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
            "input is needed (in the monitor, unpack= can pair them)."
        )
    return len(targets)


def cross_entropy(output: Any, targets: Tensor) -> Tensor:
    """Per-sample cross-entropy of the logits.

    Args:
        output: What the network returned; see :func:`logits_of`.
        targets: ``[N]`` class numbers or ``[N, K]`` class probabilities.

    Returns:
        ``[N]`` losses.

    Raises:
        InputError: If targets do not fit the logits, or a class number is out of range.
    """
    logits = logits_of(output)
    if targets.ndim == 1 and not targets.is_floating_point():
        if logits.device.type == "cpu":  # on a GPU the check would wait for the device
            check_labels(targets, logits.shape[1])
        targets = targets.long()
    elif (
        targets.shape != logits.shape
        or not targets.is_floating_point()
        or (logits.device.type == "cpu" and not _sums_to_one(targets))
    ):
        raise InputError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)} and logits have shape "
            f"{tuple(logits.shape)}; integer class numbers [N], or class probabilities [N, K] "
            "that add up to 1, are needed. For other tasks pass loss=, with one loss per sample."
        )
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def check_labels(targets: Tensor, classes: int) -> None:
    """Refuse class numbers out of range.

    Args:
        targets: ``[N]`` integers.
        classes: K.

    Raises:
        InputError: If a number lies outside ``0..K-1``.
    """
    if targets.numel() and not (int(targets.min()) >= 0 and int(targets.max()) < classes):
        raise InputError(
            f"targets lie in {int(targets.min())}..{int(targets.max())} but the network has "
            f"{classes} classes; class numbers 0..{classes - 1} are needed."
        )


def logits_of(output: Any) -> Tensor:
    """Find the class logits in what a network returned.

    Args:
        output: The logits, or a mapping or object with the entry ``logits``.

    Returns:
        ``[N, K]`` logits.

    Raises:
        InputError: If there are none, or their shape is another one.
    """
    logits = output
    if isinstance(output, Mapping):
        logits = output.get("logits")
    elif not isinstance(output, Tensor):
        logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise InputError(
            f"the network returned {type(output).__name__}; a tensor of logits [N, K], or a "
            "mapping or object with the entry 'logits', is needed. Wrap the network in one that "
            "returns it."
        )
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise InputError(
            f"the network returned logits of shape {tuple(logits.shape)}; [N, K] with at least 2 "
            "classes is needed, one prediction per sample. Maps and boxes are not supported; a "
            "two-class network needs two outputs."
        )
    return logits


def check_losses(losses: Any, samples: int) -> None:
    """Refuse losses that are not one number per sample with a graph.

    Args:
        losses: What the loss gave.
        samples: N.

    Raises:
        InputError: If they are not ``[N]``.
        UnsupportedError: If they have no graph.
    """
    if not isinstance(losses, Tensor) or tuple(losses.shape) != (samples,):
        found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise InputError(
            f"loss gave {found} but one loss per sample, [{samples}], is needed; use "
            "reduction='none' and average over what is not the batch."
        )
    if not losses.requires_grad:
        raise UnsupportedError(
            "the loss has no gradient: forward or loss detach it, or run under torch.no_grad. "
            "Remove that, or measure another network."
        )


def _sums_to_one(targets: Tensor) -> bool:
    """Whether rows are probabilities, as far as half precision can tell."""
    off = (targets.double().sum(1) - 1).abs()
    return bool((off < 1e-2).all()) and not bool((targets < 0).any())
