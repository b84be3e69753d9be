"""Repairs where a sample has no single class: the task's losses, mistakes and rules count."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from salmon import FilterIndex, InputError, RepairSettings, Samples, Task, filter_saliency, repair
from salmon.cli.pages import write_page
from salmon.repairs import write_outcome
from salmon.repairs.engine import ACCEPTED, NOTHING_TO_REPAIR, Outcome
from salmon.repairs.evidence import Evidence, mean_gradients, split_set
from salmon.repairs.predictions import Objective, predict
from salmon.repairs.remedies.tune import ALL, KEEP, MOMENTUM, RATES, WHOLE, tune
from salmon.tasks import TASKS, AnyTask, Multilabel, Regression, Segmentation
from salmon.views.report.outcomes import read_outcome
from tests.evidences import driven
from tests.other_tasks import CASES, own_losses, some, task_of, trained
from tests.shifts import squares

FEW = RepairSettings(
    remedies=("step", "tune"), shares=(0.3,), epochs=3, prefer="any", max_broken_reference=0.15
)


def by_hand(name: str, output: Tensor, targets: Tensor, bound: float | None) -> Tensor:
    """``[N]`` bool, right; or with no bound the score of a task that needs one."""
    match name:
        case "binary":
            return (output[:, 0] > 0) == (targets == 1)
        case "multilabel":
            return ((output > 0) == (targets == 1)).all(1)
        case "sequence":
            return (output.argmax(2) == targets).all(1)
        case "segmentation":
            said = output.argmax(1)
            found = []
            for one, true in zip(said, targets, strict=True):
                ious = [
                    ((one == c) & (true == c)).sum().double() / ((one == c) | (true == c)).sum()
                    for c in (0, 1)
                    if bool(((one == c) | (true == c)).any())
                ]
                found.append(1 - sum(ious) / len(ious))
            score = torch.stack([torch.as_tensor(each) for each in found])
        case _:
            gap = (output[:, 0] - targets).double()
            score = gap.abs() if name == "regression" else gap.square()
    return score if bound is None else score <= bound


BOUNDED: dict[str, AnyTask] = {
    "segmentation": Segmentation(bound=0.85),
    "regression": Regression(bound=0.4),
    "custom": Task(losses=own_losses, score=own_losses, bound=0.16),
}


@cache
def outcome(name: str) -> Outcome:
    """A repair with a bound, where there is one, and new data as their own reference then."""
    new, old = some(name, 600, 2, shifted=True), some(name, 600, 1, shifted=False)
    task = BOUNDED.get(name, task_of(name))
    return repair(trained(name), new, None if name in BOUNDED else old, FEW, task=task)


@pytest.mark.parametrize("name", CASES)
def test_a_gain_holds_on_fresh_data_by_a_rule_written_by_hand(name: str) -> None:
    found = outcome(name)
    assert found.status == ACCEPTED, found.reason
    assert found.patch is not None
    assert found.winner is not None
    network, fresh = trained(name), some(name, 2000, 77, shifted=True)
    bound = {"segmentation": 0.15, "regression": 0.4, "custom": 0.16}.get(name)

    def right() -> float:
        with torch.no_grad():
            return float(by_hand(name, network(fresh.inputs), fresh.targets, bound).double().mean())

    before = right()
    found.patch.apply(network)
    assert right() - before > 0.5 * found.winner.verdict.new.gain > 0.05


@pytest.mark.parametrize("name", BOUNDED)
def test_without_a_bound_it_is_that_of_the_reference_before_the_repair(name: str) -> None:
    network, settings = trained(name), replace(FEW, remedies=("step",))
    new, old = some(name, 300, 2, shifted=True), some(name, 300, 1, shifted=False)
    found = repair(network, new, old, settings, task=task_of(name))
    with torch.no_grad():
        scores, ours = (by_hand(name, network(s.inputs), s.targets, None) for s in (old, new))
    bound = scores.sort(descending=True).values[30]
    assert found.before["reference"] == float((scores <= bound).double().mean()) >= 0.9
    assert found.before["new"] == float((ours <= bound).double().mean()) < 0.9


@pytest.mark.parametrize("name", CASES)
def test_reports_speak_of_the_task(name: str, tmp_path: Path) -> None:
    found = outcome(name)
    write_outcome(tmp_path, found, {})
    write_page(tmp_path, "repair", found.sets, {"new": some(name, 600, 2, shifted=True)})
    text = (tmp_path / "report.md").read_text()
    report = json.loads((tmp_path / "report.json").read_text())
    assert f"A mistake is: {found.mistake}." in text
    rules = {rule["name"] for rule in report["winner"]["rules"]}
    with_classes = name == "binary"
    assert ("class" in text) == with_classes
    assert ("every class" in rules) == with_classes
    assert ("calibration on new data" in rules) == with_classes
    assert ("mean loss on reference data" in rules) != with_classes
    details = {
        "binary": "confidence_target", "multilabel": "wrong_labels", "segmentation": "mean_iou",
        "regression": "error", "sequence": "wrong_tokens", "custom": "score",
    }  # fmt: skip
    fixed = report["accept"]["new"]["fixed"]
    for each in fixed:
        before, after = each["details"][details[name]]
        assert before != after
    section = read_outcome(tmp_path / "report.json", "")
    (table,) = [table for table in section.tables if table.name == "samples-new"]
    assert table.columns[0] == "image"
    told = [row[-1] for row in table.rows if row[1] == "fixed"]
    assert told == [each["what"] for each in fixed]


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_saliency_are_those_of_a_loop_over_samples(name: str) -> None:
    network, samples = trained(name), some(name, 12, 5, shifted=True)
    network.double()
    samples = Samples(samples.inputs.double(), samples.targets, samples.ids)
    objective = Objective(task=task_of(name))
    index = FilterIndex.from_model(network)
    names = [layer.weight for layer in index.layers]
    parameters = [network.get_parameter(each) for each in names]
    sums = [torch.zeros_like(each) for each in parameters]
    profile = []
    for x, y in samples.batches(1):
        loss = CASES[name][2](network(x), y)
        each = torch.autograd.grad(loss, parameters)
        profile.append(torch.cat([g.abs().flatten(1).mean(1) for g in each]))
        sums = [total + g for total, g in zip(sums, each, strict=True)]
    found = mean_gradients(network, samples, names, 5, objective)
    for key, total in zip(names, sums, strict=True):
        torch.testing.assert_close(found[key], total / 12, rtol=1e-9, atol=0)
    ours = filter_saliency(network, samples.inputs, samples.targets, index, objective.losses)
    torch.testing.assert_close(ours, torch.stack(profile), rtol=1e-9, atol=0)


def evidence_of(name: str, network: nn.Module) -> Evidence:
    objective = Objective(task=task_of(name), bound=0.5)
    settings = RepairSettings(min_split=1, epochs=1)
    parts = [
        split_set(network, some(name, 60, seed, shifted=seed == 2), settings, "", 64, objective)
        for seed in (2, 1)
    ]
    return Evidence(
        model=network, index=FilterIndex.from_model(network), given_fit=None,
        new=parts[0]["repair"], reference=parts[1]["repair"], settings=settings, batch_size=64,
        say=lambda *_: None, objective=objective,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["segmentation", "regression"])
def test_a_tuning_keeps_what_the_network_says_of_the_reference(name: str) -> None:
    network = trained(name)
    evidence = evidence_of(name, network)
    new, reference = evidence.new.samples, evidence.reference.samples
    assert len(new) + len(reference) <= 64  # one batch, so that two epochs are two steps
    epochs = [p for p in driven(tune(evidence, ALL, (1.0,))) if p.how.startswith("1 epoch")]
    rate = WHOLE * RATES[0]
    copy = trained(name)
    with torch.no_grad():
        said = copy(reference.inputs)
    output = copy(torch.cat([new.inputs, reference.inputs]))
    targets = torch.cat([new.targets, reference.targets])
    moved = (output[len(new) :] - said).square().flatten(1).mean(1).sum()
    total = TASKS[name].per_sample(output, targets, None).sum() + KEEP * moved
    (total / len(output)).backward()
    first = {change.layer.weight: change.values for change in epochs[0].edit.changes}
    assert MOMENTUM == 0.9
    for key, parameter in copy.named_parameters():
        assert parameter.grad is not None
        expected = (parameter.detach() - rate * parameter.grad).reshape(first[key].shape)
        torch.testing.assert_close(first[key], expected, rtol=1e-5, atol=1e-6)


def test_samples_of_which_nothing_is_known_are_left_out() -> None:
    samples = some("multilabel", 300, 2, shifted=True)
    samples.targets[::3] = torch.nan
    found = repair(trained("multilabel"), samples, None, FEW, task="multilabel")
    assert sum(found.sizes["new"].values()) == 200


def test_the_task_is_told_by_some_samples_or_refused_with_what_to_do() -> None:
    samples = some("segmentation", 600, 1, shifted=False)
    found = repair(trained("segmentation"), samples, None, FEW)
    assert found.mistake.startswith("mean IoU under")
    network = nn.Sequential(nn.Conv2d(1, 3, 12), nn.Flatten()).eval()
    open_to_all = Samples(samples.inputs, samples.targets[:, :2, 0], samples.ids)
    with pytest.raises(InputError, match="leaves open what a mistake is"):
        repair(network, open_to_all)


def test_a_bound_of_ones_own_is_the_same_for_all_data() -> None:
    network = trained("regression")
    far = Regression(bound=50.0)
    data = some("regression", 300, 2, shifted=True)
    assert repair(network, data, None, FEW, task=far).status == NOTHING_TO_REPAIR
    tolerant = Multilabel(tolerance=2)
    data = some("multilabel", 300, 2, shifted=True)
    assert repair(trained("multilabel"), data, None, FEW, task=tolerant).status == NOTHING_TO_REPAIR


def test_probabilities_need_a_loss_that_takes_them() -> None:
    network = nn.Sequential(trained("binary"), nn.Sigmoid()).eval()
    new, old = (some("binary", 600, seed, shifted=seed == 2) for seed in (2, 1))
    new, old = (Samples(e.inputs, e.targets.unsqueeze(1), e.ids) for e in (new, old))
    with pytest.raises(InputError, match=r"probabilities where logits are needed.*BCELoss"):
        repair(network, new, old, FEW, task="binary")
    found = repair(network, new, old, FEW, task="binary", loss=nn.BCELoss())
    assert found.winner is not None
    assert found.winner.verdict.new.gain > 0.1


def test_a_loss_of_ones_own_is_the_one_that_is_lowered() -> None:
    network, samples = trained("regression"), some("regression", 40, 2, shifted=True)
    asked: list[int] = []

    def huber(output: Any, targets: Tensor) -> Tensor:
        asked.append(len(targets))
        return nn.functional.huber_loss(output[:, 0], targets, reduction="none")

    found = predict(network, samples, 16, Objective(task=TASKS["regression"], loss=huber))
    assert asked == [16, 16, 8]
    with torch.no_grad():
        expected = huber(network(samples.inputs), samples.targets)
    torch.testing.assert_close(found.losses, expected.double(), rtol=1e-6, atol=0)


def test_labels_above_the_classes_are_refused() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 12), nn.Flatten()).eval()
    images, classes = squares(100, 1, shifted=False)
    samples = Samples(images, classes, tuple(range(100)))
    with pytest.raises(InputError, match="labels of a batch are higher than the classes"):
        repair(network, samples, None, FEW)
    with pytest.raises(InputError, match="there is no new sample"):
        repair(network, samples.take(torch.arange(0)), None, FEW)


def test_what_a_task_describes_decides_nothing() -> None:
    samples = some("regression", 20, 2, shifted=True)

    def score(output: Tensor, targets: Tensor) -> Tensor:
        return (output[:, 0] - targets).abs().masked_fill(targets == 3, torch.nan)

    task = Task(
        losses=own_losses, score=score, bound=1e9,
        describe=lambda o, _: {"wrong": torch.ones(len(o)), "labelled": torch.zeros(len(o))},
    )  # fmt: skip
    found = predict(trained("regression"), samples, 8, Objective(task=task))
    assert found.columns["labelled"].all()
    assert found.right.tolist() == (samples.targets != 3).tolist()  # no score is the worst one
    free = Objective(task=replace(task, bound=None), bound=1e9)
    assert predict(trained("regression"), samples, 8, free).right.equal(found.right)


def test_ignored_labels_are_no_labels_beyond_the_classes() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 12), nn.Flatten()).eval()
    images, classes = squares(300, 1, shifted=False)
    classes[:30] = 255
    samples = Samples(images, classes, tuple(range(300)))
    loss = nn.CrossEntropyLoss(ignore_index=255)
    found = repair(network, samples, None, FEW, loss=loss)
    assert sum(found.sizes["new"].values()) == 270
