"""Weights used in every way there is: measured like one by one, and the report says how."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from salmon import FilterIndex, InputError
from salmon.saliency import measure
from tests.networks import PlainNet, batch, one_by_one
from tests.traces import assert_identical, network_state


class Using(nn.Module):
    """Uses the weight of a convolution in a way that a function chooses."""

    def __init__(self, use: Callable[[nn.Conv2d, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.conv, x)


def maps(features: Tensor) -> Tensor:
    """Logits of feature maps."""
    return torch.tanh(features).mean((2, 3))


def also_as_a_number(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return maps(conv(x)) * conv.weight.sum()


def multiplied_by_hand(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return torch.einsum("nchw,ocij->no", x, conv.weight).tanh()


def doubled(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return maps(nn.functional.conv2d(x, conv.weight * 2))


def standardised(conv: nn.Conv2d, x: Tensor) -> Tensor:
    weight = nn.functional.batch_norm(
        conv.weight.reshape(1, 4, -1), None, None, training=True
    ).reshape_as(conv.weight)
    return maps(nn.functional.conv2d(x, weight))


def some_rows(conv: nn.Conv2d, x: Tensor) -> Tensor:
    one = nn.functional.conv2d(x, conv.weight[:1])
    rest = nn.functional.conv2d(x, conv.weight[1:], stride=2)
    return torch.cat([maps(one), maps(rest)], 1)


def twice_at_different_sizes(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return maps(conv(x)) + maps(conv(x[..., ::2, ::2]))


def whole_and_derived(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return maps(conv(x)) + maps(nn.functional.conv2d(x, conv.weight.flip(-1)))


def halves_side_by_side(conv: nn.Conv2d, x: Tensor) -> Tensor:
    halves = torch.stack([x[..., :8], x[..., 8:]], 1).flatten(0, 1)  # sample-major
    return torch.as_tensor(maps(conv(halves)).unflatten(0, (len(x), 2)).sum(1))


def halves_a_batch_apart(conv: nn.Conv2d, x: Tensor) -> Tensor:
    halves = torch.cat([x[..., :8], x[..., 8:]])
    return torch.as_tensor(maps(conv(halves)).unflatten(0, (2, len(x))).sum(0))


def samples_in_disorder(conv: nn.Conv2d, x: Tensor) -> Tensor:
    thirds = torch.cat([x[1:], x[:1], x])
    out = maps(conv(thirds))
    return torch.cat([out[len(x) - 1 : len(x)], out[: len(x) - 1]]) + out[len(x) :]


USES: dict[str, tuple[Callable[[nn.Conv2d, Tensor], Tensor], str]] = {
    "also as a number": (also_as_a_number, "one by one (used outside"),
    "multiplied by hand": (multiplied_by_hand, "one by one (used outside"),
    "doubled": (doubled, "in pieces (computed from the weight)"),
    "standardised": (standardised, "in pieces (computed from the weight)"),
    "some rows": (some_rows, "in pieces (2 uses, some of its rows)"),
    "twice": (twice_at_different_sizes, "in pieces (2 uses)"),
    "whole and derived": (whole_and_derived, "in pieces (2 uses"),
    "halves side by side": (halves_side_by_side, "in pieces (several inputs per sample)"),
    "halves a batch apart": (halves_a_batch_apart, "in pieces (several inputs per sample)"),
    "samples in disorder": (samples_in_disorder, "one by one (samples cannot be told apart"),
}


def assert_measured_like_one_by_one(
    network: nn.Module, inputs: Tensor, units: tuple[str, ...] = ("conv",)
) -> list[str]:
    """Compare in float64, also with frozen weights; hand out how each layer was measured."""
    network = network.double().eval()
    inputs = inputs.double()
    targets = torch.arange(len(inputs)) % 4
    index = FilterIndex.from_model(network, units=units)
    exact = one_by_one(network, inputs, targets, index)
    measured = measure(network, inputs, targets, index=index)
    scale = exact.max()
    torch.testing.assert_close(measured.profile, exact, rtol=1e-8, atol=1e-13 * float(scale))
    network.requires_grad_(requires_grad=False)
    before = network_state(network)
    frozen = measure(network, inputs, targets, index=index)
    torch.testing.assert_close(frozen.profile, exact, rtol=1e-8, atol=1e-13 * float(scale))
    assert_identical(network_state(network), before)
    return measured.methods


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("samples", [1, 2, 6])
def test_however_a_weight_is_used(name: str, samples: int) -> None:
    use, method = USES[name]
    methods = assert_measured_like_one_by_one(Using(use), batch(samples)[0])
    if samples == 6:
        assert methods[0].startswith(method)


def parametrised(change: Callable[[nn.Conv2d], Any]) -> nn.Module:
    """A plain network whose convolutions are re-parametrised."""
    network = PlainNet()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            change(module)
    network(torch.randn(4, 3, 16, 16))  # lets spectral norms settle
    return network


PARAMETRISED: dict[str, Callable[[nn.Conv2d], Any]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": lambda conv: parametrizations.orthogonal(conv, orthogonal_map="cayley"),
    "pruned": lambda conv: prune.random_unstructured(conv, "weight", amount=0.3),
    "old spectral norm": nn.utils.spectral_norm,
}


@pytest.mark.parametrize("name", PARAMETRISED)
def test_reparametrised_convolutions(name: str) -> None:
    network = parametrised(PARAMETRISED[name])
    assert len(FilterIndex.from_model(network)) == 24
    methods = assert_measured_like_one_by_one(network, batch()[0])
    assert all(method.startswith("in pieces (computed") for method in methods)


def test_reparametrised_layers_keep_their_names() -> None:
    index = FilterIndex.from_model(parametrised(parametrizations.weight_norm))
    assert index.layers[0].weight == "features.0.parametrizations.weight.original1"
    assert index.layers[0].layer == "features.0"


class Attention(nn.Module):
    """torch's attention in all its forms, images as sequences of rows."""

    def __init__(self, *, batch_first: bool = True, width: int | None = None) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.own = nn.MultiheadAttention(48, 4, batch_first=batch_first)
        self.cross = nn.MultiheadAttention(48, 3, batch_first=batch_first, kdim=width, vdim=width)
        self.width = width or 48
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).flatten(2)  # [N, 16, 48]
        if not self.batch_first:
            x = x.transpose(0, 1)
        own = self.own(x, x, x, need_weights=False)[0]
        other = x[..., : self.width]
        crossed = self.cross(torch.tanh(own), other, other)[0]
        return torch.as_tensor(self.head(crossed).mean(1 if self.batch_first else 0))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("width", [None, 24])
def test_heads_of_torch_attention(batch_first: bool, width: int | None) -> None:
    network = Attention(batch_first=batch_first, width=width)
    methods = assert_measured_like_one_by_one(network, batch()[0], ("heads", "linear"))
    assert methods[0] == "fast"
    index = FilterIndex.from_model(network, units=("heads",))
    assert len(index) == 12 + 9
    assert index.label(4) == "own[K0]"
    assert index.label(12 + 8) == "cross[V2]"


def test_a_sequence_as_long_as_the_batch_is_not_mistaken() -> None:
    for batch_first in (True, False):
        network = Attention(batch_first=batch_first)
        assert_measured_like_one_by_one(network, batch(16)[0], ("heads", "linear"))


class Fused(nn.Module):
    """Attention with one linear layer for queries, keys and values, in windows."""

    def __init__(self, *, windows: int = 1) -> None:
        super().__init__()
        self.num_heads = 4
        self.windows = windows
        self.qkv = nn.Linear(48, 144)
        self.proj = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        x = x.transpose(1, 2).flatten(2)  # [N, 16, 48]
        x = x.unflatten(1, (self.windows, -1)).flatten(0, 1)
        qkv = self.qkv(x).unflatten(2, (3, 4, 12)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*qkv)
        out = self.proj(mixed.transpose(1, 2).flatten(2))
        return torch.as_tensor(out.unflatten(0, (n, -1)).mean((1, 2)))


class Separate(nn.Module):
    """Attention with linear layers of their own, fewer heads for keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = 4, 2
        self.q_proj, self.k_proj = nn.Linear(48, 48), nn.Linear(48, 24)
        self.v_proj, self.out = nn.Linear(48, 24), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).flatten(2)
        q = self.q_proj(x).unflatten(2, (4, 12)).transpose(1, 2)
        k, v = (
            f(x).unflatten(2, (2, 12)).transpose(1, 2).repeat_interleave(2, 1)
            for f in (self.k_proj, self.v_proj)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return torch.as_tensor(self.out(mixed.transpose(1, 2).flatten(2)).mean(1))


@pytest.mark.parametrize("windows", [1, 4])
def test_heads_of_fused_attention(windows: int) -> None:
    network = Fused(windows=windows)
    methods = assert_measured_like_one_by_one(network, batch()[0], ("heads",))
    assert methods == ["fast"]
    index = FilterIndex.from_model(network, units=("heads",))
    assert (len(index), index.layers[0].size) == (12, 12 * 48)
    assert index.label(11) == "qkv[V3]"


def test_heads_of_separate_projections() -> None:
    network = Separate()
    methods = assert_measured_like_one_by_one(network, batch()[0], ("heads", "linear"))
    assert methods == ["fast"] * 4
    index = FilterIndex.from_model(network, units=("heads",))
    assert [layer.filters for layer in index.layers] == [4, 2, 2]
    assert index.label(4) == "k_proj[K0]"


def test_linear_rows_are_opt_in() -> None:
    network = PlainNet()
    index = FilterIndex.from_model(network, units=("conv", "linear"))
    assert len(index) == 24 + 4
    assert index.layers[-1].unit == "linear"
    assert_measured_like_one_by_one(network, batch()[0], ("conv", "linear"))
    with pytest.raises(InputError, match="units is"):
        FilterIndex.from_model(network, units=("neurons",))


def test_layouts_are_found_out_once_for_each_shape() -> None:
    network = Fused(windows=4).eval()
    index = FilterIndex.from_model(network, units=("heads",))
    inputs, targets = batch()
    layouts: dict[Any, Any] = {}
    first = measure(network, inputs, targets, index=index, layouts=layouts).profile
    assert len(layouts) == 1
    again = measure(network, inputs, targets, index=index, layouts=layouts).profile
    assert torch.equal(first, again)
    assert len(layouts) == 1
