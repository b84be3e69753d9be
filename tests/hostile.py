"""Spoilt and hostile files of three formats: torch's archives, safetensors, YAML."""

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.mutations import changed, spoilt_bytes, with_text_keys, wrong_number


def entries_of(data: bytes) -> list[tuple[str, bytes]]:
    """Names and contents of an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def archive_of(entries: Sequence[tuple[str, bytes]], how: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of these entries."""
    memory = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(memory, "w", how) as archive:
        warnings.simplefilter("ignore")  # two entries of one name
        for name, content in entries:
            archive.writestr(name or "none", content)
    return memory.getvalue()


def spoilt_archive(random: Random, data: bytes, hostile: Sequence[bytes]) -> bytes:
    """Entries renamed, left out, doubled, compressed, changed; other pickles; other sizes."""
    entries = entries_of(data)
    at = random.randrange(len(entries))
    name, content = entries[at]
    pickle = next(i for i, (each, _) in enumerate(entries) if each.endswith("data.pkl"))
    what = random.randrange(9)
    if what == 0:
        names = (
            "data.pkl",
            "x" * 60_000,
            "y",
            "../up",
            "archive/constants.pkl",
            "/absolute",
            "archive/data/9",
            "",
            "é\x00\ud800é",
        )
        entries[at] = (random.choice(names).encode(errors="replace").decode(), content)
    elif what == 1:
        del entries[at]
    elif what == 2:
        entries.insert(random.randrange(len(entries)), (name, spoilt_bytes(random, content)))
    elif what == 3:
        return archive_of(entries, random.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)))
    elif what == 4:
        entries[at] = (name, spoilt_bytes(random, content))
    elif what == 5:
        entries[pickle] = (entries[pickle][0], spoilt_bytes(random, entries[pickle][1]))
    elif what == 6:
        entries[pickle] = (entries[pickle][0], random.choice(hostile))
    elif what == 7:
        return _other_sizes(random, data)
    else:
        random.shuffle(entries)
    return archive_of(entries)


def _other_sizes(random: Random, data: bytes) -> bytes:
    """Lengths and places in the headers of an archive that are those of no entry."""
    found = bytearray(data)
    mark, places = random.choice(
        ((b"PK\x01\x02", (16, 20, 24, 28, 30, 32, 42)), (b"PK\x03\x04", (14, 18, 22, 26, 28)),
         (b"PK\x05\x06", (8, 10, 12, 16, 20)))
    )  # fmt: skip
    starts = [i for i in range(len(data) - 46) if data[i : i + 4] == mark] or [len(data) - 22]
    start = random.choice(starts) + random.choice(places)
    number = struct.pack("<I", random.choice((0xFFFFFFFF, 0x7FFFFFFF, 1 << 30, 0, 1, 77)))
    found[start : start + 4] = number
    return bytes(found[: len(data)])


def hostile_pickles(canary: Path) -> list[bytes]:
    """Pickles that would make a file, or ask for much memory, if they were obeyed."""
    command, name = f"touch {canary}", str(canary)

    def call(function: str, *arguments: str) -> bytes:
        texts = b"".join(b"X" + struct.pack("<I", len(a.encode())) + a.encode() for a in arguments)
        return b"\x80\x02c" + function.encode() + b"\n(" + texts + b"tR."

    number = b"\x8a\x05" + (1 << 33).to_bytes(5, "little")
    return [
        call("os\nsystem", command),
        call("posix\nsystem", command),
        call("nt\nsystem", command),
        call("subprocess\ngetoutput", command),
        call("builtins\neval", f"open({name!r}, 'w')"),
        call("__builtin__\nexec", f"open({name!r}, 'w')"),
        call("builtins\nopen", name, "w"),
        call("io\nopen", name, "w"),
        call("pathlib\nPath", name),
        call("torch\nsave", "x", name),
        call("torch.serialization\nload", name),
        call("builtins\n__import__", "os"),
        call("builtins\ngetattr", "x", "y"),
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(command)]) + command.encode()
        + b"\x85R.",
        b"(S'touch x'\nios\nsystem\n.",
        b"\x80\x02c__builtin__\nbytearray\n" + number + b"\x85R.",
        b"\x80\x02cbuiltins\nbytearray\n" + number + b"\x85R.",
        b"\x80\x02ctorch\nFloatTensor\n" + number + b"\x85R.",
        b"\x80\x02" + b"]" * 100_000 + b".",
        b"\x80\x02}" * 1000,
        b"\x80\x02X\xff\xff\xff\xffabc.",
        b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
        b"\x80\x02h\x07.",
        b"\x80\x02(((t.",
        b"",
        b".",
    ]  # fmt: skip


def tensors_header(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and what follows it."""
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return header, data[8 + length :]


def tensors_file(header: Any, rest: bytes) -> bytes:
    """A safetensors file with this header."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + rest


def spoilt_tensors(random: Random, data: bytes) -> bytes:
    """A safetensors file with other bytes, a changed header, or a header of another length."""
    what = random.random()
    if what < 0.3:
        return spoilt_bytes(random, data)
    if what < 0.4:
        return wrong_number(random) + data[8:]
    header, rest = tensors_header(data)
    header = with_text_keys(changed(random, header))
    if isinstance(header, dict) and random.random() < 0.3:
        name = random.choice([*header, "x"])
        if isinstance(header.get(name), dict):
            kinds = ("F8_E4M3", "F4", "C64", "BOOL", "U16", "I64", "F64", "", "BF16", "X")
            header[name] = {**header[name], "dtype": random.choice(kinds)}
    rest = spoilt_bytes(random, rest) if rest and random.random() < 0.1 else rest
    return tensors_file(header, rest)


YAML_SNIPPETS = (
    '!!python/object/apply:os.system ["touch {canary}"]',
    "!!python/object/new:os.system [touch {canary}]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/tuple [1, 2]",
    "!!int x", "!!int ''", "!!float ''", "!!bool maybe", "!!timestamp x", "2001-99-99",
    "!!binary '\u00e9'", "!!binary ///", "!!set {{a, b}}", "!!omap [a: 1]", "!!pairs [a]",
    "!unknown x", "&a [*a, *a]", "*nowhere", "<<: 3", "{{<<: [*b, *b]}}", "? [a, b]\n: c",
    "{{? {{a: b}} : c}}", "[" * 300, "{{a: " * 300, "- " * 300, "9" * 5000, "0x" + "f" * 5000,
    "1:" * 400 + "1", "0o9", "1e999", ".nan", "\ufeff", "\x07", "\ud800", "---\n---\n", "%YAML 9.9",
    "\t- x", "'", '"\\xZZ"', "|9\n x", "=", "~", "null", "<<", "12345678901234567890",
)  # fmt: skip
"""Odd pieces of YAML; ``{canary}`` is a file that must not appear."""


def spoilt_yaml(random: Random, text: str, canary: Path) -> bytes:
    """Bytes spoilt, or values replaced and lines added by odd pieces."""
    if random.random() < 0.3:
        return spoilt_bytes(random, text.encode())
    lines = text.splitlines()
    for _ in range(random.choice((1, 1, 2))):
        piece = random.choice(YAML_SNIPPETS).format(canary=canary)
        at = random.randrange(len(lines))
        head, colon, _ = lines[at].partition(":")
        choices = [f"{head}{colon} {piece}", piece, f"{head}: &b {{x: 1}}\nz: {piece}"]
        lines[at] = random.choice(choices)
    if random.random() < 0.2:
        lines = [yaml_bomb(random.choice((5, 9, 30)), merged=random.random() < 0.5)]
    return "\n".join(lines).encode(random.choice(("utf-8", "utf-16", "latin-1")), "ignore")


def yaml_bomb(levels: int, *, merged: bool) -> str:
    """A config whose anchors stand for 10 to the power of ``levels`` values."""
    if merged:
        lines = ["model: &x0 {a: 1}"]
        lines += [
            f"x{i}: &x{i}\n  <<: [{', '.join([f'*x{i - 1}'] * 10)}]" for i in range(1, levels + 1)
        ]
    else:
        lines = ["model: &x0 [ha]"]
        lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]" for i in range(1, levels + 1)]
    return "\n".join(lines)
