"""The stream: any split, order and merge keeps the same tails; fits equal the offline ones."""

import copy
import io
import logging
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from salmon import FitStatus, InputError, StateError, TailFit, Tails, fit_tails, gpd
from salmon.tails.fit import exceedance_count


def offline_largest(profile: Tensor, capacity: int) -> Tensor:
    """The kept values by sorting everything."""
    return profile.t().sort(dim=1, descending=True).values[:, :capacity]


@pytest.fixture(params=["as on a CPU", "as on a GPU"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU gets other operations, so as not to wait for it; they can be run on the CPU."""
    if request.param == "as on a GPU":
        monkeypatch.setattr(Tails, "_here", False)


def streamed(parts: list[Tensor], capacity: int) -> Tails:
    tails = Tails(parts[0].shape[1], capacity)
    for part in parts:
        tails.update(part)
    return tails


def heavy(samples: int, filters: int, seed: int) -> Tensor:
    """Positive values with ties and a heavy tail, float32."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(samples, filters, generator=generator).pow(-0.4) * 1e-6
    return (values * 1e9).round() / 1e9 if seed % 2 else values


def assert_same_moments(tails: Tails, profile: Tensor) -> None:
    exact = profile.double()
    torch.testing.assert_close(tails.mean, exact.mean(0), rtol=1e-12, atol=0)
    if len(profile) > 1:
        torch.testing.assert_close(tails.std, exact.std(0), rtol=1e-12, atol=1e-12 * 1e-6)


@given(
    samples=st.integers(1, 400),
    capacity=st.sampled_from([2, 5, 64, 300]),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    seed=st.integers(0, 1000),
)
def test_any_split_keeps_the_same_tails(
    samples: int, capacity: int, cuts: list[int], seed: int
) -> None:
    profile = heavy(samples, 3, seed)
    edges = [0, *sorted(min(c, samples) for c in cuts), samples]
    parts = [profile[a:b] for a, b in pairwise(edges)]
    tails = streamed(parts, capacity)
    assert torch.equal(tails.largest(), offline_largest(profile, capacity))
    assert tails.samples == samples
    assert_same_moments(tails, profile)


@given(samples=st.integers(1, 300), seed=st.integers(0, 1000))
def test_any_order_keeps_the_same_tails(samples: int, seed: int) -> None:
    profile = heavy(samples, 3, seed)
    shuffled = profile[torch.randperm(samples, generator=torch.Generator().manual_seed(seed))]
    one, other = streamed([profile], 50), streamed(list(shuffled.split(7)), 50)
    assert torch.equal(one.largest(), other.largest())


@given(
    samples=st.integers(1, 120), most=st.integers(1, 90), capacity=st.sampled_from([2, 64, 200]),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_rows_that_stand_for_several_samples_come_so_many_times(
    samples: int, most: int, capacity: int, seed: int
) -> None:
    profile, random = heavy(samples, 3, seed), torch.Generator().manual_seed(seed)
    copies = torch.randint(0, most + 1, (samples,), generator=random)
    counted = torch.rand(samples, generator=random) < 0.8
    tails, repeated = Tails(3, capacity), Tails(3, capacity)
    for rows in torch.arange(samples).split(17):
        tails.update(profile[rows], counted[rows], copies[rows])
        times = (copies[rows] * counted[rows]).tolist()
        for row, often in zip(rows.tolist(), times, strict=True):
            for _ in range(often):
                repeated.update(profile[row : row + 1])
    whole = profile.repeat_interleave(copies * counted, 0)
    assert torch.equal(tails.largest(), offline_largest(whole, capacity))
    assert torch.equal(tails.largest(), repeated.largest())
    assert tails.samples == len(whole)
    if len(whole):
        assert_same_moments(tails, whole)


@given(samples=st.integers(0, 300), cut=st.integers(0, 300), seed=st.integers(0, 1000))
def test_merging_is_concatenating(samples: int, cut: int, seed: int) -> None:
    profile = heavy(samples, 3, seed)
    one = streamed([profile[:cut]], 40)
    one.merge(streamed([profile[cut:]], 40))
    assert torch.equal(one.largest(), offline_largest(profile, 40))
    assert one.samples == samples
    if samples:
        assert_same_moments(one, profile)


@pytest.mark.usefixtures("way")
def test_a_long_stream_is_compacted_and_stays_exact() -> None:
    profile = heavy(5000, 4, 3)
    tails = streamed(list(profile.split(13)), 100)
    assert torch.equal(tails.largest(), offline_largest(profile, 100))


@pytest.mark.usefixtures("way")
def test_streams_of_rows_for_several_samples_merge() -> None:
    profile, copies = heavy(900, 4, 5), torch.arange(900) % 4
    parts = []
    for rows in torch.arange(900).chunk(2):
        parts.append(Tails(4, 100))
        parts[-1].update(profile[rows], copies=copies[rows])
    one, other = parts
    one.merge(other)
    whole = profile.repeat_interleave(copies, 0)
    assert torch.equal(one.largest(), offline_largest(whole, 100))
    assert_same_moments(one, whole)


def test_a_stream_within_inference_mode_goes_on_outside_of_it() -> None:
    profile = heavy(2000, 4, 3)
    with torch.inference_mode():
        tails = streamed(list(profile[:1000].split(13)), 100)
        tails.largest()
    assert torch.equal(tails.largest(), offline_largest(profile[:1000], 100))


@pytest.mark.usefixtures("way")
def test_a_rising_stream_replaces_everything_it_kept() -> None:
    profile = torch.arange(3000.0)[:, None].expand(-1, 2)
    assert streamed(list(profile.split(50)), 64).largest()[0].tolist() == list(
        range(2999, 2935, -1)
    )


@pytest.mark.usefixtures("way")
def test_samples_that_are_not_finite_are_dropped_and_counted() -> None:
    profile = heavy(300, 3, 1)
    dirty = profile.clone()
    dirty[10, 1] = math.nan
    dirty[50, 2] = math.inf
    dirty[299] = -math.inf
    clean = profile[[i for i in range(300) if i not in (10, 50, 299)]]
    tails = streamed(list(dirty.split(32)), 64)
    assert (tails.samples, tails.dropped) == (297, 3)
    assert torch.equal(tails.largest(), offline_largest(clean, 64))
    assert_same_moments(tails, clean)


@pytest.mark.usefixtures("way")
def test_dropped_samples_leave_no_hole_after_many_compactions() -> None:
    profile = heavy(4000, 2, 2)
    dirty = profile.clone()
    dirty[::2] = math.nan
    tails = streamed(list(dirty.split(40)), 64)
    assert torch.equal(tails.largest(), offline_largest(profile[1::2], 64))


@pytest.mark.usefixtures("way")
def test_float64_profiles_are_kept_in_float64() -> None:
    profile = heavy(50, 3, 0).double() * (1 + 1e-12)
    tails = streamed([profile[:10].float(), profile[10:]], 64)
    assert tails.largest().dtype == torch.float64
    expected = torch.cat([profile[:10].float().double(), profile[10:]])
    assert torch.equal(tails.largest(), offline_largest(expected, 64))


@pytest.mark.usefixtures("way")
def test_moments_hold_for_values_far_from_zero() -> None:
    profile = 1e6 + torch.rand(3000, 4, dtype=torch.float64) * 1e-3
    tails = streamed(list(profile.split(64)), 10)
    np.testing.assert_allclose(tails.std.numpy(), profile.std(0).numpy(), rtol=1e-7)


def test_an_empty_stream_has_no_moments() -> None:
    tails = Tails(3)
    tails.update(torch.empty(0, 3))
    assert tails.samples == 0
    assert bool(torch.isnan(tails.mean).all())
    assert bool(torch.isnan(tails.std).all())
    assert tails.largest().shape == (3, 0)


@pytest.mark.parametrize("samples", [0, 5, 64, 700])
def test_state_survives_a_checkpoint_and_goes_on_as_if_unbroken(samples: int) -> None:
    profile = heavy(900, 3, 4)
    whole = streamed(list(profile.split(31)), 64)
    first = streamed(list(profile[:samples].split(31)) or [profile[:0]], 64)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = Tails(3, 64)
    second.load_state_dict(torch.load(file, weights_only=True))
    for part in profile[samples:].split(31):
        second.update(part)
    assert torch.equal(second.largest(), whole.largest())
    assert (second.samples, second.dropped) == (whole.samples, whole.dropped)
    torch.testing.assert_close(second.std, whole.std, rtol=1e-12, atol=0)


def broken(**changes: Any) -> dict[str, Any]:
    state = streamed([heavy(100, 3, 5)], 64).state_dict()
    return state | changes


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (broken(version=99), "another version"),
        ({"version": 1}, "another version"),
        (broken(capacity=32), "capacity 64 is needed"),
        (broken(samples=-1), r"largest is torch.float32 of shape|a count is negative"),
        (broken(dropped="none"), "dropped: Expected `int`, got `str`"),
        (broken(m2=-torch.ones(3, dtype=torch.float64)), "sum of squares is negative"),
        (broken(mean=torch.zeros(3)), "mean is torch.float32"),
        (broken(largest=torch.zeros(4, 64)), r"largest is torch.float32 of shape \(4, 64\)"),
        (broken(mean=[1, 2, 3]), "mean is list"),
        (broken(largest=torch.arange(192.0).view(3, 64)), "descending"),
    ],
)
def test_state_that_does_not_fit_is_refused_and_changes_nothing(
    state: dict[str, Any], message: str
) -> None:
    tails = streamed([heavy(80, 3, 6)], 64)
    before = copy.deepcopy(tails.state_dict())
    with pytest.raises(StateError, match=message):
        tails.load_state_dict(state)
    assert torch.equal(tails.largest(), before["largest"])
    assert tails.samples == before["samples"]


def test_wrong_arguments_say_what_is_needed() -> None:
    tails = Tails(3)
    with pytest.raises(InputError, match=r"\[samples, 3\]"):
        tails.update(torch.zeros(2, 4))
    with pytest.raises(InputError, match="floating"):
        tails.update(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="capacity is 1"):
        Tails(3, 1)
    with pytest.raises(InputError, match="capacity 7"):
        tails.merge(Tails(3, 7))
    with pytest.raises(InputError, match=r"level is 1\.0"):
        fit_tails(tails, 1.0)


@pytest.mark.parametrize(
    ("samples", "level", "capacity", "expected"),
    [
        (1000, 0.90, 1024, 100),
        (10, 0.7, 1024, 3),  # (1 - 0.7) * 10 is 3.0000000000000004 in floating point
        (1001, 0.90, 1024, 101),
        (20_000, 0.90, 1024, 1023),
        (1, 0.90, 1024, 0),
        (0, 0.90, 1024, 0),
        (3, 0.01, 1024, 2),
    ],
)
def test_number_of_exceedances(samples: int, level: float, capacity: int, expected: int) -> None:
    assert exceedance_count(samples, level, capacity) == expected


def test_the_fit_of_a_stream_is_the_fit_of_the_whole_matrix() -> None:
    profile = heavy(1000, 6, 8)
    fit = fit_tails(streamed(list(profile.split(17)), 1024), 0.95)
    threshold = np.sort(profile.numpy(), axis=0)[-51]
    np.testing.assert_array_equal(fit.threshold.numpy(), threshold.astype(np.float64))
    for k in range(6):
        column = profile[:, k].double()
        excess = column[column > threshold[k]] - threshold[k]
        offline = gpd.fit(excess.sort(descending=True).values[None])
        assert fit.xi[k].item() == pytest.approx(offline.xi.item(), rel=1e-9)
        assert fit.sigma[k].item() == pytest.approx(offline.sigma.item(), rel=1e-9)
        assert fit.exceedances[k].item() == 50
        assert fit.rate[k].item() == 51 / 1001
    assert fit.effective_level == pytest.approx(0.95)
    assert fit.counts()[FitStatus.OK] == 6


def test_values_equal_to_the_threshold_are_no_excesses() -> None:
    column = torch.cat([torch.zeros(80), torch.full((8,), 2.0), torch.linspace(3, 4, 12)])
    fit = fit_tails(streamed([column[:, None]], 1024), 0.85)
    assert fit.threshold.item() == 2.0
    assert fit.exceedances.item() == 12


def test_a_filter_whose_top_values_tie_is_degenerate_and_too_little_data_too_few() -> None:
    tied = torch.cat([torch.rand(50), torch.full((50,), 2.0)])[:, None]
    assert fit_tails(streamed([tied], 1024)).status.item() == FitStatus.DEGENERATE
    short = streamed([torch.rand(50, 2)], 1024)
    assert fit_tails(short, estimator="ml").status.tolist() == [FitStatus.TOO_FEW] * 2
    assert bool(fit_tails(short).usable.all())  # five excesses are enough beside a prior
    shorter = fit_tails(streamed([torch.rand(40, 2)], 1024))
    assert shorter.status.tolist() == [FitStatus.TOO_FEW] * 2
    empty = fit_tails(Tails(2))
    assert empty.status.tolist() == [FitStatus.TOO_FEW] * 2
    assert math.isnan(empty.effective_level)


def test_a_higher_level_than_asked_for_is_said(caplog: pytest.LogCaptureFixture) -> None:
    tails = streamed([heavy(1000, 2, 9)], 64)
    with caplog.at_level(logging.WARNING, logger="salmon"):
        fit = fit_tails(tails, 0.90)
    assert fit.effective_level == pytest.approx(1 - 63 / 1000)
    assert "fitted at level 0.937 instead" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="salmon"):
        fit_tails(streamed([heavy(630, 2, 9)], 64), 0.90)
    assert caplog.text == ""


def test_fits_do_not_depend_on_the_unit_of_the_saliency() -> None:
    profile = heavy(400, 5, 10)
    one, other = (fit_tails(streamed([profile * u], 128)) for u in (1.0, 2.0**-20))
    assert torch.equal(one.xi, other.xi)
    assert torch.equal(one.sigma * 2.0**-20, other.sigma)
    torch.testing.assert_close(one.xi_se, other.xi_se, rtol=1e-9, atol=0)


def test_one_enormous_value_costs_its_filter_the_prior_and_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    profile = heavy(60, 8, 4).double()
    profile[17, 3] = 1e30
    with caplog.at_level(logging.WARNING, logger="salmon"):
        fit = fit_tails(streamed([profile], 1024), 0.8)
    assert "1 of 8 filters have tails far beyond those of their layer" in caplog.text
    assert fit.posterior is not None
    assert bool(fit.usable.all())
    assert bool(torch.isfinite(fit.posterior.xi).all())
    torch.testing.assert_close(fit.posterior.xi[3], fit.xi[3].expand(40))
    others = fit.posterior.take(torch.tensor([0, 1, 2, 4, 5, 6, 7]))
    assert not bool(torch.isnan(others.log_weight).any())
    assert bool((others.moments()[0] < 3).all())
    assert TailFit.from_state_dict(fit.state_dict()).estimator == "shrunk"
