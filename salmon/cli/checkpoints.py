"""Checkpoints in and out: Lightning's, plain state dicts, and safetensors files."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from salmon.archives import UNREADABLE, TooMuchError, check_tensors_file, load_archive
from salmon.errors import InputError, StateError
from salmon.files import write_atomically

STALE = "salmon"
"""Entry that marks a repaired checkpoint; its optimizer state belongs to the old weights."""


_STRETCHED = 1 << 26  # bytes of all tensors that may be made of fewer, such as buffers of ones


_TRUST = "you trust whoever wrote it, use --weights_only false, which lets it run code"


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What a file held."""

    content: dict[str, Any]  # all of it
    plain: bool  # whether that is the state dict itself

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by name."""
        found: dict[str, Tensor] = self.content if self.plain else self.content["state_dict"]
        return found


def read_checkpoint(path: Path, *, weights_only: bool = True) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: Written by Lightning, or a state dict in torch's or the safetensors format.
        weights_only: Whether it may hold nothing but tensors and plain values.

    Returns:
        Its content.

    Raises:
        StateError: If it is missing, damaged, or holds objects although ``weights_only``.
    """
    try:
        if path.suffix == ".safetensors":
            check_tensors_file(path)
            return Checkpoint(load_file(path), plain=True)
        if weights_only:
            found = load_archive(path, legacy=True)
        else:
            found = torch.load(path, map_location="cpu", weights_only=False)
    except pickle.UnpicklingError as error:
        hint = f"; if it holds objects and {_TRUST}" if weights_only else ""
        raise StateError(f"checkpoint {path} cannot be read safely{hint}.") from error
    except TooMuchError as error:
        raise StateError(f"checkpoint {path} cannot be read ({error}); if {_TRUST}.") from error
    except (*UNREADABLE, ImportError, SafetensorError) as error:
        line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise StateError(f"checkpoint {path} cannot be read ({line}).") from error
    checkpoint = None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), Mapping):
        checkpoint = Checkpoint(found, plain=False)
    elif isinstance(found, dict) and found and all(map(_belongs, found.items())):
        checkpoint = Checkpoint(found, plain=True)
    if checkpoint is None or not all(isinstance(name, str) for name in checkpoint.state_dict):
        raise StateError(
            f"checkpoint {path} holds no state_dict; one of Lightning or torch is needed."
        )
    _check_weights(checkpoint.state_dict, path)
    return checkpoint


def _belongs(item: tuple[Any, Any]) -> bool:
    """Whether an entry is one of a state dict: a tensor, or a module's own state."""
    name, value = item
    return isinstance(value, Tensor) or str(name).endswith("_extra_state")


def _check_weights(weights: Mapping[str, Any], path: Path) -> None:
    """Refuse tensors that are no weights, or a terabyte made of one number used again and again."""
    stretched = 0
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            continue  # modules may have states of their own
        odd = value.layout is not torch.strided or value.is_meta
        if not odd:
            stretched += max(0, value.nbytes - value.untyped_storage().nbytes())
        if odd or stretched > _STRETCHED:
            raise StateError(
                f"checkpoint {path}: {name[:60]} of shape {tuple(value.shape)} is no ordinary "
                "tensor with a number for each element; save the weights as they are in use."
            )


def load_weights(model: nn.Module, checkpoint: Checkpoint, *, source: str) -> None:
    """Load the weights of a checkpoint into a network.

    Args:
        model: The network.
        checkpoint: As of :func:`read_checkpoint`.
        source: Its name, for messages.

    Raises:
        StateError: If names or shapes differ.
    """
    try:
        model.load_state_dict(checkpoint.state_dict)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise StateError(
            f"checkpoint {source} does not fit {type(model).__name__}: {' '.join(lines[1:3])}"
        ) from error


def write_checkpoint(path: Path, checkpoint: Checkpoint, *, repaired: bool) -> None:
    """Write a checkpoint back in the form it had.

    Args:
        path: Ending in ``.safetensors`` for a state dict in that format.
        checkpoint: As of :func:`read_checkpoint`, with changed weights.
        repaired: Whether a patch is on. A checkpoint of Lightning is then marked, since its
            optimizer state belongs to the weights without the patch; a state dict has none.

    Raises:
        InputError: If safetensors cannot hold it.
        OSError: If it cannot be written.
    """
    if path.suffix == ".safetensors":
        data = save(_apart(checkpoint.state_dict))
        write_atomically(path, lambda file: file.write(data))
        return
    content = checkpoint.content
    if not checkpoint.plain:
        content = {name: value for name, value in content.items() if name != STALE}
        content |= {STALE: {"patch": "applied", "optimizer_states": "stale"}} if repaired else {}
    write_atomically(path, lambda file: torch.save(content, file))


def _apart(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights as safetensors takes them: each in memory of its own, in the usual order."""
    for name, value in weights.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            raise InputError(
                f"{name[:60]} is {type(value).__name__} of a layout that safetensors cannot hold; "
                "write a file whose name ends in .ckpt or .pt."
            )
    return {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in weights.items()
    }


def check_new_file(path: Path, *, force: bool) -> None:
    """Refuse to overwrite.

    Args:
        path: A file to be written.
        force: Whether it may be replaced.

    Raises:
        InputError: If it exists and ``force`` is not set.
    """
    if path.exists() and not force:
        raise InputError(
            f"{path} already exists; choose another --out, or replace it with --force."
        )
