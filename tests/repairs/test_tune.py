"""Tuning: stochastic gradient descent on chosen filters alone, and some of the way back."""

import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import count

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from salmon.repairs import edited
from salmon.repairs.edit import Edit, by_layer, state_of
from salmon.repairs.evidence import Evidence
from salmon.repairs.remedies import ALL, tune
from salmon.repairs.remedies.tune import KEEP, PATIENCE, RATES, TORN, WAYS, WHOLE, Tuning
from salmon.repairs.samples import Batch
from salmon.repairs.trial import Proposal, Trial
from tests.evidences import assert_same, driven, evidence_of, trial_of
from tests.shifts import CLASSES, trained
from tests.traces import assert_identical, network_state, random_states

WEIGHTS = ("0.weight", "3.weight")

CHOSEN = [0, 5, 15, 16, 40]
"""Filters of both convolutions of the trained network, which have 16 and 32."""


def tuning_of(evidence: Evidence, filters: list[int], rate: float) -> Tuning:
    return Tuning(evidence, list(by_layer(evidence.index, filters)), rate)


def masks_of_chosen(network: nn.Module) -> dict[str, Tensor]:
    """One where a weight belongs to a filter of CHOSEN, else zero, by name."""
    masks = {name: torch.zeros_like(network.get_parameter(name)) for name in WEIGHTS}
    for number in CHOSEN:
        masks[WEIGHTS[number >= 16]][number - 16 * (number >= 16)] = 1
    return masks


def by_hand(
    evidence: Evidence, masks: Mapping[str, Tensor], rate: float, epochs: int = 1
) -> nn.Module:
    """A copy of the network after SGD with masked gradients, keeping the reference's logits."""
    network = deepcopy(evidence.model).eval()
    optimizer = torch.optim.SGD([network.get_parameter(n) for n in masks], rate, momentum=0.9)
    sets = evidence.new.samples, evidence.reference.samples
    inputs, targets = torch.cat([s.inputs for s in sets]), torch.cat([s.targets for s in sets])
    random = torch.Generator().manual_seed(evidence.settings.seed)
    original = evidence.model(inputs).detach()
    for _ in range(epochs):
        for rows in torch.randperm(len(targets), generator=random).split(64):
            network.zero_grad()
            logits = network(inputs[rows])
            loss = nn.functional.cross_entropy(logits, targets[rows])
            moved = (logits - original[rows]).square().mean(1)[rows >= len(sets[0])]
            (loss + KEEP * moved.sum() / len(rows)).backward()
            for name, mask in masks.items():
                gradient = network.get_parameter(name).grad
                assert gradient is not None
                gradient.mul_(mask)
            optimizer.step()
    return network


def assert_like(evidence: Evidence, edit: Edit, wanted: nn.Module) -> None:
    """Within 1e-9, relative and absolute, of another network in float64."""
    with edited(evidence.model, edit):
        for name, value in state_of(evidence.model).items():
            torch.testing.assert_close(value, state_of(wanted)[name], rtol=1e-9, atol=1e-9)


def is_way_back(proposal: Proposal) -> bool:
    return " of the way" in proposal.how


@pytest.mark.parametrize("epochs", [1, 3])
def test_epochs_are_those_of_sgd_with_momentum_on_the_chosen_filters(epochs: int) -> None:
    evidence = evidence_of(trained().double())
    run = tuning_of(evidence, CHOSEN, 0.03)
    proposals = [run.epoch("pot") for _ in range(epochs)]
    wanted = by_hand(evidence, masks_of_chosen(evidence.model), 0.03, epochs)
    assert_like(evidence, proposals[-1].edit, wanted)


def test_an_epoch_has_no_more_batches_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence, sizes = evidence_of(trained()), []  # 200 samples
    run = tuning_of(evidence, CHOSEN, 0.03)

    def nothing(parts: Sequence[Batch], samples: int) -> list[Tensor]:
        sizes.append(samples)
        return [torch.zeros(())] * 2

    monkeypatch.setattr(run, "_gradients", nothing)
    run.epoch("pot")
    assert sizes == [64, 64, 64, 8]
    monkeypatch.setattr(sys.modules[Tuning.__module__], "MOST_BATCHES", 2)
    run.epoch("pot")
    assert sizes[4:] == [64, 64]


def test_nothing_but_the_chosen_filters_moves() -> None:
    network = trained().train()  # whose BatchNorm would update its statistics
    evidence = evidence_of(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    edit = tuning_of(evidence, CHOSEN, 0.1).epoch("pot").edit
    masks = masks_of_chosen(network)
    assert edit.filters == len(CHOSEN)
    with edited(network, edit):
        for name, value in network.state_dict().items():
            chosen = masks.get(name, torch.zeros_like(value)).bool()
            assert torch.equal(value[~chosen], before[name][~chosen])
            if name in masks:
                moved = (value != before[name]).flatten(1).any(1)
                assert torch.equal(moved, chosen.flatten(1).any(1))


@pytest.mark.parametrize("order", ["zscore", ALL])
def test_the_network_is_itself_between_epochs(order: str) -> None:
    network = trained().train()
    network[0].requires_grad_(requires_grad=False)
    for parameter in network[3].parameters():
        parameter.grad = torch.ones_like(parameter)
    evidence = evidence_of(network, epochs=2)
    before = deepcopy((network_state(network), random_states()))
    gains = count(1)

    def verdict(proposal: Proposal) -> Trial:
        assert_identical((network_state(network), random_states()), before)
        return trial_of(proposal, gain=0.1 * next(gains))

    assert len(driven(tune(evidence, order, (0.1,)), verdict)) > len(WAYS)
    assert_identical((network_state(network), random_states()), before)


def test_the_order_all_tunes_every_parameter() -> None:
    evidence = evidence_of(trained().double())
    proposal = next(tune(evidence, ALL, (1.0,)))
    parameters = dict(evidence.model.named_parameters())
    assert {c.layer.weight for c in proposal.edit.changes} == set(parameters)
    assert proposal.edit.weights == sum(p.numel() for p in parameters.values())
    masks = {name: torch.ones_like(value) for name, value in parameters.items()}
    assert_like(evidence, proposal.edit, by_hand(evidence, masks, WHOLE * RATES[0]))


def test_transposed_convolutions_are_tuned_by_output_channel() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, CLASSES),
    ).double()  # fmt: skip
    evidence = evidence_of(network)
    chosen = [4 + 1, 4 + 5]  # after the 4 filters of the first layer
    mask = torch.zeros_like(network.get_parameter("2.weight"))  # [4, 3, 3, 3]
    mask[:2, 1] = 1  # channel 1 is the second one of the first group
    mask[2:, 2] = 1  # channel 5 the third one of the other group
    run = tuning_of(evidence, chosen, 0.1)
    run.epoch("pot")
    assert_like(evidence, run.epoch("pot").edit, by_hand(evidence, {"2.weight": mask}, 0.1, 2))


def test_steps_that_bfloat16_cannot_hold_add_up() -> None:
    network = trained().bfloat16()
    with torch.no_grad():
        network.get_parameter("3.weight")[:2] = 1.0  # whose neighbour below is 2**-8 away
    evidence = evidence_of(network, new=60, reference=60)  # one batch, so one step an epoch
    mask = torch.zeros_like(network.get_parameter("3.weight"))
    mask[:2] = 1
    in_bfloat16 = by_hand(evidence, {"3.weight": mask}, 0.001, 20)
    assert_identical(list(in_bfloat16.state_dict().values()), list(network.state_dict().values()))
    wide = evidence_of(deepcopy(network).float(), new=60, reference=60)
    moved = []
    for each in (evidence, wide):
        run = tuning_of(each, [16, 17], 0.001)
        for _ in range(20):
            (change,) = run.epoch("pot").edit.changes
        assert change.values.dtype == each.state["3.weight"].dtype
        moved.append(change.values.float() - 1)
    assert float((moved[0] != 0).float().mean()) > 0.5
    # The same as in float32, give or take one number of bfloat16.
    assert float((moved[0] - moved[1]).abs().max()) <= 2**-7


def test_the_ways_back_are_interpolations() -> None:
    evidence = evidence_of(trained())
    worth: dict[str, float] = {}

    def verdict(proposal: Proposal) -> Trial:
        worth[proposal.how] = (-0.1, 0.3, 0.2, 0.2, 0.2)[len(worth)]
        gain = 0.3 if is_way_back(proposal) else worth[proposal.how]
        return trial_of(proposal, gain=gain)

    proposals = driven(tune(evidence, "random", (0.1,)), verdict)
    best = max(proposals, key=lambda proposal: worth[proposal.how])
    back = [proposal for proposal in proposals if is_way_back(proposal)]
    assert [p.how for p in back] == [f"{best.how}, {way:g} of the way" for way in WAYS]
    original = best.edit.values_in(evidence.state)
    for way, proposal in zip(WAYS, back, strict=True):
        changes = zip(proposal.edit.changes, original.changes, best.edit.changes, strict=True)
        for change, old, new in changes:
            assert torch.equal(change.channels, old.channels)
            wanted = old.values + way * (new.values - old.values)
            torch.testing.assert_close(change.values, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("failed", "ways"), [("", 1), ("margin", len(WAYS))])
def test_the_way_back_ends_where_less_of_an_allowed_tuning_gains_less(
    failed: str, ways: int
) -> None:
    falling = count(0, -0.01)
    proposals = driven(
        tune(evidence_of(trained()), "random", (0.1,)),
        lambda proposal: trial_of(proposal, gain=0.2 + next(falling), failed=failed),
    )
    assert sum(map(is_way_back, proposals)) == ways


def epochs_of(rate: float, last: int) -> list[str]:
    return [f"{n} epoch{'s' * (n > 1)} at {rate:g}" for n in range(1, last + 1)]


def test_a_tuning_takes_the_first_rate_that_gains_until_some_epochs_in_a_row_are_no_better() -> (
    None
):
    best = PATIENCE + 1  # the epochs between the first one and this one are worse
    epochs = epochs_of(RATES[1], best + PATIENCE)
    # What is gained on the new data and lost on the reference is worth nothing.
    worth = {epochs_of(RATES[0], 1)[0]: -TORN}
    worth |= dict.fromkeys(epochs, 0.1) | dict.fromkeys(epochs[best - 1 :], 0.2)
    proposals = driven(
        tune(evidence_of(trained(), epochs=best + PATIENCE + 5), "random", (0.05, 0.1)),
        lambda proposal: trial_of(
            proposal, gain=worth.get(proposal.how, 0.2) + TORN, lost=TORN, failed="margin"
        ),
    )
    back = [f"{epochs[best - 1]}, {way:g} of the way" for way in WAYS]
    wanted = [(5, how) for how in (*worth, *back)]
    wanted += [(2, how) for how in (*epochs, *back)]  # the rate is known
    assert [(proposal.edit.filters, proposal.how) for proposal in proposals] == wanted


def test_where_no_rate_gains_the_one_that_loses_least_goes_on() -> None:
    worth = dict(zip((epochs_of(r, 1)[0] for r in RATES), (-0.3, -0.1, -0.2), strict=True))
    proposals = driven(
        tune(evidence_of(trained(), epochs=2), "random", (0.1,)),
        lambda proposal: trial_of(proposal, gain=worth.get(proposal.how, 0.1), failed="gain"),
    )
    wanted = [*worth, *epochs_of(RATES[1], 2)[1:]]
    assert [p.how for p in proposals if not is_way_back(p)] == wanted


def test_a_tuning_that_is_given_up_twice_in_a_row_ends_and_goes_no_way_back() -> None:
    given_up = iter([False, True, False, True, True])
    rising = count(1)
    proposals = driven(
        tune(evidence_of(trained(), epochs=9), "random", (0.1,)),
        lambda proposal: trial_of(
            proposal, gain=0.01 * next(rising), complete=not next(given_up, True)
        ),
    )
    assert [proposal.how for proposal in proposals] == epochs_of(RATES[0], 5)


def test_a_rate_that_tears_the_network_is_not_taken_whatever_it_gains() -> None:
    first = epochs_of(RATES[0], 1)[0]
    proposals = driven(
        tune(evidence_of(trained(), epochs=1), "random", (0.1,)),
        lambda proposal: trial_of(proposal, gain=0.5, lost=0.06 if proposal.how == first else 0.0),
    )
    assert proposals[1].how == epochs_of(RATES[1], 1)[0]
    assert all(proposal.how.startswith(proposals[1].how) for proposal in proposals[2:])


def test_fewer_filters_are_tried_only_while_they_do_about_as_well() -> None:
    near = {5: True, 2: False}
    proposals = driven(
        tune(evidence_of(trained()), "random", (0.02, 0.05, 0.1)),
        lambda proposal: trial_of(proposal, near=near.get(proposal.edit.filters, True)),
    )
    assert {proposal.edit.filters for proposal in proposals} == {5, 2}


def test_a_tuning_has_at_most_the_epochs_of_the_settings() -> None:
    rising = count(1)
    proposals = driven(
        tune(evidence_of(trained(), epochs=3), "random", (0.1,)),
        lambda proposal: trial_of(proposal, gain=0.1 * next(rising)),
    )
    assert len(proposals) == 3 + len(WAYS)


def test_every_share_starts_from_the_original_weights() -> None:
    evidence = evidence_of(trained())
    proposals = driven(tune(evidence, "random", (0.05, 0.1)))
    proposal = next(proposal for proposal in proposals if proposal.edit.filters == 5)
    fresh = tuning_of(evidence, evidence.first("random", 0.1).tolist(), RATES[0])
    assert_same(proposal.edit, fresh.epoch("").edit)


class Checkpointed(nn.Module):
    """Runs its first layers once more in the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = trained()

    def forward(self, images: Tensor) -> Tensor:
        first = checkpoint(self.body[:3], images, use_reentrant=False)
        return torch.as_tensor(self.body[3:](first))


def test_a_forward_that_is_run_twice_is_tuned_as_one_that_is_not() -> None:
    plain, twice = (evidence_of(network) for network in (trained(), Checkpointed().eval()))
    edits = [tuning_of(each, CHOSEN, 0.03).epoch("pot").edit for each in (plain, twice)]
    for one, other in zip(*(edit.changes for edit in edits), strict=True):
        torch.testing.assert_close(one.values, other.values, rtol=1e-5, atol=1e-6)


def test_sets_of_other_sizes_are_measured_apart() -> None:
    evidence = evidence_of(trained())
    larger = nn.functional.interpolate(evidence.new.samples.inputs, size=(16, 16))
    samples = replace(evidence.new.samples, inputs=larger)
    evidence = replace(evidence, new=replace(evidence.new, samples=samples))
    proposal = tuning_of(evidence, CHOSEN, 0.03).epoch("pot")
    assert proposal.edit.finite
    assert proposal.edit.relative_change(evidence.state) > 0


def test_an_order_without_filters_proposes_nothing() -> None:
    evidence = evidence_of(trained())
    evidence._orders["pot"] = torch.arange(0)
    assert driven(tune(evidence, "pot", (0.1,))) == []
