"""Statistics of the experiments against other mechanisms: scipy, known distributions, by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from examples.paper.shared import normal
from examples.paper.shared.bands import band, mean_of, resampled_means
from examples.paper.shared.images import batches, draw
from examples.paper.shared.options import make_parser, read_options
from examples.paper.shared.parts import Parts
from examples.paper.shared.pasting import paste
from examples.paper.shared.results import Panel, curve_rows, rival_rows
from salmon import InputError


def test_bands_are_those_of_scipy() -> None:
    values = np.random.default_rng(1).exponential(size=(80, 1))
    low, high = band([values], 20_000, 0)
    other = stats.bootstrap(
        (values[:, 0],), np.mean, method="percentile", n_resamples=20_000, rng=2
    ).confidence_interval
    width = other.high - other.low
    assert low[0] == pytest.approx(other.low, abs=0.03 * width)
    assert high[0] == pytest.approx(other.high, abs=0.03 * width)


def test_with_several_seeds_seeds_are_drawn_as_well() -> None:
    # Images do not vary: resampled means are means of two draws of the seeds' values 0 and 1.
    cases = [np.zeros((5, 1)), np.ones((3, 1))]
    assert mean_of(cases).tolist() == [0.5]
    means = resampled_means(cases, 4000, 0)[:, 0]
    shares = [float((means == value).mean()) for value in (0.0, 0.5, 1.0)]
    assert sum(shares) == 1
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_pot_is_compared_image_by_image() -> None:
    options = read_options(make_parser("x", out="x", data=None).parse_args(["--bootstrap", "200"]))
    base = np.random.default_rng(0).normal(size=(50, 9))
    curves = {
        ("pot", "plain", "predicted"): base - 0.1, ("zscore", "plain", "predicted"): base,
        ("pot", "plain", "target"): base - 0.1, ("zscore", "plain", "target"): base,
        ("pot", "plain", "corrected"): base, ("zscore", "plain", "corrected"): base,
    }  # fmt: skip
    rows = {row["metric"]: row for row in rival_rows(Panel("x", [curves]), options)}
    # However much images vary, the difference is the same for all; less is better for "predicted".
    assert [rows[m]["POT"] for m in ("predicted", "target", "corrected")] == [
        "wins", "loses", "ties",
    ]  # fmt: skip
    assert rows["predicted"]["difference"] == pytest.approx(-0.1)
    means = [row["mean"] for row in curve_rows(Panel("x", [curves]), options)
             if row["ranking"] == "zscore" and row["metric"] == "target"]  # fmt: skip
    assert means == pytest.approx(base.mean(0).tolist())


def test_the_anderson_darling_statistic_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).gamma(2, size=(60, 3)) * [1e-8, 1, 1e6]
    found = normal.anderson_darling(values)
    for column in range(3):
        with pytest.MonkeyPatch.context():
            import warnings

            warnings.simplefilter("ignore", FutureWarning)  # scipy will return p-values one day
            expected = stats.anderson(values[:, column], "norm").statistic
        assert found[column] == pytest.approx(expected, rel=1e-9)
    assert np.isnan(normal.anderson_darling(np.ones((9, 1)))).all()


def test_p_values_are_uniform_for_normal_values_and_small_for_others() -> None:
    draws = np.random.default_rng(0)
    values = draws.normal(3, 2, size=(200, 3000))
    p = normal.anderson_darling_p(normal.anderson_darling(values), 200)
    for level in (0.05, 0.2, 0.5, 0.8):
        assert float((p <= level).mean()) == pytest.approx(level, abs=0.03)
    assert normal.rejected(p) < 0.001
    skewed = draws.exponential(size=(200, 50))
    p = normal.anderson_darling_p(normal.anderson_darling(skewed), 200)
    assert p.max() < 1e-6
    assert normal.rejected(p) == 1
    constant = np.ones((200, 1))
    assert np.isnan(normal.anderson_darling_p(normal.anderson_darling(constant), 200)).all()
    assert np.isnan(normal.dagostino_p(np.concatenate([constant, skewed[:, :1]], 1))[0])
    assert normal.dagostino_p(skewed)[3] == pytest.approx(
        stats.normaltest(skewed[:, 3]).pvalue, rel=1e-9
    )


def test_rejections_by_hand() -> None:
    # Benjamini-Hochberg at 5 %: 0.04 > 0.05 * 3 / 4, but 0.02 <= 0.05 * 2 / 4.
    p = np.array([0.04, 0.01, np.nan, 0.9, 0.02])
    assert normal.rejected(p) == pytest.approx(2 / 4)
    assert np.isnan(normal.rejected(np.array([np.nan])))


def test_rates_are_right_where_the_distribution_is() -> None:
    draws = torch.Generator().manual_seed(0)
    gaussian = 5 + torch.randn(3000, 60, generator=draws, dtype=torch.float64)
    heavy = torch.rand(3000, 60, generator=draws, dtype=torch.float64).pow(-0.4)  # Pareto, xi 0.4
    for profile, right in ((gaussian, ("normal", "pot")), (heavy, ("pot",))):
        found = normal.exceeded(profile, 0)
        for method in right:
            # Few excesses lie as far out as 0.001, and shapes fitted to 150 are not exact.
            for probability, tolerance in ((0.05, 0.05), (0.01, 0.1), (0.001, 0.4)):
                ratio = found[method, probability].mean() / probability
                assert ratio == pytest.approx(1, abs=tolerance), (method, probability)
    assert normal.exceeded(heavy, 0)["normal", 0.001].mean() > 0.005
    # Every image counts once, in the half that the fit did not see.
    assert len(normal.exceeded(heavy, 0)["pot", 0.05]) == 3000


def test_bounds_are_quantiles() -> None:
    profile = torch.rand(4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fit = normal.fitted(profile)
    for probability in (0.05, 0.01):
        bound = normal.bound(fit, "pot", probability)
        assert bound.tolist() == pytest.approx([1 - probability] * 2, abs=0.01)
        z = stats.norm.isf(probability)
        expected = profile.mean(0) + z * profile.std(0)
        assert normal.bound(fit, "normal", probability).tolist() == pytest.approx(
            expected.tolist(), rel=1e-9
        )


def test_images_are_read_in_order_by_any_number_of_threads() -> None:
    images = torch.utils.data.TensorDataset(torch.arange(23.0).view(-1, 1), torch.arange(23))
    rows = torch.arange(22, 0, -1)
    for workers in (1, 2, 9):
        found = list(batches(images, rows, 4, workers))
        assert torch.cat([part.targets for part in found]).tolist() == rows.tolist()
    assert draw(rows, None, 0).tolist() == rows.tolist()
    some = draw(torch.arange(100), 10, 0)
    assert some.tolist() == sorted(set(some.tolist()))
    assert some.tolist() == draw(torch.arange(100), 10, 0).tolist()
    assert some.tolist() != draw(torch.arange(100), 10, 1).tolist()


def test_parts_are_whole_or_refused(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "a", {"seed": 1})
    made = []

    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        return {"x": torch.arange(3)}

    for _ in range(2):
        assert parts.tensors("deep/part", make)["x"].tolist() == [0, 1, 2]
    assert len(made) == 1
    path = tmp_path / "a" / "deep" / "part.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="Delete it to have it made anew"):
        parts.find("deep/part")
    with pytest.raises(InputError, match="seed was 1, now 2"):
        Parts(tmp_path / "a", {"seed": 2})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        Parts(tmp_path / "b", {})
    (tmp_path / "a" / "settings.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        Parts(tmp_path / "a", {"seed": 1})


def test_a_page_without_the_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(InputError, match="has no part on x"):
        paste(tmp_path / "page.md", "x", "text", [])
    assert (tmp_path / "page.md").read_text() == "nothing"
