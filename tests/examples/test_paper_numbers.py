"""Statistics of the experiments against other mechanisms: scipy, known distributions, by hand."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import TensorDataset

from examples.paper import normality, study
from examples.paper.results import band, curve_rows
from examples.paper.study import METRICS, Options, Subject, cached, draw, run_study
from salmon import FilterIndex, TailFit, Tails, filter_saliency, fit_tails, load_fit
from tests.shifts import some, trained

pytestmark = pytest.mark.slow


def test_bands_are_those_of_scipy() -> None:
    values = np.random.default_rng(1).exponential(size=(80, 1))
    low, high = band([values], 0)
    other = stats.bootstrap(
        (values[:, 0],), np.mean, method="percentile", n_resamples=20_000, rng=2
    ).confidence_interval
    width = other.high - other.low
    assert low[0] == pytest.approx(other.low, abs=0.05 * width)
    assert high[0] == pytest.approx(other.high, abs=0.05 * width)


def test_with_several_seeds_seeds_are_drawn_as_well() -> None:
    # Images do not vary: a quarter of the resamples draws one seed twice.
    low, high = band([np.zeros((5, 1)), np.ones((3, 1))], 0)
    assert (low[0], high[0]) == (0, 1)


def test_the_first_ranking_is_compared_image_by_image() -> None:
    options = Options("imagenet", rankings=("pot", "zscore"), edits=("plain",))
    base = np.random.default_rng(0).normal(size=(50, 9))
    pot, other = np.stack([base - 0.1, base - 0.1, base], 1), np.stack([base] * 3, 1)
    curves = [np.stack([pot, other], 1)[..., None]]  # [50, 2, 3, 9, 1]
    rows = [row for row in curve_rows("x", curves, options) if row["ranking"] == "zscore"]
    assert [row["target"] for row in rows] == pytest.approx(base.mean(0).tolist())
    for row in rows:
        # However much images vary, the difference is the same; less "predicted" is better.
        verdicts = [row[f"{metric} of the first"] for metric in METRICS]
        assert verdicts == ["wins", "loses", "ties"]


def test_the_anderson_darling_statistic_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).gamma(2, size=(60, 3)) * [1e-8, 1, 1e6]
    found, _ = normality.anderson_darling(values)
    for column in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # scipy will return p-values one day
            expected = stats.anderson(values[:, column], "norm").statistic
        assert found[column] == pytest.approx(expected, rel=1e-9)


def test_p_values_are_uniform_for_normal_values_and_small_for_others() -> None:
    draws = np.random.default_rng(0)
    values = draws.normal(3, 2, size=(200, 3000))
    _, p = normality.anderson_darling(values)
    for level in (0.05, 0.2, 0.5, 0.8):
        assert float((p <= level).mean()) == pytest.approx(level, abs=0.03)
    skewed = draws.exponential(size=(200, 50))
    _, p = normality.anderson_darling(skewed)
    assert p.max() < 1e-6


def fitted(profile: torch.Tensor) -> TailFit:
    tails = Tails(profile.shape[1])
    tails.update(profile)
    return fit_tails(tails)


def test_hypotheses_are_rejected_where_they_are_wrong() -> None:
    draws = np.random.default_rng(1)
    normal, skewed = draws.normal(size=(400, 40)), draws.exponential(size=(400, 60))
    profile = torch.from_numpy(np.concatenate([normal, skewed, np.ones((400, 1))], 1))
    rows = normality.test_rows("x", profile, fitted(profile), 0)
    full = [row for row in rows if row["values"] == 400]
    assert [row["filters"] for row in full] == [100, 100]  # without the constant one
    rejected = [float(row["rejected"].removesuffix("%")) for row in full]
    assert rejected == pytest.approx([60, 60], abs=5)


def test_rates_are_right_where_the_distribution_is() -> None:
    draws = torch.Generator().manual_seed(0)
    gaussian = 5 + torch.randn(3000, 60, generator=draws, dtype=torch.float64)
    heavy = torch.rand(3000, 60, generator=draws, dtype=torch.float64).pow(-0.4)  # Pareto, xi 0.4
    halves = torch.arange(3000).chunk(2)
    for profile, right in ((gaussian, ("normal", "pot_ml", "pot")), (heavy, ("pot_ml", "pot"))):
        fits = [(fitted(profile[halves[i]]), halves[1 - i]) for i in (0, 1)]
        rows = {row["method"]: row for row in normality.rate_rows("x", profile, fits, 0)}
        for method in right:
            # Few excesses lie as far out as 0.1 %, and shapes fitted to 150 are not exact.
            for probability, tolerance in (("5 %", 0.05), ("1 %", 0.1), ("0.1 %", 0.4)):
                ratio = float(rows[method][probability].split()[0])
                assert ratio == pytest.approx(1, abs=tolerance), (method, probability)
    assert float(rows["normal"]["0.1 %"].split()[0]) > 5


def test_the_rarest_filter_of_an_image_is_as_rare_as_chance_has_it_but_for_odd_images() -> None:
    draws = torch.Generator().manual_seed(0)
    profile = torch.rand(2000, 50, generator=draws, dtype=torch.float64).log().neg()
    odd = torch.arange(2000) < 10
    profile[:10, 7] += 14  # of exponentials
    halves = torch.randperm(2000, generator=draws).chunk(2)
    crossed = [(fitted(profile[halves[i]]), halves[1 - i]) for i in (0, 1)]
    whole = [(fitted(profile), torch.arange(2000))]
    for fits, own in ((crossed, False), (whole, True)):
        mistakes, right = normality.rarest_rows("x", profile, odd, fits, own=own)
        assert [(row["images"], row["number"]) for row in (mistakes, right)] == [
            ("mistakes", 10), ("right", 1990),
        ]  # fmt: skip
        # The smallest of 50 uniform p times 50 is exponential, nearly.
        assert right["median E"] == pytest.approx(math.log(2), rel=0.1)
        assert right["E < 0.1, %"] == pytest.approx(10, abs=3)
        assert mistakes["median E"] < 0.2 * right["median E"]


def test_parts_are_drawn_and_made_once(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        return {"x": torch.arange(6).view(2, 3).T}

    for _ in range(2):
        assert cached(tmp_path / "deep" / "part", make)["x"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert len(made) == 1
    rows = torch.arange(100)
    few = draw(rows, 10, 0).tolist()
    assert few == sorted(set(few)) == draw(rows, 10, 0).tolist() != draw(rows, 10, 1).tolist()
    assert draw(rows, None, 0).tolist() == rows.tolist()


def test_measured_curves_are_those_of_the_parts_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network of the test's own, against Tails, rankings and a loop over edited copies."""
    network = trained()
    statistics, new = some(200, 1, shifted=False), some(60, 2, shifted=True)
    index = FilterIndex.from_model(network)
    monkeypatch.setitem(study.RATES, "plain", 0.05)
    options = Options(
        "imagenet", counts=(2, 5), edits=("plain",), rankings=("pot", "magnitude"), device="cpu"
    )
    known, images = (TensorDataset(each.inputs, each.targets) for each in (statistics, new))
    measured = run_study(Subject(network, index, options, tmp_path), known, images)
    tails = Tails(len(index))
    tails.update(filter_saliency(network, statistics.inputs, statistics.targets, index))
    found, fit = load_fit(tmp_path / "fit.safetensors", index), fit_tails(tails)
    # Saliency is float32, and its last digits depend on how samples come in batches.
    torch.testing.assert_close(found.threshold, fit.threshold, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.sigma, fit.sigma, rtol=1e-3, atol=0, equal_nan=True)
    wrong = (network(new.inputs).argmax(1) != new.targets).nonzero().squeeze(1)
    assert measured.facts["of these edited"] == len(wrong)
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
        # [image, ranking, metric, count, edit]: magnitude, true class, 5 filters, plain.
        assert measured.curves[place, 1, 1, 2, 0] == pytest.approx(change, abs=2e-6)
