"""Passes and flagged images on disk, for the report: JSON, written whole.

``pass-<scope>-<number>.json`` holds a :class:`PassRecord`; ``pictures-<scope>.jsonl`` the images of
the last pass, a line each, as base64 of PNG or JPEG.
"""

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from salmon.errors import StateError
from salmon.files import json_text, read_lines, read_text, write_atomically
from salmon.records import parsed, record_of
from salmon.views.pictures import Kind, Picture, Pixels, encoded, enlarged
from salmon.views.record import SCHEMA, PassRecord, check_record

PICTURE_SCHEMA = "salmon.picture/2"

_MAGIC = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}
_SIDES = {"flagged": 192, "thumbnail": 48, "mistake": 96, "right": 96}  # in the report
_SMALL = 48  # images up to this size are stored without loss


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """An image as a page takes it."""

    media: str  # "image/png", "image/jpeg"; of repairs "image/svg+xml", too
    data: str  # base64


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPicture:
    """A line of a file of pictures."""

    number: int  # of the pass
    kind: Kind
    sample: int
    image: StoredImage
    heat: StoredImage | None
    classes: tuple[str, str]
    filter: str
    caption: list[str]
    masks: list[StoredImage] = field(default_factory=list)  # of true and predicted classes


def write_pass(path: Path, record: PassRecord) -> None:
    """Write a record."""
    text = json_text({"schema": SCHEMA} | asdict(record)) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_pass(path: Path) -> PassRecord:
    """Read a record."""
    record = record_of(PassRecord, parsed(read_text(path), SCHEMA, str(path)), path.name)
    check_record(record, path.name)
    return record


def write_pictures(path: Path, number: int, pictures: Sequence[Picture]) -> None:
    """Write flagged images and thumbnails in place of those of an earlier pass."""

    def image(pixels: Pixels, kind: Kind) -> StoredImage:
        return _stored(enlarged(pixels, _SIDES[kind]))

    stored = [
        StoredPicture(
            number=number,
            kind=each.kind,
            sample=each.sample,
            image=image(each.pixels, each.kind),
            heat=None if each.overlay is None else image(each.overlay, each.kind),
            masks=[image(pixels, each.kind) for pixels in each.segments],
            classes=each.classes,
            filter=each.filter,
            caption=list(each.caption),
        )
        for each in pictures
    ]
    lines = [f"{json_text({'schema': PICTURE_SCHEMA} | asdict(s))}\n".encode() for s in stored]
    write_atomically(path, lambda file: file.writelines(lines))


def read_pictures(path: Path) -> list[StoredPicture]:
    """Read flagged images."""
    found = []
    for value in _objects(path, PICTURE_SCHEMA):
        picture = record_of(StoredPicture, value, path.name)
        for image in (picture.image, picture.heat, *picture.masks):
            if image is not None and not _is_image(image):
                raise StateError(f"{path} holds an image that is none; make the file anew.")
        found.append(picture)
    return found


def read_flags(path: Path, schema: str) -> Iterator[dict[str, Any]]:
    """Read the flags of a pass."""
    yield from _objects(path, schema)


def _stored(pixels: Pixels) -> StoredImage:
    """An image in few bytes."""
    media, data = encoded(pixels, "exact" if max(pixels.shape) <= _SMALL else "photo")
    return StoredImage(media=media, data=base64.b64encode(data).decode())


def _is_image(image: StoredImage) -> bool:
    """Whether the data are base64 of what they say they are."""
    try:
        data = base64.b64decode(image.data, validate=True)
    except (binascii.Error, ValueError):
        return False
    return image.media in _MAGIC and data.startswith(_MAGIC[image.media])


def _objects(path: Path, schema: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one in each line, all of one schema."""
    for number, text in enumerate(read_lines(path), 1):
        yield parsed(text, schema, f"{path}, line {number},")
