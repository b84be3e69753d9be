"""torch's and safetensors' files, read without running code, within a memory known beforehand.

``torch.load(weights_only=True)`` calls only functions that torch allows, but it trusts a file in
other ways: it inflates compressed entries of any size, passes over checksums, and makes an array of
any length that a pickle asks for. So the archive is taken apart here, and torch gets one that was
put together anew from entries that passed.
"""

import io
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from salmon.errors import InputError
from salmon.files import regular_file
from salmon.pickles import check_pickle

MOST_PICKLE_BYTES = 4 << 20
"""Of names, shapes and other plain values: 20,000 tensors need as much. Python's objects take up to
80 times the memory."""

MOST_HEADER_BYTES = 1 << 24
"""Of names, shapes and checksums in a safetensors file: 50,000 tensors need as much."""

UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError, ArithmeticError, MemoryError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
"""What ``zipfile`` and torch raise for files that are something else, or damaged."""

_LEGACY_PICKLES = 5  # magic number, version, system, values, names of what follows
_ZIP = b"PK\x03\x04"


class TooMuchError(InputError):
    """A file that may well be what it says, but is too large to be looked through."""


def load_archive(path: Path, *, most: int | None = None, legacy: bool = False) -> Any:
    """Read a file of ``torch.save``. Nothing in it is executed.

    Args:
        path: The file.
        most: Bytes that it may have; None takes any size.
        legacy: Whether it may be in torch's format of before 1.6, which is no archive.

    Returns:
        Tensors on the CPU, and plain values, in any nesting.

    Raises:
        InputError: If the file is too large, or an entry is compressed, doubled or damaged. (What
            torch raises beyond this is in :data:`UNREADABLE`.)
        UnpicklingError: If it holds other objects.
    """
    with regular_file(path) as (file, size):
        if most is not None and size > most:
            raise InputError(f"{size} bytes are more than {most}")
        start = file.read(len(_ZIP))
        file.seek(0)
        if start == _ZIP:
            return torch.load(_put_together(file, size), map_location="cpu", weights_only=True)
        if not legacy:
            raise InputError("it is no archive of torch")
        for _ in range(_LEGACY_PICKLES):
            check_pickle(file)
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def check_tensors_file(path: Path, most: int | None = None) -> None:
    """Refuse safetensors files whose header alone would fill the memory.

    Args:
        path: The file.
        most: Bytes that it may have; None takes any size.

    Raises:
        InputError: If it, or its header, is too large, or the header longer than the file.
        OSError: If it is no regular file, or cannot be opened.
    """
    with regular_file(path) as (file, size):
        start = file.read(8)
    header = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    room = min(MOST_HEADER_BYTES, size - len(start))
    if (most is not None and size > most) or not 0 < header <= room:
        raise InputError(f"{size} bytes with a header of {header}")


def _put_together(file: IO[bytes], size: int) -> IO[bytes]:
    """A new archive of the entries, with sizes and checksums that are true."""
    whole = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(whole, "w") as checked:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
        if len(names) != len(entries):
            raise InputError("two entries have one name")
        if any(name.endswith("constants.pkl") for name in names):
            raise InputError("it is a TorchScript archive")
        if any(e.compress_type != zipfile.ZIP_STORED or e.flag_bits & 1 for e in entries):
            raise InputError("entries are compressed or encrypted")
        if sum(entry.file_size for entry in entries) > size:
            raise InputError("entries are larger than the file")
        for entry in entries:
            is_pickle = entry.filename.endswith("data.pkl")
            if is_pickle and entry.file_size > MOST_PICKLE_BYTES:
                raise TooMuchError(
                    f"its plain values take {entry.file_size} bytes, more than {MOST_PICKLE_BYTES}"
                )
            content = archive.read(entry)  # compares the checksum
            if is_pickle:
                check_pickle(content)
            checked.writestr(entry.filename, content)
    whole.seek(0)
    return whole
