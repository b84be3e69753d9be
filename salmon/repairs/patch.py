"""Patches: new values of some weights on disk, that go onto the very network they were made for.

A safetensors file: for every touched tensor ``w`` the tensors ``w/channels`` [m], ``w/old`` and
``w/new`` [m, size]; one metadata entry ``salmon`` with JSON: format, description of the weights,
SHA-256 of every tensor of the base network, of the touched ones after the patch and of the patch's
own content, and whatever the maker adds. Values are absolute, so that applying twice is applying
once, and reverting restores the bits. Nothing in a file is executed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from salmon.errors import InputError, StateError
from salmon.files import tensor_hash, write_atomically
from salmon.filters import FilterLayer
from salmon.records import record_of
from salmon.repairs.edit import Change, Edit, state_of, write

FORMAT = "salmon.patch/1"
_PARTS = ("channels", "old", "new")


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """New and old values of some rows of tensors, and the network they belong to."""

    edit: Edit
    undo: Edit  # the same rows with the old values
    base: dict[str, str]  # SHA-256 by name of every tensor of the state dict
    patched: dict[str, str]  # of the touched ones with the patch
    info: dict[str, Any] = field(default_factory=dict)  # settings, seed, versions, metrics

    @classmethod
    def make(cls, model: nn.Module, edit: Edit, info: Mapping[str, Any] | None = None) -> "Patch":
        """Describe an edit of a network as it is now.

        Args:
            model: The network, without the edit.
            info: Plain values that JSON takes, kept with the patch.
        """
        state = state_of(model)
        touched = {c.layer.weight: state[c.layer.weight].clone() for c in edit.changes}
        write(touched, edit)
        for name, value in state.items():  # the same memory under another name, such as tied ones
            for weight in list(touched):
                if name not in touched and value.is_set_to(state[weight]):
                    touched[name] = touched[weight]
        return cls(
            edit,
            edit.values_in(state),
            {name: tensor_hash(value) for name, value in state.items()},
            {name: tensor_hash(value) for name, value in touched.items()},
            dict(info or {}),
        )

    def save(self, path: str | Path) -> None:
        """Write a file, whole or not at all; the same patch gives the same bytes.

        Raises:
            OSError: If it cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        for change, old in zip(self.edit.changes, self.undo.changes, strict=True):
            parts = (change.channels, old.values, change.values)
            for name, tensor in zip(_PARTS, parts, strict=True):
                tensors[f"{change.layer.weight}/{name}"] = tensor.clone(
                    memory_format=torch.contiguous_format
                )
        header = {
            "format": FORMAT,
            "layers": {change.layer.weight: asdict(change.layer) for change in self.edit.changes},
            "base": self.base,
            "patched": self.patched,
            "info": self.info,
        }
        header["content"] = _content_hash(tensors, header)
        data = save(tensors, {"salmon": json.dumps(header, sort_keys=True, allow_nan=False)})
        write_atomically(Path(path), lambda file: file.write(data))

    @classmethod
    def load(cls, path: str | Path) -> "Patch":
        """Read a file that :meth:`save` wrote. Nothing in it is executed.

        Raises:
            StateError: If the file is missing, no patch, truncated, changed, or of another
                version.
        """
        path = Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get("salmon")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = json.loads(text) if text is not None else None
        except (OSError, SafetensorError, ValueError, RecursionError) as error:
            raise StateError(
                f"{path} cannot be read as a patch ({type(error).__name__}: {error}); a whole file "
                "written by Patch.save or 'salmon repair' is needed."
            ) from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            found = header.get("format") if isinstance(header, dict) else None
            raise StateError(
                f"{path} holds {found!r} but {FORMAT!r} is needed; it is no patch of ours."
            )
        try:
            return _patch_of(header, tensors)
        except (ValueError, RecursionError) as error:
            raise StateError(
                f"{path} is a damaged or changed patch ({error}); get it anew, or make it anew."
            ) from error

    def apply(self, target: nn.Module | Mapping[str, Tensor]) -> bool:
        """Write the new values.

        Args:
            target: The network the patch was made for, or its state dict; changed in place.

        Returns:
            Whether anything changed; a network that has the patch already stays as it is.

        Raises:
            StateError: If it is another network, or has other weights, or the patch holds other
                values than it says; nothing is changed then.
        """
        return self._write(target, new=True)

    def revert(self, target: nn.Module | Mapping[str, Tensor]) -> bool:
        """Write the old values back, bit for bit.

        Returns:
            Whether anything changed.

        Raises:
            StateError: As of :meth:`apply`.
        """
        return self._write(target, new=False)

    def _write(self, target: nn.Module | Mapping[str, Tensor], *, new: bool) -> bool:
        """Write one side of the edit where the other one is."""
        state = state_of(target)
        self._check_tensors(state)
        here = {name: tensor_hash(state[name]) for name in self.base}
        sides = {False: self.base, True: self.base | self.patched}
        differing = {
            side: [name for name in known if here[name] != known[name]]
            for side, known in sides.items()
        }
        if not differing[new]:
            return False
        if differing[not new]:
            odd = min(differing.values(), key=len)
            raise StateError(
                f"the weights are not those the patch was made for: {len(odd)} of "
                f"{len(self.base)} tensors differ, such as {odd[0]}; apply it to the checkpoint it "
                "was made from (or make a new one for this one)."
            )
        weights = [change.layer.weight for change in self.edit.changes]
        values = {name: state[name].detach().clone() for name in weights}
        write(values, self.edit if new else self.undo)
        for name in set(self.patched) - set(values):  # tied ones, which a state dict may hold apart
            twin = next(w for w in weights if self.patched[w] == self.patched[name])
            values[name] = values[twin]
        wrong = [name for name in weights if tensor_hash(values[name]) != sides[new][name]]
        if wrong:  # somebody made the patch by hand
            raise StateError(
                f"the values of the patch for {wrong[0]} are not those of its checksums; get it "
                "anew, or make it anew. Nothing was changed."
            )
        with torch.inference_mode(mode=False), torch.no_grad():
            for name, value in values.items():
                state[name].detach().copy_(value)
        return True

    def _check_tensors(self, state: Mapping[str, Tensor]) -> None:
        """Refuse tensors of another network."""
        missing = sorted(set(self.base) - set(state))
        if missing:
            raise StateError(
                f"the patch is for a network with {len(self.base)} tensors, of which "
                f"{len(missing)} are missing here, such as {missing[0]}; apply it to the network "
                "it was made for."
            )
        for change in self.edit.changes:
            weight, layer = state[change.layer.weight], change.layer
            size, groups = layer.filters * layer.size, layer.transposed_groups
            if weight.numel() != size or weight.dtype != change.values.dtype:
                raise StateError(
                    f"the patch needs {layer.weight} with {size} weights of {change.values.dtype}, "
                    f"but here it has {weight.numel()} of {weight.dtype}; apply it to the network "
                    "it was made for, in the same precision."
                )
            if groups and (weight.ndim < 2 or groups * weight.shape[1] != layer.filters):
                raise StateError(
                    f"the patch takes {layer.weight} for the weight of a transposed convolution of "
                    f"{groups} groups, but it is of shape {tuple(weight.shape)}; apply it to the "
                    "network it was made for."
                )


def is_patch(path: Path) -> bool:
    """Whether a file is a patch, and no checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            return "salmon" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _patch_of(header: dict[str, Any], tensors: dict[str, Tensor]) -> Patch:
    """Check and assemble."""
    if header.pop("content", None) != _content_hash(tensors, header):
        raise InputError("its content does not match its checksum")
    layers = record_of(dict[str, FilterLayer], header.get("layers"), "layers")
    base = record_of(dict[str, str], header.get("base"), "base")
    patched = record_of(dict[str, str], header.get("patched"), "patched")
    info = record_of(dict[str, Any], header.get("info"), "info")
    if set(tensors) != {f"{name}/{part}" for name in layers for part in _PARTS}:
        raise InputError("its tensors are not those that it describes")
    sides: dict[str, list[Change]] = {"old": [], "new": []}
    for name, layer in layers.items():
        channels, old, new = (tensors[f"{name}/{part}"] for part in _PARTS)
        _check_change(layer, channels, old, new)
        sides["old"].append(Change(layer, channels, old))
        sides["new"].append(Change(layer, channels, new))
    if not set(layers) <= set(patched) <= set(base):
        raise InputError("its checksums do not belong to its tensors")
    return Patch(Edit(tuple(sides["new"])), Edit(tuple(sides["old"])), base, patched, info)


def _check_change(layer: FilterLayer, channels: Tensor, old: Tensor, new: Tensor) -> None:
    """Refuse tensors that do not fit the description of their weight."""
    if min(layer.filters, layer.size, layer.rows, layer.transposed_groups + 1) < 1 or (
        not layer.parts or layer.filters % len(layer.parts)
    ):
        raise InputError(f"the description of {layer.weight} holds numbers that no layer has")
    if channels.dtype != torch.int64 or channels.ndim != 1 or len(channels) == 0:
        raise InputError(f"the filters of {layer.weight} are no list of numbers")
    if not old.shape == new.shape == (len(channels), layer.size):
        raise InputError(f"the tensors of {layer.weight} do not fit its description")
    rising = bool((channels[1:] > channels[:-1]).all())
    inside = int(channels[0]) >= 0 and int(channels[-1]) < layer.filters
    if not rising or not inside or old.dtype != new.dtype or not old.is_floating_point():
        raise InputError(f"the filters of {layer.weight} are not in order, or out of range")


def _content_hash(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """Hash all that a patch holds."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True, allow_nan=False).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensor_hash(tensors[name])}".encode())
    return digest.hexdigest()
