"""A pass in plain loops: update, merge, compute, without Lightning."""

import pickle
from itertools import pairwise
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import nn

from salmon import FilterIndex, InputError, Pass, PassSettings, StateError
from salmon.diagnosis import Diagnosis, find
from tests.networks import PlainNet, batch

SAMPLES = 60


def network() -> nn.Module:
    torch.manual_seed(5)
    return PlainNet().double().eval()


MODEL = network()
IMAGES, LABELS = batch(SAMPLES, seed=5)
IMAGES = IMAGES.double()
SETTINGS = PassSettings(level=0.8, top_k=5)


def cut(ends: list[int]) -> list[slice]:
    return [slice(a, b) for a, b in pairwise([0, *sorted(set(ends)), SAMPLES])]


def measured(parts: list[slice], **options: Any) -> Pass:
    """The samples in these batches, each at its own position."""
    own = Pass(MODEL, SETTINGS, **options)
    for part in parts:
        own.update(IMAGES[part], LABELS[part], numbers=torch.arange(SAMPLES)[part])
    return own


WHOLE = measured([slice(SAMPLES)]).compute()


def assert_same(found: Diagnosis, expected: Diagnosis) -> None:
    """The same mistakes and rankings; saliency to float64 rounding."""
    assert (found.samples, found.misclassified) == (expected.samples, expected.misclassified)
    assert found.mistakes.ids == expected.mistakes.ids
    assert torch.equal(found.class_samples, expected.class_samples)
    assert torch.equal(found.class_mistakes, expected.class_mistakes)
    torch.testing.assert_close(found.profile, expected.profile, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.fit.xi, expected.fit.xi, rtol=1e-6, atol=0, equal_nan=True)
    for method, ranking in expected.rankings.items():  # filters of equal z may change places
        theirs = found.rankings[method].score
        torch.testing.assert_close(theirs, ranking.score, rtol=1e-6, atol=1e-9, equal_nan=True)


def test_mistakes_are_those_of_the_network() -> None:
    wrong = (MODEL(IMAGES).argmax(1) != LABELS).nonzero().squeeze(1)
    assert WHOLE.mistakes.sample.tolist() == WHOLE.mistakes.ids == wrong.tolist()
    assert WHOLE.samples == SAMPLES
    assert torch.equal(WHOLE.class_samples, LABELS.bincount(minlength=4))
    assert torch.equal(WHOLE.class_mistakes, LABELS[wrong].bincount(minlength=4))
    assert WHOLE.index.fingerprint() == FilterIndex.from_model(MODEL).fingerprint()


@hypothesis.settings(max_examples=8)
@hypothesis.given(
    ends=st.lists(st.integers(1, SAMPLES - 1), min_size=1, max_size=6),
    owners=st.lists(st.integers(0, 2), min_size=7, max_size=7),
)
def test_any_split_into_batches_and_merged_passes_finds_the_same(
    ends: list[int], owners: list[int]
) -> None:
    parts = cut(ends)
    passes = [
        measured([part for part, owner in zip(parts, owners, strict=False) if owner == number])
        for number in range(3)
    ]
    whole = Pass(MODEL, SETTINGS)
    for each in passes:
        whole.merge(pickle.loads(pickle.dumps(each)))  # as another process sends it
    assert_same(whole.compute(), WHOLE)


def test_computing_does_not_end_a_pass() -> None:
    own = Pass(MODEL, SETTINGS)
    own.update(IMAGES[:20], LABELS[:20])
    assert own.compute().samples == 20
    own.update(IMAGES[20:], LABELS[20:])
    assert_same(own.compute(), WHOLE)
    assert_same(own.compute(), WHOLE)


def test_positions_below_zero_are_repeats_and_do_not_count() -> None:
    own = Pass(MODEL, SETTINGS)
    numbers = torch.cat([torch.arange(SAMPLES), torch.tensor([-1, -1])])
    own.update(torch.cat([IMAGES, IMAGES[:2]]), torch.cat([LABELS, LABELS[:2]]), numbers=numbers)
    assert_same(own.compute(), WHOLE)


def test_ids_name_the_mistakes() -> None:
    own = Pass(MODEL, SETTINGS)
    own.update(IMAGES, LABELS, [f"image {i}" for i in range(SAMPLES)])
    found = own.compute()
    assert found.mistakes.ids == [f"image {i}" for i in WHOLE.mistakes.ids]
    assert (found.id_source, WHOLE.id_source) == ("batch", "position")


def test_given_tails_rank_and_stay_as_they_are() -> None:
    found = measured(cut([30]), reference=WHOLE.fit).compute()
    assert found.fit is WHOLE.fit
    assert found.excesses == {}
    other = FilterIndex.from_model(MODEL, include=["*0*"])
    with pytest.raises(StateError, match="reference fits"):
        Pass(MODEL, index=other, reference=WHOLE.fit)


def test_the_network_is_left_as_it_was() -> None:
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = Pass(model)
    own.update(IMAGES, LABELS)
    own.compute()
    assert own.was_training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_passes_of_other_networks_and_empty_ones_are_refused() -> None:
    other = Pass(MODEL, index=FilterIndex.from_model(MODEL, include=["*0*"]))
    other.update(IMAGES, LABELS)
    with pytest.raises(InputError, match="only passes of the same network"):
        measured(cut([])).merge(other)
    with pytest.raises(InputError, match="the pass has no sample"):
        Pass(MODEL).compute()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"level": 90}, "level is 90; a number in"),
        ({"top_k": 0}, "top_k is 0; a whole number >= 1"),
        ({"right_samples": 2.5}, "right_samples is 2.5"),
        ({"loss": "cross_entropy"}, "loss is 'cross_entropy'; a function"),
        ({"seed": None}, "seed is None"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        PassSettings(**options)


def test_a_batch_that_does_not_fit_counts_nothing() -> None:
    own = Pass(MODEL, SETTINGS)
    own.update(IMAGES[:30], LABELS[:30])
    with pytest.raises(InputError, match="samples"):
        own.update(IMAGES[30:], LABELS[:3])
    own.update(IMAGES[30:], LABELS[30:])
    assert_same(own.compute(), WHOLE)


def test_mistakes_are_compared_with_right_samples_measured_alike() -> None:
    found = WHOLE
    assert found.own
    assert len(found.right.filters) == SAMPLES - found.misclassified
    rarest, ordinary = found.rankings["pot"].log_p[:, 0], found.right.log_p[:, 0]
    for mine, p in zip(rarest.nan_to_num(0).tolist(), found.sample_p.tolist(), strict=True):
        as_rare = int((ordinary.nan_to_num(0) <= mine).sum())
        assert p == pytest.approx((1 + as_rare) / (1 + len(ordinary)))


def test_half_of_the_samples_judge_the_tails_of_the_other_half_if_asked() -> None:
    settings = PassSettings(level=0.8, top_k=5, calibrate=True)
    passes = []
    for ends in ([7, 40], [31]):
        one = Pass(MODEL, settings)
        for part in cut([*ends, SAMPLES]):
            one.update(IMAGES[part], LABELS[part], numbers=torch.arange(SAMPLES)[part])
        passes.append(one)
    found, other = (one.compute() for one in passes)
    assert_same(found, WHOLE)  # the halves are looked at besides
    calibrated, again = found.calibration, other.calibration
    assert calibrated is not None
    assert again is not None
    assert calibrated.samples + calibrated.fitted == SAMPLES
    assert 20 < calibrated.fitted < 40
    torch.testing.assert_close(calibrated.ratio, again.ratio)
    assert WHOLE.calibration is None
    passes[0].merge(pickle.loads(pickle.dumps(Pass(MODEL, settings))))
    assert passes[0].compute().samples == SAMPLES


def test_the_level_can_be_chosen_by_the_fits() -> None:
    chosen = Pass(MODEL, PassSettings(level="auto", top_k=5))
    chosen.update(IMAGES, LABELS)
    found = chosen.compute()
    assert found.fit.level in (0.80, 0.85, 0.90, 0.95)
    assert found.level_reason.startswith(f"level {found.fit.level:g}")
    assert WHOLE.level_reason == ""


def test_both_estimators_fit_the_same_tails() -> None:
    ml = Pass(MODEL, PassSettings(level=0.8, top_k=5, estimator="ml"))
    ml.update(IMAGES, LABELS)
    fit = ml.compute().fit
    assert (fit.estimator, WHOLE.fit.estimator) == ("ml", "shrunk")
    both = fit.usable
    torch.testing.assert_close(fit.xi[both], WHOLE.fit.xi[both], rtol=1e-6, atol=1e-9)
    assert WHOLE.fit.posterior is not None
    of_layer = WHOLE.fit.posterior.prior_mean.unique()
    assert len(of_layer) == len(WHOLE.index.layers)


def test_findings_hold_mistakes_against_right_samples_of_the_pass() -> None:
    right = torch.ones(SAMPLES, dtype=torch.bool)
    right[WHOLE.mistakes.sample] = False
    expected = find(
        WHOLE.mistakes, WHOLE.rankings["pot"], WHOLE.right, LABELS[right], len(WHOLE.index)
    )
    assert torch.equal(WHOLE.findings.p, expected.p)
    assert WHOLE.findings.found == expected.found
    merged = measured([slice(0, 31)])
    merged.merge(measured([slice(31, SAMPLES)]))
    assert torch.equal(merged.compute().findings.p, expected.p)


@pytest.mark.parametrize(("filters", "places"), [(5, 1), (112, 11), (250, 25), (4800, 25)])
def test_a_small_network_has_fewer_places_unless_they_are_given(filters: int, places: int) -> None:
    assert PassSettings().places(filters) == places
    assert PassSettings(top_k=30).places(filters) == 30


def test_a_diagnosis_is_shown_in_a_few_lines() -> None:
    lines = repr(WHOLE).splitlines()
    assert len(lines) <= 10
    assert lines[1] == (
        f"  {SAMPLES} samples, {WHOLE.misclassified} misclassified, 0 without a finite profile, "
        "0 unlabelled, 60 measured"
    )
    assert "against" in repr(WHOLE)
    assert "tensor" not in repr(WHOLE)


def test_ranked_filters_go_on_in_pandas() -> None:
    table = WHOLE.to_dataframe()
    ranking = WHOLE.rankings["pot"]
    assert table["filter"].count() == int((ranking.filters >= 0).sum())
    assert sorted(set(table["id"])) == WHOLE.mistakes.ids  # one without a filter has a row, too
    first = table[(table["id"] == WHOLE.mistakes.ids[0]) & (table["place"] == 1)].iloc[0]
    assert first["filter"] == int(ranking.filters[0, 0])
    assert first["p"] == pytest.approx(float(ranking.p[0, 0]))
    assert first["label"] == WHOLE.index.label(int(ranking.filters[0, 0]))
