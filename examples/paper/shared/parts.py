"""Finished parts of an experiment on disk: a second start takes them over instead of computing.

A folder belongs to one set of settings, kept in ``settings.json``. Parts are safetensors or JSON
files that appear whole or not at all.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from salmon import InputError
from salmon.files import json_text, write_atomically


class Parts:
    """The parts of one folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Claim a folder for some settings.

        Args:
            folder: Made if missing.
            settings: What the numbers depend on.

        Raises:
            InputError: If the folder belongs to other settings, or holds something else.
        """
        self.folder = folder
        wanted = json.loads(json_text(dict(settings)))
        claim = folder / "settings.json"
        if not claim.exists():
            if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
                raise InputError(
                    f"{folder} holds something else than results of these experiments; a new "
                    "folder is needed. Choose one with --out."
                )
            write_atomically(claim, lambda f: f.write(json_text(wanted, indent=1).encode()))
            return
        found = _read_json(claim)
        if found != wanted:
            names = [n for n in {**found, **wanted} if found.get(n) != wanted.get(n)]
            differ = "; ".join(f"{n} was {found.get(n)!r}, now {wanted.get(n)!r}" for n in names)
            raise InputError(
                f"{folder} holds results of other settings ({differ}). Use the same settings, or "
                "another folder with --out."
            )

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """A part of tensors, from the disk or made now.

        Args:
            name: Of the part.
            make: Makes it.
        """
        found = self.find(name)
        if found is None:
            found = make()
            self.store(name, found)
        return found

    def find(self, name: str) -> dict[str, Tensor] | None:
        """A part of tensors that is on the disk, if it is.

        Args:
            name: Of the part.

        Raises:
            InputError: If it is there but cannot be read.
        """
        path = self._path(name)
        if not path.exists():
            return None
        try:
            return dict(load(path.read_bytes()))
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{path} cannot be read ({error}); a file of these experiments is needed. Delete "
                "it to have it made anew."
            ) from error

    def store(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a part.

        Args:
            name: Of the part.
            tensors: On any device.
        """
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_atomically(self._path(name), lambda file: file.write(save(plain)))

    def forget(self, name: str) -> None:
        """Remove a part.

        Args:
            name: Of the part.
        """
        self._path(name).unlink(missing_ok=True)

    def values(self, name: str, make: Callable[[], Any]) -> Any:
        """A part of plain values, from the disk or made now.

        Args:
            name: Of the part.
            make: Makes it.
        """
        path = self.folder / f"{name}.json"
        if not path.exists():
            found = make()
            write_atomically(path, lambda file: file.write(json_text(found, indent=1).encode()))
        return _read_json(path)

    def _path(self, name: str) -> Path:
        """File of a part of tensors."""
        return self.folder / f"{name}.safetensors"


def _read_json(path: Path) -> Any:
    """Plain values of a file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); JSON of these experiments is needed. Delete it to "
            "have it made anew."
        ) from error
