"""Fits on disk: exact round trip, whole or not at all, refused where they do not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from salmon import FilterIndex, StateError, TailFit, Tails, fit_tails
from salmon.files import write_atomically
from salmon.tails import fit_from_state, fit_state, load_fit, save_fit
from tests.networks import PlainNet


@pytest.fixture
def index() -> FilterIndex:
    return FilterIndex.from_model(PlainNet())


@pytest.fixture
def fit(index: FilterIndex) -> TailFit:
    tails = Tails(len(index))
    tails.update(torch.rand(200, len(index)))
    return fit_tails(tails)


def test_a_saved_fit_comes_back_bit_for_bit(
    tmp_path: Path, fit: TailFit, index: FilterIndex
) -> None:
    save_fit(tmp_path / "new" / "fit.safetensors", fit, index)
    back = load_fit(tmp_path / "new" / "fit.safetensors", index)
    for name, value in fit.state_dict().items():
        other = back.state_dict()[name]
        same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
        assert same or bool(torch.isnan(value).any()), name
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["fit.safetensors"]


def test_a_fit_of_another_network_is_refused(
    tmp_path: Path, fit: TailFit, index: FilterIndex
) -> None:
    save_fit(tmp_path / "fit.safetensors", fit, index)
    other = FilterIndex.from_model(nn.Sequential(nn.Conv2d(1, 2, 3)))
    with pytest.raises(StateError, match="made for 24 filters in 3 layers"):
        load_fit(tmp_path / "fit.safetensors", other)


def test_fits_of_an_earlier_version_have_to_be_made_anew(
    tmp_path: Path, fit: TailFit, index: FilterIndex
) -> None:
    torch.save({"format": "salmon.fit/2", **fit_state(fit, index)}, tmp_path / "fit-validation.pt")
    with pytest.raises(StateError, match=r"fit-\*.pt, have to be made anew"):
        load_fit(tmp_path / "fit-validation.pt", index)


def test_a_missing_file_is_named(tmp_path: Path, index: FilterIndex) -> None:
    for name in ("none.safetensors", "."):
        with pytest.raises(StateError, match="cannot be read as saved fits"):
            load_fit(tmp_path / name, index)


@pytest.mark.parametrize("content", [b"", b"not a fit", b"PK\x03\x04broken"])
def test_damaged_files_are_refused(tmp_path: Path, index: FilterIndex, content: bytes) -> None:
    (tmp_path / "fit.safetensors").write_bytes(content)
    with pytest.raises(StateError, match="cannot be read"):
        load_fit(tmp_path / "fit.safetensors", index)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filters": "many"}, "filters: Expected `array`, got `str`"),
        ({"filters": [("a", 1)]}, "filters: Expected `array` of length 3"),
        ({"fit": None}, "saved fit: Expected `object`, got `null`"),
        ({"fit": {"xi": 1}}, "another version"),
    ],
)
def test_states_of_another_form_are_refused(
    fit: TailFit, index: FilterIndex, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(StateError, match=message):
        fit_from_state(fit_state(fit, index) | change, index, source="it")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 1.5}, "samples: Expected `int`, got `float`"),
        ({"samples": -1}, "samples holds a number"),
        ({"level": 1.0}, "level holds a number"),
        ({"xi": 3}, "is torch.float64 of shape|xi is int"),
        ({"xi": torch.zeros(24)}, "xi is torch.float32 of shape"),
        (
            {"xi": torch.zeros(3, dtype=torch.float64)},
            r"torch.float64 \[3\]|int64 \[3\]|int8 \[3\]",
        ),
        ({"status": torch.full((24,), 9, dtype=torch.int8)}, "status holds a number"),
    ],
)
def test_damaged_fields_are_refused(fit: TailFit, change: dict[str, Any], message: str) -> None:
    with pytest.raises(StateError, match=message):
        TailFit.from_state_dict(fit.state_dict() | change)


def test_a_fit_shorter_than_its_filter_list_is_refused(fit: TailFit, index: FilterIndex) -> None:
    state = fit_state(fit, index)
    state["fit"] = {
        name: value[:5] if isinstance(value, torch.Tensor) else value
        for name, value in state["fit"].items()
    }
    with pytest.raises(StateError, match="damaged"):
        fit_from_state(state, index, source="it")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
