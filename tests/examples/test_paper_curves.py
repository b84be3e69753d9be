"""Pruning and fine-tuning curves against a network computed by hand and a loop of autograd."""

import math
from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn

from examples.paper import curves
from examples.paper.curves import Step, edit_curves, many_edit_curves, sample_effects
from salmon import (
    FilterIndex,
    InputError,
    Ranking,
    Samples,
    Tails,
    filter_saliency,
    fit_tails,
    rank_filters,
)
from salmon.repairs import Edit, edited
from salmon.repairs.predictions import predict
from tests.shifts import some, trained


def ranking_of(filters: list[list[int]]) -> Ranking:
    numbers = torch.tensor(filters)
    nothing = torch.full(numbers.shape, torch.nan, dtype=torch.float64)
    return Ranking(
        method="pot", filters=numbers, score=nothing, saliency=nothing, log_p=nothing, z=nothing,
        ranked=(numbers >= 0).sum(1),
    )  # fmt: skip


class ByHand(nn.Module):
    """Two filters of one weight each; logits are the filtered pixel: [w0 x, w1 x]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        nn.init.constant_(self.conv.weight, 1.0)
        self.conv.weight.data[0] = 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.conv(x).flatten(1))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_curves_of_a_network_computed_by_hand() -> None:
    # x = 1, true class 1: logits (2, 1), so class 0 is predicted with confidence s(1).
    network = ByHand().eval()
    index = FilterIndex.from_model(network)
    samples = Samples(torch.ones(1, 1, 1, 1), torch.tensor([1]), (0,))
    ranking = ranking_of([[0, 1]])
    pruned = edit_curves(network, samples, ranking, index, edit="prune")
    # Without filter 0 the logits are (0, 1), without both (0, 0).
    expected = [0.0, sigmoid(-1) - sigmoid(1), 0.5 - sigmoid(1)]
    assert pruned.filters == (0, 1, 2)
    assert pruned.predicted_change.tolist() == pytest.approx(expected, rel=1e-6)
    assert pruned.target_change.tolist() == pytest.approx([-e for e in expected], rel=1e-6)
    assert pruned.corrected.tolist() == [0, 1, 0]
    # dL/dw0 = p0 = s(1), dL/dw1 = -p0.
    tuned = edit_curves(network, samples, ranking, index, rate=0.5)
    p0 = sigmoid(1)
    after = [sigmoid(1), sigmoid(1 - 0.5 * p0), sigmoid(1 - p0)]
    assert tuned.predicted_change.tolist() == pytest.approx([a - p0 for a in after], rel=1e-6)
    normalised = edit_curves(network, samples, ranking, index, edit="normalised", rate=0.5)
    # Steps of half of each weight: logits (1, 1), then (1, 1.5).
    after = [sigmoid(1), 0.5, sigmoid(-0.5)]
    assert normalised.predicted_change.tolist() == pytest.approx([a - p0 for a in after], rel=1e-6)
    assert float(network.conv.weight.detach()[0]) == 2.0


def test_curves_are_those_of_a_loop_with_autograd() -> None:
    network, reference = trained().double(), some(200, 1, shifted=False)
    new = some(40, 2, shifted=True)
    new = Samples(new.inputs.double(), new.targets, new.ids)
    wrong = new.take((~predict(network, new, 64).right).nonzero().squeeze(1))
    index = FilterIndex.from_model(network)
    tails = Tails(len(index))
    tails.update(filter_saliency(network, reference.inputs.double(), reference.targets, index))
    profile = filter_saliency(network, wrong.inputs, wrong.targets, index)
    ranking = rank_filters(profile, fit_tails(tails), "pot", top_k=6)
    found = edit_curves(network, wrong, ranking, index, rate=0.05, counts=(2, 6))
    for row in range(len(wrong)):
        for column, count in ((1, 2), (2, 6)):
            copy = trained().double()
            x, y = wrong.inputs[row : row + 1], wrong.targets[row : row + 1]
            logits = copy(x)
            first = int(logits.argmax())
            before = logits.softmax(1)[0].detach()
            weights = [copy.get_parameter(layer.weight) for layer in index.layers]
            gradients = torch.autograd.grad(nn.functional.cross_entropy(logits, y), weights)
            with torch.no_grad():
                for number in ranking.filters[row, :count].tolist():
                    if number >= 0:
                        layer = int(index.layer_of[number])
                        channel = number - index.starts[layer]
                        weights[layer][channel] -= 0.05 * gradients[layer][channel]
                after = copy(x).softmax(1)[0]
            change = float(after[first] - before[first])
            assert float(found.each_predicted[row, column]) == pytest.approx(change, abs=1e-9)
            assert bool(found.each_corrected[row, column]) == bool(after.argmax() == y)


def test_effects_are_those_of_a_loop_with_autograd() -> None:
    network, samples = trained().double(), some(4, 2, shifted=True)
    samples = Samples(samples.inputs.double(), samples.targets, samples.ids)
    index = FilterIndex.from_model(network)
    found = sample_effects(network, samples, index, ("plain", "normalised", "prune"))
    weights = [network.get_parameter(layer.weight) for layer in index.layers]
    for row in range(len(samples)):
        logits = network(samples.inputs[row : row + 1])
        loss = nn.functional.cross_entropy(logits, samples.targets[row : row + 1])
        gradients = torch.autograd.grad(loss, weights)
        for number in range(len(index)):
            layer = int(index.layer_of[number])
            channel = number - index.starts[layer]
            w, g = weights[layer][channel].detach().flatten(), gradients[layer][channel].flatten()
            right = {"plain": g @ g, "normalised": w.norm() * g.norm(), "prune": (w @ g).abs()}
            for kind, effect in right.items():
                assert float(found[kind][row, number]) == pytest.approx(float(effect), rel=1e-9)


@pytest.mark.parametrize("kind", ["plain", "normalised"])
def test_small_steps_have_their_first_order_effects(kind: str) -> None:
    network, one = trained().double(), some(1, 2, shifted=True)
    one = Samples(one.inputs.double(), one.targets, one.ids)
    index = FilterIndex.from_model(network)
    effects = sample_effects(network, one, index, (kind,))[kind][0]
    best = int(effects.argmax())
    found = edit_curves(network, one, ranking_of([[best]]), index, edit=kind, rate=1e-6)
    p = float(network(one.inputs).softmax(1)[0, int(one.targets)].detach())
    lowered = math.log1p(float(found.target_change[1]) / p)
    assert lowered == pytest.approx(1e-6 * float(effects[best]), rel=1e-4)


def test_arguments_that_do_not_fit_are_refused() -> None:
    network, samples = trained(), some(2, 0, shifted=True)
    index = FilterIndex.from_model(network)
    with pytest.raises(InputError, match="one of plain, normalised, prune"):
        edit_curves(network, samples, ranking_of([[0], [1]]), index, edit="shrink")
    with pytest.raises(InputError, match="2 samples and rankings of 1"):
        edit_curves(network, samples, ranking_of([[0]]), index)
    with pytest.raises(InputError, match="one of plain, normalised, prune"):
        sample_effects(network, samples, index, ("shrink",))


class Odd(nn.Module):
    """A network with a plain convolution and one that is read in the way asked for."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first = nn.Conv2d(1, 6, 3, padding="same")
        self.second = nn.Conv2d(6, 6, 3, stride=2, groups=3 if way == "grouped" else 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x).relu())
        if self.way == "twice":
            x = self.second(nn.functional.pad(x, (2, 2, 2, 2)))
        if self.way == "penalty":
            x = x * self.second.weight.square().mean()
        return torch.as_tensor(self.head(x.relu().mean((2, 3))))


@pytest.mark.parametrize("way", ["plain", "grouped", "twice", "penalty"])
def test_edited_networks_in_one_forward_are_those_written_one_by_one(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(4)
    network = Odd(way).double().eval()
    index = FilterIndex.from_model(network)
    samples = Samples(torch.randn(3, 1, 9, 9).double(), torch.tensor([0, 1, 2]), (0, 1, 2))
    rankings = {
        "a": ranking_of([[0, 7, 3, 11], [5, 4, -1, -1], [8, 9, 10, 11]]),
        "b": ranking_of([[1, 2, 6, 7]] * 3),
    }
    steps = [Step("plain", 0.2), Step("normalised", 0.1), Step("prune")]
    writes = []

    def noted(model: nn.Module, edit: Edit) -> AbstractContextManager[None]:
        writes.append(1)
        return edited(model, edit)

    monkeypatch.setattr(curves, "edited", noted)
    found = many_edit_curves(network, samples, rankings, index, steps, counts=(1, 3), batch_size=5)
    assert bool(writes) == (way != "plain")  # weights are written only where they have to be
    monkeypatch.setattr(curves, "_joined_logits", lambda *_: None)
    expected = many_edit_curves(network, samples, rankings, index, steps, counts=(1, 3))
    assert list(found) == [(name, step) for name in rankings for step in steps]
    for key, curve in found.items():
        for values in ("each_predicted", "each_target"):
            torch.testing.assert_close(
                getattr(curve, values), getattr(expected[key], values), rtol=0, atol=1e-12
            )
        assert torch.equal(curve.each_corrected, expected[key].each_corrected)
        assert not bool(curve.each_predicted[:, 0].any())
        assert bool(curve.each_target[:, 1:].any())


def test_a_weight_that_turns_out_to_be_read_otherwise_is_written() -> None:
    class Moody(Odd):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.way = "twice" if bool(x.mean() > 0) else "plain"
            return super().forward(x)

    network = Moody("plain").double().eval()
    index = FilterIndex.from_model(network)
    inputs = torch.stack([torch.full((1, 9, 9), value) for value in (-1.0, 1.0)]).double()
    samples = Samples(inputs, torch.tensor([0, 1]), (0, 1))
    ranking = ranking_of([[0, 7], [8, 6]])
    found = edit_curves(network, samples, ranking, index, rate=0.3)
    for row in range(2):
        one = samples.take(torch.tensor([row]))
        alone = edit_curves(network, one, ranking.take(torch.tensor([row])), index, rate=0.3)
        torch.testing.assert_close(found.each_target[row], alone.each_target[0])
