"""Checkpoints, and patches on them: Lightning's, plain state dicts, and safetensors files."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from salmon.cli.options import PatchOptions
from salmon.errors import InputError, StateError
from salmon.files import file_hash, write_atomically
from salmon.repairs import Patch

STALE = "salmon"
"""Entry that marks a repaired checkpoint; its optimizer state belongs to the old weights."""


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


def hashed(path: Path) -> str:
    """Name and contents of a file, in a few words."""
    return f"{path.name}, SHA-256 {file_hash(path)}"


def read_checkpoint(path: Path, *, weights_only: bool = True) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: Written by Lightning, or a state dict in torch's or the safetensors format.
    """
    try:
        if path.suffix == ".safetensors":
            return Checkpoint(load_file(path), plain=True)
        found = _loaded(path, weights_only=weights_only)
    except pickle.UnpicklingError as error:
        hint = f"; if it holds objects and {_TRUST}" if weights_only else ""
        raise StateError(f"checkpoint {path} cannot be read safely{hint}.") from error
    except _UNREADABLE as error:
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
    return checkpoint


_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError,
               ImportError, SafetensorError)  # fmt: skip
"""What torch and safetensors raise for files that are something else, or damaged."""


def _loaded(path: Path, *, weights_only: bool) -> Any:
    """What ``torch.save`` wrote; tensors stay in the file until they are looked at."""
    with path.open("rb") as file:
        archive = file.read(4) == b"PK\x03\x04"  # before torch 1.6 files were none
    return torch.load(path, map_location="cpu", weights_only=weights_only, mmap=archive)


def _belongs(item: tuple[Any, Any]) -> bool:
    """Whether an entry is one of a state dict: a tensor, or a module's own state."""
    name, value = item
    return isinstance(value, Tensor) or str(name).endswith("_extra_state")


def load_weights(model: nn.Module, checkpoint: Checkpoint, *, source: str) -> None:
    """Load the weights of a checkpoint into a network."""
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
        repaired: Whether a patch is on. A checkpoint of Lightning is then marked, since its
            optimizer state belongs to the weights without the patch; a state dict has none.
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
    """
    if path.exists() and not force:
        raise InputError(
            f"{path} already exists; choose another --out, or replace it with --force."
        )


def apply_patch(options: PatchOptions) -> int:
    """``salmon apply``: put a patch on a checkpoint, into another file."""
    return _patched(options, new=True)


def revert_patch(options: PatchOptions) -> int:
    """``salmon revert``: take it off again."""
    return _patched(options, new=False)


def _patched(options: PatchOptions, *, new: bool) -> int:
    """Change the weights and write them; say whether any changed."""
    check_new_file(options.out, force=options.force)
    patch = Patch.load(options.patch)
    checkpoint = read_checkpoint(Path(options.ckpt_path), weights_only=options.weights_only)
    state = checkpoint.state_dict
    changed = patch.apply(state) if new else patch.revert(state)
    write_checkpoint(options.out, checkpoint, repaired=new)
    verb = "applied" if new else "reverted"
    what = f"{verb}: {patch.edit.weights} weights" if changed else f"was {verb} already"
    print(f"The patch {what}. Written: {options.out}")
    return 0
