"""Pruning and fine-tuning curves against a network computed by hand and a loop of autograd."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from examples.paper import curves
from examples.paper.curves import edit_curves
from salmon import FilterIndex, InputError, Samples, Tails, filter_saliency, fit_tails, rank_filters
from salmon.repairs.predictions import predict
from tests.shifts import some, trained


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
    ranking = torch.tensor([[0, 1]])

    def curve(edit: str) -> torch.Tensor:
        found = edit_curves(network, samples, [ranking], index, edit=edit, rate=0.5, counts=(1, 2))
        assert found.shape == (1, 1, 3, 3)
        return found[0, 0]

    # Without filter 0 the logits are (0, 1), without both (0, 0).
    expected = [0.0, sigmoid(-1) - sigmoid(1), 0.5 - sigmoid(1)]
    predicted, target, corrected = curve("prune").tolist()
    assert predicted == pytest.approx(expected, rel=1e-6)
    assert target == pytest.approx([-e for e in expected], rel=1e-6)
    assert corrected == [0, 1, 0]
    # dL/dw0 = p0 = s(1), dL/dw1 = -p0.
    p0 = sigmoid(1)
    after = [sigmoid(1), sigmoid(1 - 0.5 * p0), sigmoid(1 - p0)]
    assert curve("plain")[0].tolist() == pytest.approx([a - p0 for a in after], rel=1e-6)
    # Steps of half of each weight: logits (1, 1), then (1, 1.5).
    after = [sigmoid(1), 0.5, sigmoid(-0.5)]
    assert curve("normalised")[0].tolist() == pytest.approx([a - p0 for a in after], rel=1e-6)
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
    found = edit_curves(network, wrong, [ranking.filters], index, rate=0.05, counts=(2, 6))
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
            assert float(found[row, 0, 0, column]) == pytest.approx(change, abs=1e-9)
            assert bool(found[row, 0, 2, column]) == bool(after.argmax() == y)


@pytest.mark.parametrize("edit", ["plain", "normalised", "prune"])
def test_the_strongest_effects_are_those_of_a_loop_with_autograd(edit: str) -> None:
    network, samples = trained().double(), some(4, 2, shifted=True)
    samples = Samples(samples.inputs.double(), samples.targets, samples.ids)
    index = FilterIndex.from_model(network)
    weights = [network.get_parameter(layer.weight) for layer in index.layers]
    order = []
    for row in range(len(samples)):
        logits = network(samples.inputs[row : row + 1])
        loss = nn.functional.cross_entropy(logits, samples.targets[row : row + 1])
        effects = []
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            for w, g in zip(weight.detach().flatten(1), gradient.flatten(1), strict=True):
                right = {"plain": g @ g, "normalised": w.norm() * g.norm(), "prune": (w @ g).abs()}
                effects.append(float(right[edit]))
        order.append(torch.tensor(effects).argsort(descending=True)[:5])
    rankings = [None, torch.stack(order)]
    found = edit_curves(network, samples, rankings, index, edit=edit, rate=0.1, counts=(1, 3, 5))
    assert torch.equal(found[:, 0], found[:, 1])
    assert bool(found[:, :, :2, 1:].any(-1).all())


def test_an_edit_or_a_number_of_rankings_that_does_not_fit_is_refused() -> None:
    network, samples = trained(), some(2, 0, shifted=True)
    index = FilterIndex.from_model(network)
    with pytest.raises(InputError, match="one of plain, normalised, prune"):
        edit_curves(network, samples, [torch.tensor([[0], [1]])], index, edit="shrink")
    with pytest.raises(ValueError, match="shorter"):
        edit_curves(network, samples, [torch.tensor([[0]])], index)


class Odd(nn.Module):
    """A network with a plain convolution and one that is read in the way asked for."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first = nn.Conv2d(1, 6, 3, padding="same")
        self.second = nn.Conv2d(6, 6, 3, stride=2, groups=3 if way == "grouped" else 1)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x).relu())
        if self.way == "twice":
            x = self.second(nn.functional.pad(x, (2, 2, 2, 2)))
        x = x.flatten(2).transpose(1, 2)
        return torch.as_tensor(self.head(self.attention(x, x, x)[0].relu().mean(1)))


@pytest.mark.parametrize("edit", ["plain", "normalised", "prune"])
@pytest.mark.parametrize("way", ["plain", "grouped", "twice", "heads"])
def test_edited_networks_in_one_forward_are_those_written_one_by_one(
    way: str, edit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(4)
    network = Odd(way).double().train()
    index = FilterIndex.from_model(network, units=("heads",) if way == "heads" else ("conv",))
    samples = Samples(torch.randn(3, 1, 9, 9).double(), torch.tensor([0, 1, 2]), (0, 1, 2))
    rankings = [
        torch.tensor([[0, 5, 3, 4], [5, 4, -1, -1], [2, 3, 4, 1]]),
        torch.tensor([[1, 2, 0, 5]] * 3),
    ]
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    monkeypatch.setattr(curves, "BATCH", 4)
    found = edit_curves(network, samples, rankings, index, edit=edit, rate=0.2, counts=(1, 3))
    assert network.training
    assert not network._modules["second"]._forward_hooks  # type: ignore[union-attr]
    assert all(torch.equal(kept[name], value) for name, value in network.state_dict().items())
    for row in range(3):
        x, y = samples.inputs[row : row + 1], samples.targets[row : row + 1]
        before = network(x).softmax(1)[0]
        weights = [network.get_parameter(layer.weight) for layer in index.layers]
        loss = nn.functional.cross_entropy(network(x), y)
        gradients = torch.autograd.grad(loss, weights)
        for place, ranking in enumerate(rankings):
            for column, count in ((1, 1), (2, 3)):
                copy = deepcopy(network)
                for number in ranking[row, :count].tolist():
                    if number >= 0:
                        layer, channel = index.locate(number)
                        gradient = gradients[index.layers.index(layer)].reshape(layer.filters, -1)
                        w = copy.get_parameter(layer.weight).data.view(layer.filters, -1)[channel]
                        g = gradient[channel] * 0.2
                        scale = w.norm() / gradient[channel].norm()
                        w -= {"plain": g, "normalised": g * scale, "prune": w}[edit]
                after = copy(x).softmax(1)[0]
                change = (after - before)[[int(before.argmax()), int(y)]].detach()
                torch.testing.assert_close(found[row, place, :2, column], change, rtol=0, atol=1e-9)
