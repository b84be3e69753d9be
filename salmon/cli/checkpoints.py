"""Checkpoints in and out: Lightning's, plain state dicts, and safetensors files."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from salmon.errors import InputError, StateError
from salmon.files import DAMAGED, write_atomically

STALE = "salmon"
"""Entry that marks a repaired checkpoint; its optimizer state belongs to the old weights."""


def read_checkpoint(path: Path, *, weights_only: bool = True) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        path: Written by Lightning, or a state dict in torch's or the safetensors format.
        weights_only: Whether it may hold nothing but tensors and plain values.

    Returns:
        Its content, always with the entry ``state_dict``.

    Raises:
        StateError: If it is missing, damaged, or holds objects although ``weights_only``.
    """
    try:
        if path.suffix == ".safetensors":
            return {"state_dict": load_file(path)}
        found = torch.load(path, map_location="cpu", weights_only=weights_only)
    except pickle.UnpicklingError as error:
        hint = ""
        if weights_only:
            hint = (
                "; if it holds objects and you trust whoever wrote it, use --weights_only false, "
                "which lets it run code"
            )
        raise StateError(f"checkpoint {path} cannot be read safely{hint}.") from error
    except (*DAMAGED, SafetensorError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StateError(f"checkpoint {path} cannot be read ({line}).") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), Mapping):
        return found
    if isinstance(found, dict) and found and all(isinstance(v, Tensor) for v in found.values()):
        return {"state_dict": found}
    raise StateError(f"checkpoint {path} holds no state_dict; one of Lightning or torch is needed.")


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], *, source: str) -> None:
    """Load the weights of a checkpoint into a network.

    Args:
        model: The network.
        checkpoint: As of :func:`read_checkpoint`.
        source: Its name, for messages.

    Raises:
        StateError: If names or shapes differ.
    """
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise StateError(
            f"checkpoint {source} does not fit {type(model).__name__}: {' '.join(lines[1:3])}"
        ) from error


def write_checkpoint(path: Path, checkpoint: Mapping[str, Any], note: Mapping[str, Any]) -> None:
    """Write a changed checkpoint in the format of its name, and say that it was changed.

    Args:
        path: Ending in ``.safetensors`` for that format.
        checkpoint: As of :func:`read_checkpoint`, with changed weights.
        note: What was changed; plain values.

    Raises:
        OSError: If it cannot be written.
    """
    if path.suffix == ".safetensors":
        data = save(dict(checkpoint["state_dict"]), {STALE: str(dict(note))})
        write_atomically(path, lambda file: file.write(data))
        return
    marked = dict(checkpoint) | {STALE: {"optimizer_states": "stale"} | dict(note)}
    write_atomically(path, lambda file: torch.save(marked, file))


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
