"""Input-space maps are the derivative they claim to be, on every kind of network."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm.models.vision_transformer as timm_vit
import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torchvision.ops import deform_conv2d

from salmon import (
    FilterIndex,
    InputError,
    TailFit,
    Tails,
    UnsupportedError,
    filter_saliency,
    fit_tails,
)
from salmon.filters import FilterLayer
from salmon.saliency import input_saliency, map_of_image
from tests.networks import PlainNet, batch
from tests.traces import assert_identical, network_state, random_states


def fit_of(profile: Tensor) -> TailFit:
    """Moments of some profiles ``[M, F]``; their tails are of no use here."""
    tails = Tails(profile.shape[1])
    tails.update(profile)
    return fit_tails(tails)


def measured(network: nn.Module, index: FilterIndex) -> TailFit:
    """Moments over six samples that no map is made of."""
    images, targets = batch(6, seed=1)
    like = next(network.parameters())
    return fit_of(filter_saliency(network, images.to(like), targets, index))


def some_filters(index: FilterIndex) -> Tensor:
    """``[3, 3]`` filters to boost for three samples, one sample with two of them only."""
    last = len(index) - 1
    return torch.tensor([[0, last, last // 2], [last // 3, 1, -1], [last, 2, 3]])


def filter_means(gradient: Tensor, layer: FilterLayer) -> Tensor:
    """Mean absolute value of each filter, by loops over what belongs to it."""
    if layer.unit == "conv" and layer.transposed_groups:
        channels = len(gradient) // layer.transposed_groups
        blocks = [
            gradient[group * channels : (group + 1) * channels, output]
            for group in range(layer.transposed_groups)
            for output in range(gradient.shape[1])
        ]
    else:
        rows = len(gradient) // layer.filters
        blocks = [gradient[i * rows : (i + 1) * rows] for i in range(layer.filters)]
    return torch.stack([block.abs().sum() / block.numel() for block in blocks])


def by_torch_func(
    network: nn.Module, inputs: Tensor, targets: Tensor, index: FilterIndex, fit: TailFit,
    filters: Sequence[Sequence[int]], boost: float = 100.0,
) -> Tensor:  # fmt: skip
    """The maps by their definition, with ``torch.func`` and nested functions of the input."""
    parameters = {name: value.detach() for name, value in network.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        output = torch.func.functional_call(network, parameters | weights, (x[None].clone(),))
        return nn.functional.cross_entropy(output, y[None])

    def similarity(x: Tensor, y: Tensor, chosen: list[int]) -> Tensor:
        weights = {layer.weight: parameters[layer.weight] for layer in index.layers}
        grads = torch.func.grad(loss)(weights, x, y)
        saliency = torch.cat([filter_means(grads[layer.weight], layer) for layer in index.layers])
        z = (saliency - fit.mean) / torch.where(fit.std > 0, fit.std, 1.0)
        factor = torch.ones_like(z).index_fill(0, torch.tensor(chosen), boost)
        return nn.functional.cosine_similarity(z, z.detach() * factor, dim=0)

    with sdpa_kernel(SDPBackend.MATH):
        maps = [
            torch.func.grad(similarity)(x, y, [number for number in chosen if number >= 0])
            for x, y, chosen in zip(inputs, targets, filters, strict=True)
        ]
    return torch.stack(maps).abs()


class Smooth(nn.Module):
    """Two convolutions without kinks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, stride=3)
        self.second = nn.Conv2d(5, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return nn.functional.softplus(self.second(x)).mean((2, 3))


def test_maps_match_finite_differences() -> None:
    network = Smooth().double().eval()
    index = FilterIndex.from_model(network)
    fit, chosen = measured(network, index), [1, 7]
    inputs, targets = batch(1)
    inputs = inputs[..., :6, :6].double()

    def z_scores(images: Tensor) -> Tensor:
        profile = filter_saliency(network, images, targets.expand(len(images)), index)
        return (profile - fit.mean) / fit.std

    boosted = z_scores(inputs)
    boosted[:, chosen] *= 50
    steps = 1e-5 * torch.eye(inputs.numel(), dtype=torch.float64).view(-1, *inputs.shape[1:])
    up, down = (
        nn.functional.cosine_similarity(z_scores(inputs + sign * steps), boosted)
        for sign in (1, -1)
    )
    expected = ((up - down) / 2e-5).abs().view_as(inputs)
    found = input_saliency(network, inputs, targets, index, fit, torch.tensor([chosen]), boost=50.0)
    assert found.dtype == torch.float64
    # Of the order of the step squared, and rounding of 1e-16 over the step.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8 * float(expected.max()))
    assert float(expected.min()) > 1e-5 * float(expected.max())


def settled() -> PlainNet:
    """BatchNorm statistics of some data."""
    network = PlainNet()
    with torch.no_grad():
        network(torch.randn(16, 3, 16, 16))
    return network


class Up(nn.Module):
    """Transposed convolutions, one in groups, around a shared plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 2, stride=2)
        self.grouped = nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2, output_padding=1)
        self.down = nn.Conv2d(6, 6, 3, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.grouped(torch.tanh(self.up(x))))
        return torch.as_tensor(self.down(torch.sigmoid(self.down(x))).mean((2, 3))[:, :4])


class Attention(nn.Module):
    """torch's attention with and without weights, and a whole encoder, on rows of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.MultiheadAttention(48, 4, batch_first=True)
        self.other = nn.MultiheadAttention(48, 3)
        layer = nn.TransformerEncoderLayer(48, 2, 20, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).flatten(2)  # [N, 16, 48]
        x = x + self.one(x, x, x, need_weights=False)[0]
        x = x.transpose(0, 1)
        x = (x + self.other(x, x, x)[0]).transpose(0, 1)
        return torch.as_tensor(self.head(self.encoder(x).mean(1)))


def torchvision_vit() -> nn.Module:
    network: nn.Module = zoo.VisionTransformer(16, 8, 2, 2, 12, 16, num_classes=4)
    nn.init.normal_(network.get_parameter("heads.head.weight"))  # zero, to begin with
    return network


def torch_timm_vit() -> nn.Module:
    return timm_vit.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=4
    )


def compiled() -> nn.Module:
    network = torch.compile(settled(), backend="aot_eager")
    assert isinstance(network, nn.Module)
    return network


class Recomputed(nn.Module):
    """A checkpointed block."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = settled()
        self.saves = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.saves:
            return torch.as_tensor(self.inner(x))
        hidden = checkpoint(self.inner.features, x, use_reentrant=False)
        return torch.as_tensor(self.inner.head(hidden.flatten(1)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "in-place ReLU, max pooling, BatchNorm": (settled, ("conv", "linear")),
    "frozen": (lambda: settled().requires_grad_(requires_grad=False), ("conv",)),
    "compiled": (compiled, ("conv",)),
    "channels last": (lambda: settled().to(memory_format=torch.channels_last), ("conv",)),
    "recomputed": (Recomputed, ("conv",)),
    "transposed, shared": (Up, ("conv",)),
    "torch's attention": (Attention, ("heads", "linear")),
    "torchvision's ViT": (torchvision_vit, ("conv", "heads")),
    "timm's ViT": (torch_timm_vit, ("conv", "heads")),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_of_all_kinds_of_networks_match_torch_func(name: str) -> None:
    make, units = NETWORKS[name]
    network = make().double().eval()
    index = FilterIndex.from_model(network, units=units)
    fit, filters = measured(network, index), some_filters(index)
    inputs, targets = batch(3)
    inputs = inputs.double()
    found = input_saliency(network, inputs, targets, index, fit, filters)
    plain = getattr(network, "_orig_mod", network)
    if isinstance(plain, Recomputed):
        plain.saves = False  # checkpoints are not for torch.func
    expected = by_torch_func(plain, inputs, targets, index, fit, filters.tolist())
    assert float(expected.amax((1, 2, 3)).min()) > 0
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11 * float(expected.max()))
    assert not found.requires_grad


def job(samples: int = 3) -> tuple[PlainNet, Tensor, Tensor, FilterIndex, TailFit, Tensor]:
    """A network in float64 and all that its maps need."""
    network = settled().double().eval()
    index = FilterIndex.from_model(network)
    inputs, targets = batch(3)
    return (
        network, inputs[:samples].double(), targets[:samples], index, measured(network, index),
        some_filters(index)[:samples],
    )  # fmt: skip


class ManyInputs(nn.Module):
    """Takes images, a factor per image, a whole number per image, and something shared by all."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.net = inner

    def forward(self, x: Tensor, scale: Tensor, turns: Tensor, shared: Any) -> dict[str, Tensor]:
        turned = torch.stack(
            [torch.rot90(i, int(n), (1, 2)) for i, n in zip(x, turns, strict=True)]
        )
        return {"logits": self.net(turned * scale[:, None, None, None] + shared["shift"])}


def test_tuples_and_mappings_keep_their_structure() -> None:
    plain, inputs, targets, plain_index, fit, filters = job()
    network = ManyInputs(plain).eval()
    index = FilterIndex.from_model(network)
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    turns, shared = (
        torch.tensor([0, 3, 1]),
        {"shift": torch.tensor([0.1], dtype=torch.float64), "name": "s"},
    )
    of_tuple, of_mapping = (
        input_saliency(network, given, targets, index, fit, filters)
        for given in (
            (inputs, scale, turns, shared),
            {"shared": shared, "turns": turns, "x": inputs, "scale": scale},
        )
    )
    nothing = {"shift": None, "name": None}
    assert isinstance(of_tuple, tuple)
    assert list(of_mapping) == ["shared", "turns", "x", "scale"]
    assert of_tuple[2:] == (None, nothing)
    assert (of_mapping["turns"], of_mapping["shared"]) == (None, nothing)
    assert torch.equal(of_tuple[0], of_mapping["x"])
    assert torch.equal(of_tuple[1], of_mapping["scale"])

    # By the chain rule, from the maps of what the inner network gets.
    inner = torch.stack(
        [torch.rot90(x, int(n), (1, 2)) for x, n in zip(inputs, turns, strict=True)]
    )
    given = inner * scale[:, None, None, None] + 0.1
    expected = by_torch_func(plain, given, targets, plain_index, fit, filters.tolist())
    back = torch.stack(
        [
            torch.rot90(m * s, -int(n), (1, 2))
            for m, s, n in zip(expected, scale, turns, strict=True)
        ]
    )
    torch.testing.assert_close(of_tuple[0], back, rtol=1e-8, atol=1e-11 * float(back.max()))
    assert of_tuple[1].shape == (3,)
    assert bool((of_tuple[1] > 0).all())


def test_a_batch_gives_each_sample_what_it_gets_alone() -> None:
    network, inputs, targets, index, fit, filters = job()
    together = input_saliency(network, inputs, targets, index, fit, filters)
    for i in range(3):
        part = slice(i, i + 1)
        alone = input_saliency(network, inputs[part], targets[part], index, fit, filters[part])
        assert torch.equal(alone, together[part])


def test_a_filter_named_twice_is_boosted_once_in_any_order() -> None:
    network, inputs, targets, index, fit, _ = job(1)
    maps = [
        input_saliency(network, inputs, targets, index, fit, torch.tensor([row]))
        for row in ([4, 9], [9, -1, 4, 9])
    ]
    assert torch.equal(*maps)


@pytest.mark.parametrize("unit", [2.0**-30, 1e6])
def test_the_unit_of_the_loss_cancels(unit: float) -> None:
    network, inputs, targets, index, fit, filters = job()
    scaled = replace(fit, mean=fit.mean * unit, std=fit.std * unit)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return unit * nn.functional.cross_entropy(output, y, reduction="none")

    one = input_saliency(network, inputs, targets, index, fit, filters)
    other = input_saliency(network, inputs, targets, index, scaled, filters, loss=loss)
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11 * float(one.max()))
    network, inputs = network.float(), inputs.float()
    small = input_saliency(network, inputs, targets, index, scaled, filters, loss=loss)
    assert small.dtype == torch.float32
    # Rounding of float32, where cancellation makes it larger.
    torch.testing.assert_close(small.double(), one, rtol=1e-2, atol=1e-4 * float(one.max()))


def test_constant_filters_count_as_having_a_std_of_1() -> None:
    network, inputs, targets, index, fit, filters = job()
    std = fit.std.clone()
    std[[0, 5]] = torch.tensor([0.0, 1e-13 * float(fit.mean[5])], dtype=torch.float64)
    constant = replace(fit, std=std)
    assert constant.scale[[0, 5]].tolist() == [1.0, 1.0]
    assert torch.equal(constant.scale[6:20], fit.std[6:20])
    found = input_saliency(network, inputs, targets, index, constant, filters)
    by_hand = replace(fit, std=std.index_fill(0, torch.tensor([0, 5]), 1.0))
    expected = by_torch_func(network, inputs, targets, index, by_hand, filters.tolist())
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11 * float(expected.max()))


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_inference_tensors_and_disabled_gradients_change_nothing(
    context: Callable[[], Any],
) -> None:
    network, inputs, targets, index, fit, filters = job()
    expected = input_saliency(network, inputs, targets, index, fit, filters)
    with context():
        copies = (inputs.clone(), targets.clone())
        found = input_saliency(network, *copies, index, fit, filters.clone())
    assert torch.equal(found, expected)
    assert not found.is_inference()


def test_autocast_maps_are_close_to_full_precision_and_float32() -> None:
    network, inputs, targets, index, fit, filters = job()
    network, inputs = network.float(), inputs.float()
    exact = input_saliency(network, inputs, targets, index, fit, filters)

    def low() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    found = input_saliency(network, inputs, targets, index, fit, filters, forward_context=low)
    with low():
        outside = input_saliency(network, inputs, targets, index, fit, filters)
    assert torch.equal(found, outside)
    assert found.dtype == torch.float32
    error = (found - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert 1e-4 < float(error.max()) < 0.5


class Exact(nn.Module):
    """Lets nobody lower its precision."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Flatten(),
            nn.Linear(768, 12),
            nn.Tanh(),
            nn.Linear(12, 8),
            nn.Tanh(),
            nn.Linear(8, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return torch.as_tensor(self.inner(x))


def test_autocast_of_the_caller_does_not_reach_the_derivatives() -> None:
    network = Exact().eval()
    index = FilterIndex.from_model(network, units=("linear",))
    fit, filters = measured(network, index), some_filters(index)
    inputs, targets = batch(3)
    expected = input_saliency(network, inputs, targets, index, fit, filters)
    with torch.autocast("cpu", torch.bfloat16):
        found = input_saliency(network, inputs, targets, index, fit, filters)
    assert torch.equal(found, expected)


class Rooted(nn.Module):
    """Has an infinite slope at zero."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.inner(x.sqrt()))


def test_samples_without_filters_or_with_a_nan_loss_are_nan_and_spoil_no_other() -> None:
    network, inputs, targets, index, fit, filters = job()
    expected = input_saliency(network, inputs, targets, index, fit, filters)
    spoilt, fewer = inputs.clone(), filters.clone()
    spoilt[0, 0, 0, 0] = math.nan
    fewer[1] = -1
    found = input_saliency(network, spoilt, targets, index, fit, fewer)
    assert bool(torch.isnan(found[:2]).all())
    assert torch.equal(found[2], expected[2])
    nowhere = input_saliency(network, inputs, targets, index, fit, filters[:, :0])
    assert bool(torch.isnan(nowhere).all())
    single = replace(fit, samples=1, std=torch.full_like(fit.std, math.nan))
    assert bool(torch.isnan(input_saliency(network, inputs, targets, index, single, filters)).all())


def test_a_map_that_is_infinite_somewhere_is_nan_all_over() -> None:
    network, inputs, targets, index, fit, filters = job()
    inputs = inputs.abs() + 0.1
    inputs[0, 0, 5, 5] = 0
    root = Rooted(network).eval()
    index = FilterIndex.from_model(root)
    found = input_saliency(root, inputs, targets, index, fit, filters)
    assert bool(torch.isnan(found[0]).all())
    assert bool(torch.isfinite(found[1:]).all())


def test_a_nan_loss_with_a_finite_gradient_is_nan_too() -> None:
    network, inputs, targets, index, fit, filters = job()

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, y, reduction="none") + math.nan

    found = input_saliency(network, inputs, targets, index, fit, filters, loss=loss)
    assert bool(torch.isnan(found).all())


def test_no_samples_give_empty_maps() -> None:
    network, inputs, targets, index, fit, filters = job(0)
    found = input_saliency(network, inputs, targets, index, fit, filters)
    assert found.shape == (0, 3, 16, 16)


def same(x: Tensor) -> Tensor:
    return x


class Seeing(nn.Module):
    """Sees what one function makes of its input, and acts on what another makes of that."""

    def __init__(self, see: Callable[[Tensor], Tensor], act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.see = see
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.act(torch.tanh(self.conv(self.see(x)))).mean((2, 3)))


def seen(see: Callable[[Tensor], Tensor] = same, act: Callable[[Tensor], Tensor] = same) -> Tensor:
    """Maps of a network that sees and acts in some way, always with the same weights."""
    torch.manual_seed(0)
    network = Seeing(see, act).eval()
    index = FilterIndex.from_model(network)
    filters = torch.tensor([[0], [1], [2]])
    fit = fit_of(torch.rand(6, 4))
    return torch.as_tensor(input_saliency(network, *batch(3), index, fit, filters))


def test_inputs_without_influence_have_a_map_of_zeros() -> None:
    half = seen(lambda x: x[..., :8])
    assert bool((half[..., :8] > 0).all())
    assert not bool(half[..., 8:].any())
    assert not bool(seen(lambda x: x.detach()).any())
    assert not bool(seen(torch.zeros_like).any())
    assert bool(torch.isnan(seen(lambda x: math.nan * x.detach())).all())  # but for a NaN loss
    # No filter has any influence, only the input.
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    network.add_module("unused", nn.Conv2d(3, 4, 3))
    network.forward = lambda x: network[1](network[0](x))  # type: ignore[method-assign]
    index = FilterIndex.from_model(network.eval())
    filters = torch.tensor([[0], [1], [2]])
    found = input_saliency(network, *batch(3), index, fit_of(torch.rand(6, 4)), filters)
    assert found.shape == (3, 3, 16, 16)
    assert not bool(found.any())


def test_networks_may_change_their_input_in_place() -> None:
    assert torch.equal(seen(lambda x: x.mul_(2)), seen(lambda x: x * 2))
    network, inputs, targets, index, fit, filters = job()
    before = inputs.clone()
    network.features.insert(0, nn.ReLU(inplace=True).eval())
    index = FilterIndex.from_model(network)
    input_saliency(network, inputs, targets, index, fit, filters)
    assert torch.equal(inputs, before)


class Noisy(PlainNet):
    """Draws random numbers in forward, and can fail after them."""

    fails = False

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0 * torch.rand_like(x) + 0 * random.random() + 0 * np.random.rand()  # noqa: NPY002
        logits = super().forward(x)
        if self.fails:
            raise ZeroDivisionError
        return logits


def sdp_flags() -> list[bool]:
    """Which kernels attention may use."""
    return [
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.cudnn_sdp_enabled(),
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_maps_leave_no_trace(fails: bool) -> None:
    network = Noisy()
    inputs, targets = batch(3)
    nn.functional.cross_entropy(network(inputs), targets).backward()
    network.eval().fails = fails
    list(network.parameters())[1].requires_grad_(False)
    network.features[4].requires_grad_(False)
    index = FilterIndex.from_model(network)
    fit, filters = fit_of(torch.rand(6, 24)), some_filters(index)
    given = {"x": inputs.requires_grad_()}
    before = [network_state(network), random_states(), sdp_flags(), torch.is_grad_enabled()]
    if fails:
        with pytest.raises(ZeroDivisionError):
            input_saliency(network, given, targets, index, fit, filters)
    else:
        input_saliency(network, given, targets, index, fit, filters)
    assert_identical(
        [network_state(network), random_states(), sdp_flags(), torch.is_grad_enabled()], before
    )
    assert inputs.requires_grad
    assert inputs.grad is None
    assert inputs._backward_hooks is None
    assert torch.equal(inputs, batch(3)[0])


class Once(torch.autograd.Function):
    """A backward that autograd does not differentiate."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.saved_tensors[0].exp()


class Often(torch.autograd.Function):
    """A backward that autograd differentiates."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.saved_tensors[0].exp()


def flash(x: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return nn.functional.scaled_dot_product_attention(x, x, x)


def deformed(x: Tensor) -> Tensor:
    weight = torch.ones(4, 4, 1, 1)
    return torch.as_tensor(deform_conv2d(x, x.new_zeros(len(x), 2, 14, 14), weight))


def reentrant(x: Tensor) -> Tensor:
    return torch.as_tensor(checkpoint(torch.exp, x, use_reentrant=True))


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (Once.apply, r"\(Once\)"),
        (flash, r"\(scaled_dot_product_flash_attention_for_cpu\)"),
        (deformed, "deform_conv2d"),
        (reentrant, "use_reentrant=False"),
    ],
)
def test_what_cannot_be_differentiated_twice_is_refused_by_name(
    act: Callable[[Tensor], Tensor], name: str
) -> None:
    with pytest.raises(UnsupportedError, match=f"differentiated twice.*{name}"):
        seen(act=act)


@pytest.mark.parametrize("own", [{"act": Often.apply}, {"see": Often.apply}, {"see": Once.apply}])
def test_own_functions_that_need_not_or_can_be_differentiated_twice_are_taken(
    own: dict[str, Callable[[Tensor], Tensor]],
) -> None:
    found, expected = seen(**own), seen(**dict.fromkeys(own, torch.exp))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(found.max()))


def test_errors_of_backward_that_are_not_about_second_derivatives_pass() -> None:
    def fail(_grad: Tensor) -> Tensor:
        raise RuntimeError("out of luck")

    def hooked(x: Tensor) -> Tensor:
        x = x * 1
        x.register_hook(fail)
        return x

    with pytest.raises(RuntimeError, match="out of luck") as caught:
        seen(act=hooked)
    assert not isinstance(caught.value, UnsupportedError)


def test_train_mode_is_refused() -> None:
    network, inputs, targets, index, fit, filters = job()
    network.features[1].train()
    with pytest.raises(InputError, match=r"features\.1 \(BatchNorm2d\) is in train mode"):
        input_saliency(network, inputs, targets, index, fit, filters)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (
            torch.zeros(3, dtype=torch.int64),
            r"filters is torch.int64 of shape \(3,\); int64 \[3, K",
        ),
        (torch.zeros(2, 4, dtype=torch.int64), r"shape \(2, 4\); int64 \[3, K\] is needed"),
        (torch.zeros(3, 4), r"filters is torch.float32"),
        (torch.tensor([[24]] * 3), r"filters lie in 24\.\.24 but index has filters 0\.\.23"),
        (torch.tensor([[-2]] * 3), r"filters lie in -2\.\.-2"),
    ],
)
def test_filters_that_do_not_fit_are_refused(filters: Tensor, message: str) -> None:
    network, inputs, targets, index, fit, _ = job()
    with pytest.raises(InputError, match=message):
        input_saliency(network, inputs, targets, index, fit, filters)


def test_what_does_not_belong_together_is_refused() -> None:
    network, inputs, targets, index, fit, filters = job()
    with pytest.raises(InputError, match="fit has 23 filters but index has 24"):
        input_saliency(network, inputs, targets, index, fit_of(torch.rand(6, 23)), filters)
    with pytest.raises(InputError, match=r"features\.0\.weight but Smooth has nothing there"):
        input_saliency(Smooth().eval(), inputs, targets, index, fit, filters)
    with pytest.raises(InputError, match="targets hold 2 samples but inputs hold"):
        input_saliency(network, inputs, targets[:2], index, fit, filters)
    for boost in (1.0, -3.0, math.nan, math.inf):
        with pytest.raises(InputError, match="a finite factor above 1"):
            input_saliency(network, inputs, targets, index, fit, filters, boost=boost)
    with pytest.raises(InputError, match="no floating-point tensor with 3 rows"):
        input_saliency(network, inputs.to(torch.uint8), targets, index, fit, filters)
    with pytest.raises(InputError, match=r"one loss per sample, \[1\]"):
        input_saliency(
            network, inputs, targets, index, fit, filters, loss=nn.functional.cross_entropy
        )


def test_images_are_clipped_to_their_90th_and_99th_percentile() -> None:
    # 0..100 in disorder: percentile p is p itself.
    values = (torch.arange(101, dtype=torch.float64) * 7) % 101
    gradient = torch.stack([-values, values / 2, torch.zeros_like(values) + 0.5])
    gradient[0, values > 95], gradient[1, values > 95] = 0.5, -values[values > 95]
    gradient[:, values == 0] = 0
    shown = map_of_image(gradient.view(3, 1, 101))
    assert shown.shape == (1, 101)
    by_number = dict(zip(values.int().tolist(), shown[0].tolist(), strict=True))
    assert not any(by_number[number] for number in range(91))
    shares = [by_number[number] for number in range(91, 101)]
    by_hand = [1 / 9, 2 / 9, 1 / 3, 4 / 9, 5 / 9, 2 / 3, 7 / 9, 8 / 9, 1, 1]
    np.testing.assert_allclose(shares, by_hand, rtol=1e-12)


def test_percentiles_between_pixels_are_interpolated() -> None:
    # Percentiles 90 and 99 of 0, 1: at 0.9 and 0.99 of the way.
    shown = map_of_image(torch.tensor([[[0.0, 1.0]]], dtype=torch.float64))
    assert shown.tolist() == [[0.0, 1.0]]
    # Of 0, 10, 20: at positions 1.8 and 1.98, so 18 and 19.8.
    shown = map_of_image(torch.tensor([[[20.0, 0.0, 10.0]]], dtype=torch.float64))
    assert shown.tolist() == [[1.0, 0.0, 0.0]]
    # Of 0..10: positions 9 and 9.9.
    shown = map_of_image(torch.arange(11.0, dtype=torch.float64).view(1, 1, 11))
    np.testing.assert_allclose(shown[0].numpy(), [0.0] * 10 + [1.0], atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 3.5, math.nan, math.inf])
def test_images_of_one_value_are_dark(value: float) -> None:
    shown = map_of_image(torch.full((3, 4, 5), value))
    assert torch.equal(shown, torch.zeros(4, 5))


def test_one_value_that_is_not_finite_darkens_the_image() -> None:
    gradient = torch.rand(3, 4, 5)
    gradient[1, 2, 3] = math.nan
    assert torch.equal(map_of_image(gradient), torch.zeros(4, 5))


def test_half_precision_images_are_shown_in_float32() -> None:
    gradient = torch.rand(3, 8, 8).half()
    shown = map_of_image(gradient)
    assert shown.dtype == torch.float32
    assert (float(shown.min()), float(shown.max())) == (0.0, 1.0)
    assert torch.equal(shown, map_of_image(gradient.float()))


@pytest.mark.parametrize(
    "gradient",
    [torch.rand(4, 5), torch.rand(2, 3, 4, 5), torch.rand(3, 0, 5), torch.ones(1, 2, 2).int()],
)
def test_what_is_no_image_is_refused(gradient: Tensor) -> None:
    with pytest.raises(InputError, match=r"\[C, H, W\] with at least one pixel"):
        map_of_image(gradient)
