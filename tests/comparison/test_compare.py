"""Two versions of a network: counts are those of a loop, and the change that did it is found."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import salmon
from salmon import CompareSettings, Gates, InputError, ModelComparison, Samples, compare
from salmon.comparison import headline, write_comparison
from salmon.comparison.changed import FEWEST, loss_shares, reversal_edit, unlike
from salmon.comparison.groups import groups_of
from salmon.repairs.edit import edited
from salmon.repairs.predictions import Objective, predict
from tests.other_tasks import some as some_of
from tests.other_tasks import trained as trained_for
from tests.shifts import some, trained
from tests.traces import assert_identical, network_state, random_states

FEW = CompareSettings(fitted=300, tried=100)


def scrambled(
    name: str, *, seed: int = 2, filters: int | None = None, loud: float = 2.0
) -> nn.Sequential:
    """The trained network, a little different everywhere, and with noise in one layer."""
    network = trained()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1e-3 * torch.randn(parameter.shape, generator=random))
        weight = network.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        rows = weight if filters is None else weight[:filters]
        noise = torch.randn(rows.shape, generator=random)
        rows.copy_(loud * rows.norm() / noise.norm() * noise)
    return network


@pytest.fixture(scope="module")
def found() -> ModelComparison:
    camera = [i % 3 for i in range(500)]
    return compare(
        trained(), scrambled("3"), some(500, 5, shifted=False), Gates(max_lost=0.01),
        settings=FEW, slices={"camera": camera, "half": torch.arange(500) // 250},
    )  # fmt: skip


def right_of(network: nn.Module, samples: Samples) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(network(samples.inputs).argmax(1) == samples.targets)


def test_counts_are_those_of_a_loop(found: ModelComparison) -> None:
    samples = some(500, 5, shifted=False)
    was, now = right_of(trained(), samples), right_of(scrambled("3"), samples)
    fixed, broken = int((~was & now).sum()), int((was & ~now).sum())
    assert (found.counts.fixed, found.counts.broken) == (fixed, broken)
    assert broken > 100
    assert [each.row for each in found.samples.broken] == (was & ~now).nonzero().squeeze(1).tolist()
    exact = stats.binomtest(broken, fixed + broken, 0.5, alternative="greater").pvalue
    assert found.regressed == pytest.approx(exact, rel=1e-9)
    for kind, values in (
        ("class", samples.targets), ("camera", torch.arange(500) % 3),
        ("half", torch.arange(500) // 250),
    ):  # fmt: skip
        for group in [each for each in found.groups if each.kind == kind]:
            own = values == int(group.name)
            assert group.samples == int(own.sum())
            assert group.before == pytest.approx(float(was[own].double().mean()), rel=1e-12)
            assert group.broken == int((was & ~now)[own].sum())
    low, high = found.accuracy_change
    error = 1.96 * (now.double() - was.double()).std().item() / 500**0.5
    gain = float(now.double().mean() - was.double().mean())
    assert low == pytest.approx(gain - error, abs=0.2 * error)
    assert high == pytest.approx(gain + error, abs=0.2 * error)


def test_classes_have_the_names_that_come_with_the_samples() -> None:
    names = ("cat", "dog", "hen|*", "fox")
    data = replace(some(200, 5, shifted=False), classes=names)
    got = compare(trained(), scrambled("3"), data, Gates(max_group_lost=0), settings=FEW)
    assert {each.name for each in got.groups if each.kind == "class"} == set(names)
    assert {each.name for each in got.groups if each.kind == "confusion"} <= {
        f"{one} as {other}" for one in names for other in names
    }
    broken = got.samples.broken[0]
    assert broken.target is not None
    assert broken.what.startswith(f"class {names[broken.target]}, ")
    text = salmon.comparison.report.markdown(got)
    assert "hen&#124;\\*" in text
    assert "hen|" not in text


def test_p_values_of_groups_are_holm_s() -> None:
    logits = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(4, (400,), generator=torch.Generator().manual_seed(1))
    worse = logits + 0.7 * torch.randn(400, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before, after = (Objective().read(each, targets) for each in (logits, worse))
    groups = groups_of(before, after, {})
    raw = [
        stats.binomtest(g.broken, g.broken + g.fixed, 0.5, alternative="greater").pvalue
        if g.broken + g.fixed else 1.0
        for g in groups
    ]  # fmt: skip
    assert {g.kind for g in groups} == {"class", "confusion"}
    for group, p in zip(groups, raw, strict=True):
        # Holm (1979): the largest of (m - k + 1) p(k) up to this one.
        steps = [(len(raw) - sum(q < other for q in raw)) * other for other in raw if other <= p]
        assert group.p == pytest.approx(min(1.0, max(steps)), rel=1e-9)


@pytest.mark.parametrize("name", ["0", "3"])
def test_a_scrambled_layer_is_traced_by_blame_and_by_reversal(name: str) -> None:
    found = compare(trained(), scrambled(name), some(500, 5, shifted=False), settings=FEW)
    assert found.blame is not None
    assert next(iter(found.blame.layers)) == name
    assert max(found.loss_shares, key=lambda layer: found.loss_shares[layer]) == name
    best = found.reversals[0]
    assert best.name == name
    assert best.net > 0.9 * found.counts.broken > best.random
    assert name in headline(found)


@pytest.mark.parametrize("name", ["0", "3"])
def test_shares_of_the_loss_add_up_to_its_growth_and_name_the_layer(name: str) -> None:
    old, new, samples = trained().double(), scrambled(name).double(), some(80, 5, shifted=False)
    samples = Samples(samples.inputs.double(), samples.targets, samples.ids)
    index = salmon.FilterIndex.from_model(old)
    edit = reversal_edit(old, new, index)
    filters, layers = loss_shares(new, samples, edit, index, Objective(), 32)
    before, after = (predict(each, samples, 64).losses.mean() for each in (old, new))
    # Of 8 points of a curve with kinks; running statistics are the same in both.
    assert sum(layers.values()) == pytest.approx(float(after - before), rel=0.05)
    assert max(layers, key=lambda layer: layers[layer]) == name
    position = [layer.layer for layer in index.layers].index(name)
    own = filters[index.layer_of == position]
    assert float(own.sum()) == pytest.approx(layers[name], rel=0.01)  # its bias changed a little


def test_one_of_several_scrambled_filters_is_found_to_be_the_one_that_counts() -> None:
    new = scrambled("0", seed=1, filters=4, loud=8.0)
    found = compare(trained(), new, some(500, 5, shifted=False), settings=FEW)
    assert found.reversals[0].name == "0"
    best = found.filter_reversals[0]
    assert best.name in {f"0[{channel}]" for channel in range(4)}
    assert best.net > 0.5 * found.counts.broken > best.random


def test_a_reversal_counts_as_a_copy_with_old_weights_does() -> None:
    old, new, samples = trained(), scrambled("3"), some(150, 5, shifted=False)
    found = compare(old, new, samples, settings=replace(FEW, tried=1000))
    was, now = right_of(old, samples), right_of(new, samples)
    for reversal in found.reversals:
        copied = copy.deepcopy(new)
        copied.get_submodule(reversal.name).load_state_dict(
            old.get_submodule(reversal.name).state_dict()
        )
        then = right_of(copied, samples)
        assert reversal.rescued == int((then & was & ~now).sum())
        assert reversal.lost == int((~then & now).sum())
        assert reversal.net == reversal.rescued - reversal.lost
    assert {each.name for each in found.reversals} >= {"0", "1", "3", "4", "8"}


def test_taking_everything_back_gives_the_old_network() -> None:
    old, new = trained(), scrambled("3")
    index = salmon.FilterIndex.from_model(old)
    new.double(), old.double()
    with edited(new, reversal_edit(old, new, index)):
        assert_identical(network_state(new), network_state(old))


def test_nothing_is_left_behind_and_twice_is_the_same(tmp_path: Path) -> None:
    old, new, samples = trained(), scrambled("0"), some(200, 5, shifted=False)
    before, random = (network_state(old), network_state(new)), random_states()
    for folder in ("one", "two"):
        write_comparison(tmp_path / folder, compare(old, new, samples, settings=FEW))
    assert_identical((network_state(old), network_state(new)), before)
    assert_identical(random_states(), random)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_statistics_alone_can_be_what_changed() -> None:
    new = trained()
    norm = new[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    norm.running_mean += 2
    found = compare(trained(), new, some(200, 5, shifted=False), settings=FEW)
    assert list(found.changed) == ["1"]
    assert (found.loss_shares, found.filter_reversals) == ({}, ())
    assert found.reversals[0].net == found.counts.broken > 0


def test_a_patch_is_compared_with_what_it_is_a_patch_of() -> None:
    new, old = some(600, 2, shifted=True), some(600, 1, shifted=False)
    few = salmon.RepairSettings(remedies=("step", "tune"), shares=(0.1,), epochs=2)
    repaired = salmon.repair(trained(), new, old, few)
    assert repaired.patch is not None
    assert repaired.winner is not None
    rows = new.split(few.split, few.seed)["accept"]
    accept = new.take(rows)
    found = compare(trained(), repaired.patch, accept, Gates(max_lost=0.0), settings=FEW)
    counts = repaired.winner.verdict.new
    assert (found.counts.fixed, found.counts.broken) == (counts.fixed, counts.broken)
    assert found.status == "passed"
    assert set(found.changed) == {
        layer.name.removesuffix(".weight") for layer in repaired.layers
    }  # fmt: skip
    assert "The patch was made with these samples" not in headline(found)
    whole = compare(trained(), repaired.patch, new, settings=FEW)
    assert "The patch was made with these samples" in headline(whole)
    back = trained()
    repaired.patch.apply(back)
    worse = compare(back, trained(), accept, Gates(max_lost=0.0), settings=FEW)
    assert (worse.status, worse.counts.broken) == ("failed", counts.fixed)


GATES: list[tuple[Gates, str]] = [
    (Gates(max_lost=0.01), "accuracy"),
    (Gates(max_broken=0.01), "broken samples"),
    (Gates(max_loss_increase=0.1), "mean loss"),
    (Gates(max_group_lost=0.01), "every group"),
]


@pytest.mark.parametrize(("gates", "rule"), GATES)
def test_each_gate_passes_and_fails_where_it_should(gates: Gates, rule: str) -> None:
    samples = some(300, 5, shifted=False)
    failed = compare(trained(), scrambled("0"), samples, gates, settings=FEW)
    assert failed.status == "failed"
    assert [each.name for each in failed.rules if not each.passed] == [rule]
    passed = compare(trained(), trained(), samples, gates, settings=FEW)
    assert passed.status == "passed"
    assert {each.name for each in passed.rules} == {"predictions", rule}
    assert (passed.changed, passed.blame, passed.reversals) == ({}, None, ())


def test_non_inferiority_needs_more_samples_than_no_loss_at_all() -> None:
    samples = some(60, 5, shifted=False)
    same = Gates(max_lost=0.01)
    assert compare(trained(), trained(), samples, same).status == "passed"
    assert compare(trained(), trained(), samples, replace(same, confidence=0.95)).status == "failed"
    samples = some(3000, 5, shifted=False)
    assert compare(trained(), trained(), samples, replace(same, confidence=0.95)).status == "passed"


def test_a_network_that_predicts_nothing_fails_without_any_gate() -> None:
    new = trained()
    with torch.no_grad():
        new[0].weight.fill_(torch.nan)  # type: ignore[operator]
    found = compare(trained(), new, some(100, 5, shifted=False), settings=FEW)
    assert [rule.name for rule in found.rules if not rule.passed] == ["predictions"]


def test_independent_trainings_are_not_compared_filter_by_filter(tmp_path: Path) -> None:
    torch.manual_seed(5)
    stranger = trained()
    stranger.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)  # type: ignore[operator]
    found = compare(trained(), stranger, some(200, 5, shifted=False), settings=FEW)
    assert "independent trainings" in found.unlike
    assert (found.blame, found.reversals) == (None, ())
    write_comparison(tmp_path, found)
    text = (tmp_path / "report.md").read_text()
    assert "not compared one by one" in text
    assert "Where each network's mistakes lie" in text
    wider = nn.Sequential(nn.Conv2d(1, 4, 12), nn.Flatten())
    assert "different architectures" in unlike(trained(), wider)
    assert trained()[0].weight.numel() >= FEWEST  # type: ignore[operator]


def test_independent_trainings_are_compared_by_groups_each_by_its_own_tails() -> None:
    torch.manual_seed(5)
    stranger = nn.Sequential(
        nn.Conv2d(1, 12, 5), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    samples, few = some(300, 5, shifted=True), replace(FEW, fitted=300, tried=1000)
    found = compare(trained(), stranger, samples, settings=few)
    assert "different architectures" in found.unlike
    assert found.own is not None
    for network, own in zip((trained(), stranger.eval()), found.own, strict=True):
        index = salmon.FilterIndex.from_model(network)
        profile = salmon.filter_saliency(network, samples.inputs, samples.targets, index)
        tails = salmon.Tails(len(index))
        tails.update(profile)
        fit = salmon.fit_tails(tails, few.level, index=index)
        wrong = profile[~right_of(network, samples)]
        top = max(1, len(index) // 10)
        ranking = salmon.rank_filters(wrong.double(), fit, top_k=top)
        assert own.samples == len(wrong)
        shares = salmon.group_shares(ranking, index)
        assert own.groups == pytest.approx(shares, abs=0.02, nan_ok=True)  # sums in another order
        assert own.filters == salmon.filter_shares(index)
        places = index.layer_of.double() / (len(index.layers) - 1)
        named = ranking.filters[ranking.filters >= 0]
        assert own.depth == pytest.approx(float(places[named].mean()), abs=0.02)


def test_a_network_without_filters_is_compared_all_the_same() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
    found = compare(trained(), flat, some(100, 5, shifted=False), Gates(max_lost=1), settings=FEW)
    assert (found.status, found.own) == ("passed", None)
    assert "nor by groups of layers" in found.unlike


def test_blamed_filters_are_held_against_those_that_changed_most() -> None:
    old, new, few = trained(), scrambled("0"), replace(FEW, tried=500, top_k=3)
    blame = compare(old, new, some(500, 5, shifted=False), settings=few).blame
    assert blame is not None
    index = salmon.FilterIndex.from_model(old)
    moved = []
    for layer in index.layers:
        was, now = (net.get_parameter(layer.weight).detach().double() for net in (old, new))
        gap = (now - was).flatten(1).norm(dim=1)
        moved += (gap / was.flatten(1).norm(dim=1)).tolist()
    for each in blame.filters:
        assert each.changed == pytest.approx(moved[each.filter], rel=1e-6)
    beyond = {f.filter for f in blame.filters if f.p is not None and f.p <= 0.05}
    assert blame.beyond == len(beyond) > 0
    most = set(sorted(range(len(moved)), key=lambda f: -moved[f])[: blame.beyond])
    assert blame.overlap == len(beyond & most)
    assert blame.overlap_expected == blame.beyond**2 / len(moved)
    chance = stats.hypergeom(len(moved), blame.beyond, blame.beyond)
    assert blame.overlap_p == pytest.approx(chance.sf(blame.overlap - 1), rel=1e-9)


def test_reports_say_what_was_found(found: ModelComparison, tmp_path: Path) -> None:
    write_comparison(tmp_path, found, {"old": "a | b <script>"})
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["schema"], report["status"]) == ("salmon.comparison/1", "failed")
    assert report["reversals"][0]["name"] == "3"
    assert len(report["broken_samples"]) == found.counts.broken
    text = (tmp_path / "report.md").read_text()
    assert "<script>" not in text
    assert "camera" in text
    assert len(text.encode()) < 60_000
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    values = [p.get("value") for p in suite.iter("property") if p.get("name") == "value"]
    assert float(values[1] or "nan") == pytest.approx(-found.counts.gain, rel=1e-5)


@pytest.mark.parametrize("name", ["multilabel", "segmentation"])
def test_other_tasks_are_compared_by_their_mistakes(name: str) -> None:
    new = trained_for(name)
    with torch.no_grad():
        new[0].weight.mul_(-1)  # type: ignore[operator]
    samples = some_of(name, 200, 1, shifted=False)
    found = compare(
        trained_for(name), new, samples, Gates(max_loss_increase=0.1), settings=FEW, task=name
    )
    assert found.status == "failed"
    assert found.groups == ()
    assert found.reversals[0].name == "0"
    assert found.counts.broken > 20


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: Gates(max_lost=2), "max_lost is 2"),
    (lambda: Gates(confidence=1.0), "confidence is 1.0"),
    (lambda: Gates(max_loss_increase=-1), "max_loss_increase is -1"),
    (lambda: Gates(min_group=0), "min_group is 0"),
    (lambda: CompareSettings(level=1.0), "level is 1.0"),
    (lambda: CompareSettings(tried=0), "tried is 0"),
    (lambda: compare(trained(), trained(), []), "gave no samples"),
    (
        lambda: compare(trained(), trained(), some(0, 1, shifted=False)),
        "no sample to compare on",
    ),
    (
        lambda: compare(trained(), trained(), some(9, 1, shifted=False), slices={"a": [1]}),
        "'a' has 1 values for 9 samples",
    ),
]


@pytest.mark.parametrize(("attempt", "message"), REFUSED)
def test_what_does_not_fit_is_refused(attempt: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        attempt()


def test_a_network_of_probabilities_is_refused() -> None:
    network = nn.Sequential(trained(), nn.Softmax(1)).eval()
    with pytest.raises(InputError, match="probabilities where logits are needed"):
        compare(network, network, some(100, 1, shifted=False))


def test_samples_without_a_label_are_left_out() -> None:
    samples = some(100, 1, shifted=False)
    samples.targets[:10] = -1
    assert compare(trained(), trained(), samples).counts.samples == 90
    samples.targets[:] = -1
    with pytest.raises(InputError, match="no sample has a label"):
        compare(trained(), trained(), samples)


def test_an_own_fit_and_a_reference_of_ones_own_are_taken() -> None:
    samples, index = some(200, 5, shifted=False), salmon.FilterIndex.from_model(trained())
    profile = salmon.filter_saliency(trained(), samples.inputs, samples.targets, index)
    tails = salmon.Tails(len(index))
    tails.update(profile)
    fit = salmon.fit_tails(tails, 0.9, index=index)
    data, every = some(100, 9, shifted=False), replace(FEW, tried=1000)
    given = compare(trained(), scrambled("3"), data, settings=every, index=index, fit=fit)
    fitted = compare(trained(), scrambled("3"), data, settings=every, reference=samples)
    assert given.blame is not None
    assert fitted.blame is not None
    assert given.blame.layers == fitted.blame.layers
    assert [f.filter for f in given.blame.filters] == [f.filter for f in fitted.blame.filters]
