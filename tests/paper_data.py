"""Small stand-ins for the paper's data, in the real folder layouts and file formats."""

import csv
import gzip
import hashlib
import struct
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from examples.paper.study import METRICS

Pixels = NDArray[np.uint8]


def small_network(num_classes: int) -> nn.Module:
    """Two convolutions for 32x32 images, in place of a ResNet-18."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16, num_classes),
    )  # fmt: skip


def image_folder(
    root: Path, classes: Sequence[str], each: int, *, kind: str = "JPEG", seed: int = 0,
    bright: int = 80, shape: tuple[int, int] = (36, 40),
) -> None:  # fmt: skip
    """``<root>/<class>/<number>.<kind>``: classes differ in colour, images in noise."""
    draws = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for image in range(each):
            pixels = draws.integers(0, 160, (*shape, 3), dtype=np.uint8)
            pixels[..., number % 3] += np.uint8(bright)
            Image.fromarray(pixels).save(root / name / f"{image}.{kind}")


def digits(count: int, side: int, seed: int) -> tuple[Pixels, Pixels]:
    """Grey images whose bright row tells the class."""
    draws = np.random.default_rng(seed)
    labels = (np.arange(count) % 10).astype(np.uint8)
    images = draws.integers(0, 120, (count, side, side), dtype=np.uint8)
    images[np.arange(count), labels * 2 + 2] = 250
    return images, labels


def mnist(root: Path, training: int, test: int) -> None:
    """torchvision's ``MNIST/raw``, idx files."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", training), ("t10k", test)):
        images, labels = digits(count, 28, count)
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, count) + labels.tobytes()
        )
        for kind in ("images-idx3", "labels-idx1"):  # torchvision looks for either
            path = raw / f"{name}-{kind}-ubyte"
            path.with_suffix(".gz").write_bytes(gzip.compress(path.read_bytes()))


def svhn(root: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's ``test_32x32.mat``, where the digit 0 is class 10."""
    from torchvision.datasets import SVHN

    images, labels = digits(count, 32, 7)
    colours = np.repeat(images[..., None], 3, axis=3).transpose(1, 2, 3, 0)
    path = root / "test_32x32.mat"
    scipy.io.savemat(path, {"X": colours, "y": np.where(labels == 0, 10, labels)[:, None]})
    url, name, _ = SVHN.split_list["test"]
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(SVHN.split_list, "test", [url, name, digest])


def rows_of(path: Path) -> list[dict[str, str]]:
    """A CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def check_results(out: Path, cases: Collection[str], edits: int = 2) -> list[dict[str, str]]:
    """Shares add up to 1, curves begin at 0 and lie in their bands, figures are drawn."""
    shares = rows_of(out / "shares.csv")
    assert {row["case"] for row in shares} == set(cases)
    for row in shares:
        of_groups = [float(value) for name, value in row.items() if name not in ("case", "ranking")]
        if not np.isnan(of_groups).all():  # of small networks POT may rank no filter
            assert sum(of_groups) == pytest.approx(1, abs=1e-9)
    rows = rows_of(out / "curves.csv")
    assert {row["case"] for row in rows} == set(cases)
    assert len({row["edit"] for row in rows}) == edits
    for row in rows:
        for metric in METRICS:
            low, mean, high = (float(row[metric + end]) for end in (" low", "", " high"))
            assert -1 <= low - 1e-9 <= mean <= high + 1e-9 <= 1 + 1e-8
            if row["filters"] == "0":
                assert (low, mean, high) == (0, 0, 0)
    assert any(float(row["target"]) != 0 for row in rows)
    pictures = list(out.glob("curves-*.png"))
    assert pictures
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.size[0] > 300
            assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 5
    assert "Share of each group" in (out / "results.md").read_text()
    return rows


def files_of(folder: Path) -> dict[str, bytes]:
    """Names and bytes of all files in a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
