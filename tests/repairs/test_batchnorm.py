"""BatchNorm statistics of the new data: what they are, how they are blended, and in which channels.

The reference for them is torch's own cumulative average, of a copy of the network in train mode.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from salmon.repairs import edited
from salmon.repairs.edit import state_of
from salmon.repairs.remedies import batchnorm
from salmon.repairs.remedies.batchnorm import BLENDS, SHARES, new_statistics
from tests.evidences import ByKeyword, assert_same, driven, evidence_of, trial_of
from tests.shifts import CLASSES, trained
from tests.traces import assert_identical, network_state, random_states


class Scrambled(nn.Module):
    """Layers in another order than the data take; a norm that follows no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.second_norm = nn.BatchNorm2d(40)
        self.first_norm = nn.BatchNorm2d(40)
        self.second = nn.Conv2d(40, 40, 3)
        self.first = nn.Conv2d(1, 40, 3)
        self.input_norm = nn.BatchNorm2d(1)
        self.sum_norm = nn.BatchNorm2d(40)
        self.head = nn.Linear(40, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        found = torch.relu(self.first_norm(self.first(self.input_norm(inputs))))
        found = found[..., 1:-1, 1:-1] + torch.relu(self.second_norm(self.second(found)))
        logits: Tensor = self.head(self.sum_norm(found).mean((2, 3)))
        return logits


def scrambled() -> Scrambled:
    torch.manual_seed(0)
    return Scrambled().eval()


def cumulative(network: nn.Module, inputs: Tensor) -> dict[str, nn.BatchNorm2d]:
    """The norms of a copy of a network, with the statistics of one batch."""
    copy = deepcopy(network).eval()
    norms = {n: m for n, m in copy.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for norm in norms.values():
        norm.train().reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        copy(inputs)
    return norms


@pytest.mark.parametrize("make", [trained, scrambled])
def test_statistics_are_those_of_train_mode(make: Callable[[], nn.Module]) -> None:
    network = make()
    evidence = evidence_of(network, batch_size=1000)  # one batch, as there
    wanted = cumulative(network, evidence.new.samples.inputs)
    found = {norm.name: norm.statistics() for norm in new_statistics(evidence)}
    assert found.keys() == wanted.keys()
    for name, (mean, variance) in found.items():
        for value, running in (
            (mean, wanted[name].running_mean), (variance, wanted[name].running_var),
        ):  # fmt: skip
            assert running is not None
            torch.testing.assert_close(value.float(), running, rtol=1e-5, atol=1e-5)


def test_the_first_layer_sees_all_batches_as_one() -> None:
    network = trained()
    evidence = evidence_of(network, batch_size=17)  # the last one of 120 holds one sample
    with torch.no_grad():
        made = network[0](evidence.new.samples.inputs[:119]).double()
    whole = made.transpose(0, 1).flatten(1)
    mean, variance = new_statistics(evidence)[0].statistics()
    assert len(evidence.new.samples) == 120
    torch.testing.assert_close(mean, whole.mean(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(variance, whole.var(1, correction=1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [trained, scrambled])
def test_buffers_are_blended_in_all_channels(make: Callable[[], nn.Module]) -> None:
    network = make()
    evidence = evidence_of(network)
    new = {norm.name: norm.statistics() for norm in new_statistics(evidence)}
    before = {name: value.clone() for name, value in state_of(network).items()}
    proposals = [p for p in driven(batchnorm(evidence, "random")) if p.order == "all"]
    assert [p.how for p in proposals] == [f"{blend:.0%} new" for blend in BLENDS]
    for blend, proposal in zip(BLENDS, proposals, strict=True):
        assert proposal.edit.filters == 0
        with edited(network, proposal.edit):
            after = {name: value.clone() for name, value in state_of(network).items()}
        for name, (mean, variance) in new.items():
            for buffer, value in (("running_mean", mean), ("running_var", variance)):
                old, found = (state.pop(f"{name}.{buffer}") for state in (dict(before), after))
                wanted = (1 - blend) * old + blend * value.float()
                torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
        assert_identical(after, {name: before[name] for name in after})


@pytest.mark.parametrize(
    ("make", "norms"),
    [
        (trained, {"0": "1", "3": "4"}),
        (scrambled, {"first": "first_norm", "second": "second_norm"}),
    ],
)
def test_only_channels_of_chosen_filters_are_blended_at_first(
    make: Callable[[], nn.Module], norms: dict[str, str]
) -> None:
    evidence = evidence_of(make())
    wanted: dict[str, list[int]] = {}
    for number in evidence.first("spread:random", SHARES[0]).sort().values.tolist():
        layer, channel = evidence.index.locate(number)
        for buffer in ("running_mean", "running_var"):
            wanted.setdefault(f"{norms[layer.layer]}.{buffer}", []).append(channel)
    proposals = driven(batchnorm(evidence, "spread:random"))
    assert [p.order for p in proposals] == ["spread:random"] * len(BLENDS) + ["all"] * len(BLENDS)
    for few, all_of_them in zip(proposals[: len(BLENDS)], proposals[len(BLENDS) :], strict=True):
        assert few.how == all_of_them.how
        whole = {change.layer.weight: change.values for change in all_of_them.edit.changes}
        assert {c.layer.weight: c.channels.tolist() for c in few.edit.changes} == wanted
        for change in few.edit.changes:
            assert torch.equal(change.values, whole[change.layer.weight][change.channels])


def test_blends_are_raised_until_a_trial_is_given_up_or_loses_too_much() -> None:
    evidence = evidence_of(trained())
    margin = evidence.settings.margin
    for lost, complete, tried in (
        (0.0, False, 1), (2.1 * margin, True, 1), (1.9 * margin, True, len(BLENDS)),
    ):  # fmt: skip
        verdict = partial(trial_of, lost=lost, complete=complete)
        proposals = driven(batchnorm(evidence, "random"), verdict)
        hows = [f"{blend:.0%} new" for blend in BLENDS[:tried]]
        assert [proposal.how for proposal in proposals] == hows * len(SHARES)


def test_inputs_given_by_keyword_are_seen() -> None:
    found, wanted = (
        driven(batchnorm(evidence_of(network), "spread:random"))
        for network in (ByKeyword(*trained()).eval(), trained())
    )
    assert len(wanted) == len(SHARES) * len(BLENDS)
    for one, other in zip(found, wanted, strict=True):
        assert (one.order, one.how) == (other.order, other.how)
        assert_same(one.edit, other.edit)


@pytest.mark.parametrize("training", [False, True])
def test_the_network_is_left_as_it_was(*, training: bool) -> None:
    network = trained().train(training)
    evidence = evidence_of(network)
    before = network_state(network), random_states()
    driven(batchnorm(evidence, "random"))
    assert_identical((network_state(network), random_states()), before)


def test_the_network_is_left_as_it_was_when_a_forward_fails() -> None:
    network = trained().train()
    evidence = evidence_of(network)
    before = network_state(network), random_states()

    def fail(module: nn.Module, inputs: object) -> None:
        raise RuntimeError("on the way")

    hook = network[5].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on the way"):
        new_statistics(evidence)
    hook.remove()
    assert_identical((network_state(network), random_states()), before)


def test_networks_without_statistics_propose_nothing() -> None:
    torch.manual_seed(0)
    for norm in (nn.Identity(), nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4)):
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(16, CLASSES),
        )  # fmt: skip
        assert driven(batchnorm(evidence_of(network), "random")) == []
