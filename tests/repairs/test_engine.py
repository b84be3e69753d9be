"""Repairs end to end: what there is to gain is found, noise is not, and nothing is left behind."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from salmon import (
    FilterIndex,
    InputError,
    RepairSettings,
    Samples,
    Tails,
    filter_saliency,
    fit_tails,
    repair,
)
from salmon.repairs import write_outcome
from salmon.repairs.edit import KINDS
from salmon.repairs.engine import ACCEPTED, NOT_ACCEPTED, NOTHING_TO_REPAIR, Outcome
from salmon.repairs.evidence import Evidence, Part
from salmon.repairs.predictions import predict
from salmon.repairs.remedies import proposals
from salmon.repairs.report import MAX_MARKDOWN
from tests.shifts import some, trained
from tests.traces import assert_identical, network_state, random_states

FEW = RepairSettings(
    rankings=("pot", "all"), shares=(0.07,), rates=(0.03, 0.1), steps=("normalised",)
)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return repair(trained(), some(600, 2, shifted=True), some(600, 1, shifted=False))


def test_a_gain_that_exists_is_found_and_holds_on_fresh_data(outcome: Outcome) -> None:
    assert outcome.status == ACCEPTED
    assert outcome.verdict is not None
    assert outcome.verdict.new.gain > 0.3
    assert outcome.verdict.reference.gain >= -0.01
    assert outcome.patch is not None
    network = trained()
    fresh, old = some(1000, 77, shifted=True), some(1000, 78, shifted=False)
    before = predict(network, fresh, 64).accuracy
    outcome.patch.apply(network)
    assert predict(network, fresh, 64).accuracy - before > 0.3
    assert predict(network, old, 64).accuracy > 0.99


def test_every_ranking_is_compared_at_equal_budget(outcome: Outcome) -> None:
    assert outcome.verdict is not None
    winner = outcome.verdict.trial
    names = {winner.ranking, *(rival.trial.ranking for rival in outcome.rivals)}
    assert names == {"pot", "zscore", "magnitude", "random", "all", "last_linear"}
    if winner.ranking not in ("all", "last_linear"):
        for rival in outcome.rivals:
            if rival.trial.ranking not in ("all", "last_linear"):
                assert rival.trial.filters == winner.filters


def test_the_network_is_left_as_it_was() -> None:
    network = trained().train()
    network.get_parameter("0.weight").requires_grad = False
    network.get_parameter("3.weight").grad = torch.ones(32, 16, 3, 3)
    before = [network_state(network), random_states()]
    repair(network, some(300, 2, shifted=True), some(300, 1, shifted=False), FEW)
    assert_identical([network_state(network), random_states()], before)


@pytest.mark.slow
def test_a_gain_of_few_points_is_found_where_there_are_data_enough() -> None:
    # Flatter images: the network gets 96 % of them right.
    images = some(3000, 2, shifted=False)
    flat = Samples(0.31 * images.inputs, images.targets, images.ids)
    assert 0.95 < predict(trained(), flat, 64).accuracy < 0.97
    found = repair(trained(), flat, some(3000, 1, shifted=False))
    assert found.status == ACCEPTED
    assert found.verdict is not None
    assert 0.01 < found.verdict.new.gain < 0.05


@pytest.mark.slow
def test_noise_is_not_taken_for_a_gain() -> None:
    # The labels of the new data say nothing; a level of 5 % allows one of 20.
    accepted = 0
    reference = some(300, 1, shifted=False)
    for seed in range(20):
        images = some(200, 100 + seed, shifted=True)
        random = torch.Generator().manual_seed(seed)
        labels = torch.randint(4, (200,), generator=random)
        noise = Samples(images.inputs, labels, images.ids)
        found = repair(trained(), noise, reference, RepairSettings(seed=seed))
        accepted += found.status == ACCEPTED
    assert accepted <= 1


def test_nothing_wrong_is_nothing_to_repair() -> None:
    network, samples = trained(), some(300, 1, shifted=False)
    right = predict(network, samples, 64).right
    clean = samples.take(right.nonzero().squeeze(1))
    found = repair(network, clean, None, FEW)
    assert (found.status, found.patch, found.shared) == (NOTHING_TO_REPAIR, None, True)
    labels = clean.targets.clone()
    parts = clean.split(FEW.split, FEW.seed)
    elsewhere = clean.ids.index(parts["accept"].ids[0])
    labels[elsewhere] = (labels[elsewhere] + 1) % 4
    found = repair(network, Samples(clean.inputs, labels, clean.ids), clean, FEW)
    assert found.status == NOT_ACCEPTED
    assert "no sample of the repair split is misclassified" in found.reason


def test_without_reference_data_the_report_says_so() -> None:
    found = repair(trained(), some(300, 2, shifted=True), None, FEW)
    assert found.shared
    assert found.sizes["new"] == found.sizes["reference"]


def test_groups_and_given_fits_are_taken() -> None:
    settings = replace(FEW, rankings=("group:depth1of2",))
    found = repair(trained(), some(300, 2, shifted=True), some(300, 1, shifted=False), settings)
    assert {trial.ranking for trial in found.trials} == {"group:depth1of2"}
    network, reference = trained(), some(300, 1, shifted=False)
    index = FilterIndex.from_model(network)
    tails = Tails(len(index))
    tails.update(filter_saliency(network, reference.inputs, reference.targets, index))
    found = repair(network, some(300, 2, shifted=True), reference, FEW, fit=fit_tails(tails))
    assert found.given_fit
    assert {trial.ranking for trial in found.trials} == {"pot", "all"}
    with pytest.raises(InputError, match="names no group of this network; it has depth1of2"):
        repair(trained(), some(300, 2, shifted=True), None, replace(FEW, rankings=("group:conv9",)))


def test_effects_of_the_followed_gradient_order_the_filters_of_each_step() -> None:
    network, index = trained(), FilterIndex.from_model(trained())
    parts = [
        Part(samples, predict(network, samples, 64))
        for samples in (some(100, 2, shifted=True), some(100, 1, shifted=False))
    ]
    settings = RepairSettings(rankings=("effect",), shares=(0.1,), steps=KINDS, gradient="wrong")
    evidence = Evidence(
        model=network, index=index, given_fit=None, new=parts[0], reference=parts[1],
        settings=settings, batch_size=64, say=lambda *_: None,
    )  # fmt: skip
    direction, weights = evidence.directions[index], dict(network.named_parameters())
    found = {proposal.step: proposal for proposal in proposals(evidence)}
    assert set(found) == set(KINDS)
    for kind, proposal in found.items():
        effects = []
        for layer in index.layers:
            w, g = weights[layer.weight].detach().flatten(1), direction[layer.weight].flatten(1)
            norm, product = g.norm(dim=1), (w * g).sum(1).abs()
            right = {"plain": norm**2, "normalised": w.norm(dim=1) * norm, "prune": product}
            effects.append(right[kind])
        best = torch.cat(effects).argsort(descending=True)[: proposal.filters]
        edit = proposal.edit(0.01)
        touched = [index.starts[index.layers.index(c.layer)] + c.channels for c in edit.changes]
        assert torch.cat(touched).tolist() == sorted(best.tolist())


def test_a_share_of_one_takes_every_ranked_filter() -> None:
    settings = replace(FEW, rankings=("magnitude",), shares=(1.0,))
    found = repair(trained(), some(300, 2, shifted=True), some(300, 1, shifted=False), settings)
    assert {trial.filters for trial in found.trials} == {48}


def test_pruning_is_tried_where_it_is_allowed() -> None:
    settings = replace(FEW, steps=("prune",), max_relative_change=1.0)
    found = repair(trained(), some(300, 2, shifted=True), some(300, 1, shifted=False), settings)
    assert {(trial.step, trial.rate) for trial in found.trials} == {("prune", 0.0)}
    assert {trial.relative_change for trial in found.trials} == {1.0}


def test_patches_say_what_they_were_made_with(outcome: Outcome) -> None:
    assert outcome.patch is not None
    info = outcome.patch.info
    assert info["settings"]["seed"] == 0
    assert info["data"]["new"] == some(600, 2, shifted=True).fingerprint()
    assert info["data"]["new"] != some(600, 3, shifted=True).fingerprint()
    assert info["new"]["fixed"] > info["new"]["broken"]
    assert set(info["versions"]) == {"torch"}


def test_fits_of_another_network_are_refused() -> None:
    tails = Tails(3)
    tails.update(torch.rand(200, 3))
    with pytest.raises(InputError, match="fit has 3 filters but this network has 48"):
        repair(trained(), some(300, 2, shifted=True), None, FEW, fit=fit_tails(tails))


def test_too_few_data_are_refused() -> None:
    with pytest.raises(InputError, match=r"the new data have 40 samples.*Bring more"):
        repair(trained(), some(40, 2, shifted=True), some(300, 1, shifted=False))
    with pytest.raises(InputError, match="no filter could be fitted to 40 reference samples"):
        repair(trained(), some(300, 2, shifted=True), some(100, 1, shifted=False), FEW)


def test_networks_without_linear_layers_have_no_such_rival() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 12), nn.Flatten()).eval()
    settings = replace(FEW, rankings=("last_linear", "magnitude"))
    found = repair(network, some(300, 2, shifted=True), some(300, 1, shifted=False), settings)
    assert {trial.ranking for trial in found.trials} == {"magnitude"}


def test_steps_stages_and_filters_are_announced() -> None:
    stages: dict[str, tuple[int, int]] = {}
    repair(
        trained(), some(300, 2, shifted=True), some(300, 1, shifted=False), FEW,
        index=FilterIndex.from_model(trained()),
        progress=lambda stage, done, of: stages.__setitem__(stage, (done, of)),
    )  # fmt: skip
    assert set(stages) == {"fit", "rank", "search"}
    assert all(done == of for done, of in stages.values())


def test_reports_hold_what_was_found(tmp_path: Path, outcome: Outcome) -> None:
    write_outcome(tmp_path, outcome, {"model": "a | b <script>"})
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == "salmon.repair/1"
    assert report["status"] == ACCEPTED
    assert len(report["trials"]) == len(outcome.trials)
    assert [rule["passed"] for rule in report["verdict"]["rules"]] == [True] * 9
    text = (tmp_path / "report.md").read_text()
    assert len(text.encode()) < MAX_MARKDOWN
    assert "a \\| b &lt;script>" in text
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("9", "0")
    picture = ElementTree.parse(tmp_path / "tradeoff.svg").getroot()
    assert picture.attrib["role"] == "img"
    assert picture[0].text == "Gain on new data against loss on reference data, by ranking"
    shown = {element.text for element in picture.iter() if element.tag.endswith("text")}
    assert {trial.ranking for trial in outcome.trials} <= shown
    assert (tmp_path / "patch.safetensors").exists()


def test_a_refused_repair_leaves_reports_only(tmp_path: Path) -> None:
    strict = replace(FEW, max_relative_change=0.001)
    found = repair(trained(), some(300, 2, shifted=True), some(300, 1, shifted=False), strict)
    assert (found.status, found.verdict) == (NOT_ACCEPTED, None)
    write_outcome(tmp_path / "search", found)
    suite = ElementTree.parse(tmp_path / "search" / "junit.xml").getroot()
    assert suite.get("failures") == "1"
    failing = replace(FEW, max_ece_increase=0.0, alpha=1e-9)
    found = repair(trained(), some(120, 2, shifted=True), some(300, 1, shifted=False), failing)
    assert found.status == NOT_ACCEPTED
    assert "fixes more than it breaks" in found.reason
    write_outcome(tmp_path / "rules", found)
    assert "**failed**" in (tmp_path / "rules" / "report.md").read_text()
    for name in ("search", "rules"):
        assert not (tmp_path / name / "patch.safetensors").exists()


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        found = repair(trained(), some(300, 2, shifted=True), some(300, 1, shifted=False), FEW)
        write_outcome(tmp_path / name, found)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()
