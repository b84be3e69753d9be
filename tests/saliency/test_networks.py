"""Known networks, random weights: each verified against one-by-one autograd in float64."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, nn

import salmon
from examples.networks import NETWORKS, TIMM_NETWORKS, Network, check
from salmon import FilterIndex, InputError, VerificationError, coverage, verify
from tests.networks import PlainNet, batch

QUICK = {"resnet18", "googlenet", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x1_0"}


def slow_if_large(networks: Sequence[Network]) -> list[Any]:
    return [
        pytest.param(each, id=each.name, marks=[] if each.name in QUICK else pytest.mark.slow)
        for each in networks
    ]


@pytest.mark.parametrize("network", slow_if_large(NETWORKS))
def test_a_known_network_is_measured_exactly_and_fast(network: Network) -> None:
    table, difference = check(network)
    assert difference < 1e-8
    assert {row.how for row in table.rows if row.filters} <= {"fast", "no influence on the loss"}


@pytest.mark.parametrize("network", slow_if_large(TIMM_NETWORKS))
def test_timm_networks_are_measured_exactly(network: Network) -> None:
    pytest.importorskip("timm")
    table, difference = check(network)
    assert difference < 1e-8
    hows = {row.how for row in table.rows if row.filters}
    assert hows <= {"fast", "in pieces (computed from the weight)"}
    assert ("in pieces (computed from the weight)" in hows) == ("standardised" in network.name)


def test_vit_b_16_has_432_heads() -> None:
    index = FilterIndex.from_model(zoo.vit_b_16(), units=("heads",))
    assert len(index) == 432
    assert {layer.size for layer in index.layers} == {64 * 768}
    assert index.label(0) == "encoder.layers.encoder_layer_0.self_attention[Q0]"


def test_coverage_accounts_for_every_parameter() -> None:
    network = PlainNet().eval()
    index = FilterIndex.from_model(network, exclude=["features.7"])
    table = coverage(network, *batch(), index)
    assert {row.parameter: (row.filters, row.how) for row in table.rows} == {
        "features.0.weight": (6, "fast"),
        "features.1.weight": (0, "holds no filters"),
        "features.1.bias": (0, "holds no filters"),
        "features.4.weight": (8, "fast"),
        "features.4.bias": (0, "holds no filters"),
        "features.7.weight": (0, "left out by include= or exclude="),
        "features.7.bias": (0, "holds no filters"),
        "head.1.weight": (0, "left out; units= has no 'linear'"),
        "head.1.bias": (0, "holds no filters"),
    }
    assert table.summary() == "14 filters in 2 weights measured (2 fast); 7 parameters left out"
    assert "| features.0.weight | 6x3x3x3 | 6 | fast |" in str(table)


def test_long_tables_show_first_what_is_not_plain() -> None:
    table = coverage(
        PlainNet().eval(), *batch(), FilterIndex.from_model(PlainNet(), exclude=["*.7"])
    )
    short = table.markdown(most=2)
    assert "features.7.weight" in short
    assert "head.1.weight" in short
    assert "(7 more rows are not shown.)" in short


class Unused(PlainNet):
    """Has a convolution that forward never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Conv2d(3, 2, 1)


def test_weights_without_influence_have_saliency_zero_and_are_named() -> None:
    network = Unused().eval()
    table = coverage(network, *batch())
    assert {row.how for row in table.rows if row.parameter == "auxiliary.weight"} == {
        "no influence on the loss"
    }
    assert not salmon.filter_saliency(network, *batch())[:, -2:].any()


class Mixing(PlainNet):
    """Subtracts the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits - 0.5 * logits.mean(0)


def test_verify_finds_networks_that_mix_their_samples() -> None:
    with pytest.raises(VerificationError, match="Samples may influence each other"):
        verify(Mixing().eval(), *batch())


def test_verify_leaves_the_network_alone_and_takes_it_as_it_is_when_asked() -> None:
    network = PlainNet().eval()
    assert max(verify(network, *batch()).values()) < 1e-10
    assert next(network.parameters()).dtype == torch.float32
    rounded = verify(network, *batch(), dtype=None, tolerance=1e-3)
    assert 0 < max(rounded.values()) < 1e-3
    with pytest.raises(VerificationError):
        verify(network, *batch(), dtype=None, tolerance=1e-12)


def test_verify_refuses_what_cannot_be_measured() -> None:
    with pytest.raises(InputError, match="train mode"):
        verify(PlainNet(), *batch())
