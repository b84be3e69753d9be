"""What filters respond to: their outputs, whatever follows, and nothing left behind."""

import pytest
import torch
from torch import Tensor, nn

from salmon import FilterIndex, InputError
from salmon.saliency import filter_responses
from tests.networks import PlainNet, batch
from tests.traces import assert_identical, network_state, random_states


def by_hand(network: PlainNet, images: Tensor, layer: int, channel: int) -> list[Tensor]:
    """The output of a convolution of the network, one sample at a time."""
    with torch.no_grad():
        outputs = [network.features[:layer](x) for x in images.split(1)]
        return [network.features[layer](x)[0, channel].clone() for x in outputs]


@pytest.mark.parametrize(("number", "layer", "channel"), [(2, 0, 2), (9, 4, 3), (23, 7, 9)])
def test_maps_are_distances_from_the_usual_output_of_the_filter(
    number: int, layer: int, channel: int
) -> None:
    torch.manual_seed(1)
    network = PlainNet().eval()  # whose activations work in place
    images = batch(5)[0]
    index = FilterIndex.from_model(network)
    state, states = network_state(network), random_states()
    (maps,) = filter_responses(network, images.split(1), index, [number]).values()
    assert_identical(network_state(network), state)
    assert_identical(random_states(), states)
    expected = by_hand(network, images, layer, channel)
    usual = torch.cat([each.flatten() for each in expected]).median()
    for found, each in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, (each - usual).abs(), rtol=1e-4, atol=1e-6)


def test_samples_may_differ_in_size() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    batches = [torch.rand(1, 1, 4, 5), torch.rand(1, 1, 6, 3)]
    found = filter_responses(network.eval(), batches, FilterIndex.from_model(network), [1])
    assert [tuple(each.shape) for each in found[1]] == [(4, 5), (6, 3)]


class Odd(nn.Module):
    """A module that is used twice, one that is not used, and one with a constant output."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(1, 1, 1)
        self.never = nn.Conv2d(1, 1, 1)
        self.constant = nn.Conv2d(1, 1, 1)
        nn.init.zeros_(self.constant.weight)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.twice(self.twice(x)).flatten(1) + self.constant(x).flatten(1)
        return output


def test_filters_without_one_map_are_left_out() -> None:
    network = Odd().eval()
    index = FilterIndex.from_model(network)
    assert filter_responses(network, [torch.rand(1, 1, 3, 3)], index, [0, 1, 2]) == {}
    assert not any(module._forward_hooks for module in network.modules())


def test_networks_in_train_mode_are_refused() -> None:
    network = PlainNet()
    with pytest.raises(InputError, match="eval"):
        filter_responses(network, [], FilterIndex.from_model(network), [0])
