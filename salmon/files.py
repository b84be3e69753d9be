"""Files that appear whole or not at all and are read within limits; JSON for all; checksums."""

import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from salmon.errors import InputError, StateError


@contextmanager
def regular_file(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Open a file for reading, but no pipe or device, which may never end.

    Args:
        path: The file.

    Yields:
        The open file and its size.

    Raises:
        OSError: If it is something else, or cannot be opened.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: a pipe would wait
        raise OSError(f"{path.name} is no regular file")
    with path.open("rb") as file:
        yield file, os.fstat(file.fileno()).st_size


def read_text(path: Path, most: int) -> str:
    """Read a file that may be somebody else's.

    Args:
        path: Text in UTF-8.
        most: Bytes that it may have.

    Returns:
        Its text.

    Raises:
        StateError: If it is larger, no text, no regular file, or cannot be read.
    """
    with _readable(path) as file:
        data = file.read(most + 1)
        if len(data) > most:
            raise StateError(f"{path} has more than {most} bytes and was not read.")
        return data.decode()


def read_lines(path: Path, most: int, most_in_line: int) -> Iterator[str]:
    """Read a file that may be somebody else's, holding one line at a time.

    Args:
        path: Text in UTF-8.
        most: Bytes that it may have.
        most_in_line: Bytes that a line may have.

    Yields:
        Lines.

    Raises:
        StateError: As of :func:`read_text`; also if a line is longer.
    """
    left = most
    with _readable(path) as file:
        while line := file.readline(most_in_line + 1):
            left -= len(line)
            if left < 0 or len(line) > most_in_line:
                raise StateError(
                    f"{path} has more than {most} bytes, or a line of more than {most_in_line}; it "
                    "was not read to its end."
                )
            yield line.decode()


@contextmanager
def _readable(path: Path) -> Iterator[IO[bytes]]:
    """Trouble with a file as one of the package's own errors."""
    try:
        with regular_file(path) as (file, _):
            yield file
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"{path} cannot be read ({error}).") from error


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Write plain values as JSON.

    Args:
        value: Dictionaries, lists, strings, numbers, in any nesting.
        indent: Spaces per level; None writes one line.

    Returns:
        JSON; numbers that are not finite are null.
    """
    try:
        return json.dumps(value, allow_nan=False, indent=indent)
    except ValueError:  # rare, so that looking at every number first would not pay
        return json.dumps(_finite(value), allow_nan=False, indent=indent)


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
    """Refuse a folder that holds something.

    Args:
        folder: The folder, which need not exist.
        force: Whether to accept it all the same.

    Raises:
        InputError: If it is no folder, or holds files and ``force`` is not set.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not force)):
        raise InputError(
            f"{folder} already exists; a new or empty folder is needed. Choose one with --out, or "
            "replace it with --force."
        )


def publish_folder(folder: Path, fill: Callable[[Path], object], *, force: bool = False) -> None:
    """Make a folder of files appear under its name in one step; a crash leaves nothing there.

    Args:
        folder: The final name; missing parents are made.
        fill: Writes the files into the folder it is given.
        force: Replace what is there.

    Raises:
        InputError: If the folder holds files and ``force`` is not set.
        OSError: If something cannot be written.
    """
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
    """The user's."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Create or replace a file in one step; a crash leaves the old file or none.

    Args:
        path: The final name; missing folders are made.
        write: Fills the file, which is open for bytes.

    Raises:
        OSError: If the folder or file cannot be written; nothing is left behind then.
    """
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


def tensor_hash(tensor: Tensor) -> str:
    """Hash type, shape and bits of a tensor, the same on every device.

    Args:
        tensor: Any.

    Returns:
        SHA-256 in hexadecimal.
    """
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype} {list(plain.shape)} ".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
