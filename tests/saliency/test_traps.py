"""Weights used in every way there is: measured like one by one, and the report says how."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import grad as grad_of
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from salmon import FilterIndex, InputError, UnsupportedError
from salmon.saliency import measure
from salmon.saliency.profile import _layouts
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
    # In one forward, since some of these networks take the batch size into account.
    exact = one_by_one(network, inputs, targets, index, common_forward=True)
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
    assert index.layers[0].weight == "features.0.weight"
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


def test_layouts_are_found_out_once_where_they_cannot_change_unnoticed() -> None:
    network = PlainNet().eval()
    inputs, targets = batch()
    first = measure(network, inputs, targets).profile
    found = dict(_layouts[network].known)
    assert len(found) == 3
    assert torch.equal(measure(network, inputs, targets).profile, first)
    assert _layouts[network].known == found
    assert not _layouts[network].doubted


def test_a_network_is_asked_with_a_few_samples_once_and_not_for_every_size_of_batch() -> None:
    network, seen = PlainNet().eval(), list[int]()
    index = FilterIndex.from_model(network)
    network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    for samples in (16, 16, 11, 3):
        measure(network, *batch(samples), index=index)
    assert seen == [16, 4, 16, 11, 3]


def test_samples_without_a_finite_loss_tell_nothing_of_a_network() -> None:
    network, (images, targets) = Ordered().double().eval(), batch(16)
    broken = images.double()
    broken[:4] = torch.nan
    measure(network, broken, targets)
    assert_measured_like_one_by_one(network, images)


class Ordered(nn.Module):
    """Runs the samples in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.net = PlainNet()

    def forward(self, x: Tensor) -> Tensor:
        order = torch.arange(len(x)).flip(0)
        return torch.as_tensor(self.net(x[order])[order])


def test_samples_in_another_order_are_told_apart_by_the_few_too() -> None:
    methods = assert_measured_like_one_by_one(Ordered(), batch(16)[0])
    assert all(method.startswith("one by one") for method in methods)


class Sequence(nn.Module):
    """Rows of the image through linear layers, in a way that a test chooses."""

    def __init__(self, use: Callable[["Sequence", Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(48, 16), nn.Linear(16, 4)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, x.transpose(1, 2).flatten(2))  # [N, 16, 48]


def in_place_activation(net: Sequence, x: Tensor) -> Tensor:
    return torch.as_tensor(net.second(net.first(x).relu_()).mean(1))


def in_place_on_a_part(net: Sequence, x: Tensor) -> Tensor:
    hidden = net.first(x)
    hidden[..., :8] *= 0.5
    return torch.as_tensor(net.second(torch.tanh(hidden)).mean(1))


def shared_by_all_samples(net: Sequence, x: Tensor) -> Tensor:
    prototypes = net.first(torch.linspace(-1, 1, len(x) * 48, dtype=x.dtype).view(len(x), 48))
    return torch.as_tensor(net.second(torch.tanh(net.first(x).mean(1) @ prototypes.T @ prototypes)))


def positions_before_samples(net: Sequence, x: Tensor) -> Tensor:
    rows = x.unflatten(1, (len(x), -1)) if 16 % len(x) == 0 else x.unsqueeze(1)
    rows = rows.permute(1, 2, 0, 3)  # [H, W, N, C], perhaps with H == N
    return torch.as_tensor(net.second(torch.tanh(net.first(rows))).mean((0, 1)))


def vector_by_vector(net: Sequence, x: Tensor) -> Tensor:
    hidden = torch.stack([net.first(row) for row in x.mean(1)])
    return torch.as_tensor(net.second(torch.tanh(hidden)))


SEQUENCES = [
    in_place_activation, in_place_on_a_part, shared_by_all_samples, positions_before_samples,
    vector_by_vector,
]  # fmt: skip


@pytest.mark.parametrize("use", SEQUENCES)
@pytest.mark.parametrize("samples", [1, 4, 16])
def test_however_a_linear_layer_is_used(
    use: Callable[[Sequence, Tensor], Tensor], samples: int
) -> None:
    assert_measured_like_one_by_one(Sequence(use), batch(samples)[0], ("linear",))


def reversed_order(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return maps(conv(x.flip(0))).flip(0)


def sorted_order(conv: nn.Conv2d, x: Tensor) -> Tensor:
    order = x.mean((1, 2, 3)).argsort()
    return maps(conv(x[order]))[order.argsort()]


def ragged(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Samples with several frames each, of which some have more and some fewer."""
    frames = torch.tensor([5, 4, 3, 2, 2, 2])[: len(x)]
    owner = torch.repeat_interleave(torch.arange(len(x)), frames)
    out = maps(
        conv(x[owner] * torch.linspace(0.5, 2, len(owner), dtype=x.dtype)[:, None, None, None])
    )
    return torch.zeros(len(x), 4, dtype=x.dtype).index_add(0, owner, out)


@pytest.mark.parametrize("use", [reversed_order, sorted_order, ragged])
@pytest.mark.parametrize("samples", [2, 6])
def test_samples_in_another_order_or_number_are_noticed(
    use: Callable[[nn.Conv2d, Tensor], Tensor], samples: int
) -> None:
    methods = assert_measured_like_one_by_one(Using(use), batch(samples)[0])
    assert methods == ["one by one (samples cannot be told apart in its input)"] or samples == 2


class Frames(nn.Module):
    """Videos whose lengths a test sets from batch to batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.lengths = [2, 2, 2]

    def forward(self, x: Tensor) -> Tensor:
        owner = torch.repeat_interleave(torch.arange(3), torch.tensor(self.lengths))
        scale = torch.linspace(0.5, 2, len(owner), dtype=x.dtype)[:, None, None, None]
        out = maps(self.conv(x[owner] * scale))
        return torch.zeros(3, 4, dtype=x.dtype).index_add(0, owner, out)


def test_what_was_found_out_in_one_batch_is_not_believed_in_the_next() -> None:
    network = Frames().double().eval()
    inputs, targets = batch(3)
    index = FilterIndex.from_model(network)
    for lengths in ([2, 2, 2], [1, 2, 3], [3, 2, 1]):
        network.lengths = lengths
        measured = measure(network, inputs.double(), targets, index=index).profile
        exact = one_by_one(network, inputs.double(), targets, index, common_forward=True)
        torch.testing.assert_close(measured, exact, rtol=1e-9, atol=0)


def test_losses_with_gradients_inside_are_differentiated_one_by_one() -> None:
    network = PlainNet().double().eval()
    inputs, targets = batch()
    inputs = inputs.double().requires_grad_()
    index = FilterIndex.from_model(network)

    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network

        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            logits = self.net(x)
            (slope,) = torch.autograd.grad(logits[:, 0].sum(), x, create_graph=True)
            penalty = 100 * slope.square().sum((1, 2, 3))[:, None]
            return torch.as_tensor(logits + penalty * torch.arange(4))

    whole = Penalised().eval()
    index = FilterIndex.from_model(whole)
    measured = measure(whole, inputs, targets, index=index)
    exact = one_by_one(whole, inputs, targets, index)
    torch.testing.assert_close(measured.profile, exact, rtol=1e-8, atol=1e-13)
    assert all(method.startswith("one by one") for method in measured.methods)


class Doubling(torch.autograd.Function):
    """Runs a convolution inside, without a graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return nn.functional.conv2d(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return (
            grad_of.conv2d_input(x.shape, weight, grad),
            2 * grad_of.conv2d_weight(x, weight.shape, grad),
        )


def in_a_function_of_its_own(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return maps(Doubling.apply(x, conv.weight))


def also_without_gradients(conv: nn.Conv2d, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = conv(x).std()
    return torch.as_tensor(maps(conv(x) / 2) + 0 * scale)


def per_sample_by_vmap(conv: nn.Conv2d, x: Tensor) -> Tensor:
    def one(sample: Tensor) -> Tensor:
        return torch.as_tensor(nn.functional.conv2d(sample[None], conv.weight)[0])

    features: Tensor = torch.func.vmap(one)(x)
    return maps(features)


@pytest.mark.parametrize(
    "use", [in_a_function_of_its_own, also_without_gradients, per_sample_by_vmap]
)
def test_operations_that_hide_the_weight_are_measured_all_the_same(
    use: Callable[[nn.Conv2d, Tensor], Tensor],
) -> None:
    assert_measured_like_one_by_one(Using(use), batch()[0])


def test_complex_weights_are_measured_one_by_one() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, dtype=torch.complex128)

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.conv(x.to(torch.complex128)).abs().mean((2, 3)))

    network = Complex().eval()
    inputs, targets = batch()
    index = FilterIndex.from_model(network)
    measured = measure(network, inputs.double(), targets, index=index).profile
    rows = []
    for x, y in zip(inputs.double(), targets, strict=True):
        loss = nn.functional.cross_entropy(network(x[None]), y[None])
        (grad,) = torch.autograd.grad(loss, network.conv.weight)
        rows.append(grad.abs().flatten(1).mean(1))
    torch.testing.assert_close(measured, torch.stack(rows), rtol=1e-9, atol=0)


def test_attention_with_as_many_samples_as_channels() -> None:
    assert_measured_like_one_by_one(Attention(), batch(48)[0], ("heads", "linear"))


def test_a_reentrant_checkpoint_is_refused_with_what_works() -> None:
    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return maps(checkpoint(self.inner, self.stem(x), use_reentrant=True))

    network = Recomputed().eval()
    with pytest.raises(UnsupportedError, match=r"inner\.weight ran without gradients.*re-entrant"):
        measure(network, *batch())
    index = FilterIndex.from_model(network, exclude=["inner"])
    with pytest.raises(UnsupportedError, match="use_reentrant=False"):
        measure(network, *batch(), index=index)
