"""Files that appear whole or not at all; JSON for all; checksums and versions."""

import hashlib
import json
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from salmon.errors import InputError, StateError


def read_text(path: Path) -> str:
    """Read a text in UTF-8."""
    with _readable(path):
        return path.read_text(encoding="utf-8")


def read_lines(path: Path) -> Iterator[str]:
    """Read a text in UTF-8, holding one line at a time."""
    with _readable(path), path.open(encoding="utf-8", newline="\n") as file:
        yield from file


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"{path} cannot be read ({error}).") from error


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Write plain values as JSON.

    Args:
        indent: Spaces per level; None writes one line.

    Returns:
        JSON; numbers that are not finite are null, and what is no text has question marks.
    """
    try:
        text = json.dumps(value, allow_nan=False, indent=indent)
    except ValueError:  # rare, so that looking at every number first would not pay
        text = json.dumps(_finite(value), allow_nan=False, indent=indent)
    if "\\ud" in text:  # a name of a file that is no text, perhaps, for which JSON has no letters
        plain = json.dumps(json.loads(text), ensure_ascii=False).encode(errors="replace")
        text = json.dumps(json.loads(plain), indent=indent)
    return text


def _finite(value: Any) -> Any:
    """Replace what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def check_new_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not force)):
        raise InputError(
            f"{folder} already exists; a new or empty folder is needed. Choose one with --out, or "
            "replace it with --force."
        )


def publish_folder(folder: Path, fill: Callable[[Path], object], *, force: bool = False) -> None:
    """Make a folder of files appear under its name in one step; a crash leaves nothing there."""
    check_new_folder(folder, force=force)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    try:
        fill(part)
        part.chmod(0o777 & ~_umask())
        if folder.exists():
            old = part.with_suffix(".old")
            folder.replace(old)
            try:
                part.replace(folder)
            except BaseException:
                old.replace(folder)
                raise
            try:
                shutil.rmtree(old)
            except BaseException:  # of Ctrl-C, for example; the new folder is whole
                shutil.rmtree(old, ignore_errors=True)
                raise
        else:
            part.replace(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Create or replace a file in one step, folders too; a crash leaves the old one or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; the final one follows the user's umask like any other.
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_all(folder: Path, texts: Mapping[str, str]) -> None:
    """Write texts by the names of their files, each in one step; makes the folder."""
    for name, text in texts.items():
        data = text.encode()
        write_atomically(folder / name, lambda file, data=data: file.write(data))  # type: ignore[misc]


def versions() -> dict[str, str]:
    """What a file was written with."""
    found = {"salmon": version("salmon-saliency"), "torch": str(torch.__version__)}
    return found | {"python": platform.python_version()}


def file_hash(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of type, shape and bits of a tensor in hexadecimal, the same on every device."""
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype} {list(plain.shape)} ".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
