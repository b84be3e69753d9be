"""The profile of a batch equals one autograd call per sample, on every kind of network."""

import gc
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from salmon import FilterIndex, InputError, UnsupportedError, filter_saliency
from salmon.saliency import measure
from tests.networks import PlainNet, batch, layer_relative_error, one_by_one
from tests.traces import assert_identical, network_state, random_states

ZOO = {
    "resnet18": zoo.resnet18,
    "vgg11": zoo.vgg11,
    "mobilenet_v3_small": zoo.mobilenet_v3_small,
    "shufflenet_v2_x0_5": zoo.shufflenet_v2_x0_5,
    "densenet121": zoo.densenet121,
    "googlenet": lambda num_classes: zoo.googlenet(num_classes=num_classes, init_weights=False),
}


def settled(network: nn.Module) -> nn.Module:
    """The network in eval mode, with BatchNorm statistics of some data."""
    network.train()
    with torch.no_grad():
        network(torch.randn(8, 3, 40, 40))
    return network.eval()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "vgg11" else []) for n in ZOO]
)
def test_profiles_of_known_networks_match_one_by_one(name: str) -> None:
    network = settled(ZOO[name](num_classes=5))
    index = FilterIndex.from_model(network)
    inputs, targets = torch.randn(4, 3, 40, 40), torch.tensor([0, 3, 4, 1])
    # Rounded otherwise, a few activations are on the other side of zero.
    inputs = inputs.to(memory_format=torch.channels_last)
    exact = one_by_one(network, inputs, targets, index, common_forward=True)
    profile = filter_saliency(network, inputs, targets, index)
    assert profile.dtype == torch.float32
    assert layer_relative_error(profile, exact, index) < 1e-5
    network = network.double()
    exact = one_by_one(network, inputs.double(), targets, index)
    profile = filter_saliency(network, inputs.double(), targets, index)
    assert profile.dtype == torch.float64
    # Differences of rounding relative to each filter, which cancellation makes larger in depth.
    torch.testing.assert_close(profile, exact, rtol=1e-9, atol=0)


class SequenceNet(nn.Module):
    """1d convolutions of all paddings."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(3, 6, 4, padding="same")
        self.b = nn.Conv1d(6, 8, 3, padding=1, padding_mode="circular", stride=2)
        self.c = nn.Conv1d(8, 8, 3, padding="valid", groups=4)
        self.d = nn.ConvTranspose1d(8, 5, 3, stride=2, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.tanh(self.a(x.flatten(2))))
        return torch.as_tensor(self.d(torch.tanh(self.c(x))).mean(2))


class VolumeNet(nn.Module):
    """3d convolutions, one depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv3d(1, 4, 3, stride=(1, 2, 2), padding=1)
        self.b = nn.Conv3d(4, 4, (1, 3, 3), groups=4, dilation=(1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.b(torch.relu(self.a(x.unsqueeze(1)))).mean((2, 3, 4)))


class Looped(nn.Module):
    """One convolution module called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = torch.tanh(self.again(x))
            x = nn.functional.max_pool2d(x, 2)
        return x.flatten(1)[:, :4]


class Functional(nn.Module):
    """Weights used through functions, also under keyword names and frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3)
        self.two = nn.Conv2d(4, 4, 3, bias=False)
        self.one.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(x, self.one.weight, stride=2)
        x = nn.functional.conv2d(weight=self.two.weight, input=x.relu_(), padding=(1, 0))
        return x.mean((2, 3))


class TwoStreams(nn.Module):
    """Branches without a common convolution, one of them behind a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3)
        self.mix = nn.Linear(16, 16)
        self.right = nn.Conv2d(3, 4, 5)
        self.unused = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        right = nn.functional.relu(self.right(self.mix(x)), inplace=True)
        return torch.as_tensor(self.left(x).mean((2, 3)) + right.amax((2, 3)))


class Recomputed(nn.Module):
    """A checkpointed block."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = PlainNet()

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.inner.features, x, use_reentrant=False)
        return torch.as_tensor(self.inner.head(hidden.flatten(1)))


def frozen() -> nn.Module:
    return PlainNet().requires_grad_(requires_grad=False)


def compiled() -> nn.Module:
    network = torch.compile(PlainNet(), backend="eager")
    assert isinstance(network, nn.Module)
    return network


class Viewing(PlainNet):
    """Takes it that memory is in the order of the dimensions, as many tutorials do."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).view(len(x), -1))
        return logits


TRAPS: dict[str, Callable[[], nn.Module]] = {
    "plain, in-place activations": PlainNet,
    "1d": SequenceNet,
    "3d": VolumeNet,
    "called in a loop": Looped,
    "functional": Functional,
    "two streams": TwoStreams,
    "recomputed": Recomputed,
    "frozen": frozen,
    "compiled": compiled,
    "views of features": Viewing,
    "channels last": lambda: PlainNet().to(memory_format=torch.channels_last),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # torch's
@pytest.mark.parametrize("name", TRAPS)
def test_profiles_of_awkward_networks_match_one_by_one(name: str) -> None:
    network = TRAPS[name]().double().eval()
    index = FilterIndex.from_model(network)
    inputs, targets = batch()
    inputs = inputs.double()
    profile = filter_saliency(network, inputs, targets, index)
    plain = getattr(network, "_orig_mod", network).requires_grad_()
    exact = one_by_one(plain, inputs, targets, index)
    torch.testing.assert_close(profile, exact, rtol=1e-10, atol=0)
    assert profile.shape == (6, len(index))


def test_a_batch_gives_each_sample_what_it_gets_alone() -> None:
    network = PlainNet().double().eval()
    inputs, targets = batch(7)
    together = filter_saliency(network, inputs.double(), targets)
    alone = [
        filter_saliency(network, x[None].double(), y[None])
        for x, y in zip(inputs, targets, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-10, atol=0)


def test_no_samples_give_an_empty_profile() -> None:
    network = PlainNet().eval()
    profile = filter_saliency(network, torch.empty(0, 3, 16, 16), torch.empty(0, dtype=torch.long))
    assert profile.shape == (0, 24)


def test_saliency_scales_with_the_loss() -> None:
    network = PlainNet().double().eval()
    inputs, targets = batch()
    losses = {
        unit: lambda output, y, u=unit: u * nn.functional.cross_entropy(output, y, reduction="none")
        for unit in (1.0, 2.0**-30)
    }
    one, other = (
        filter_saliency(network, inputs.double(), targets, loss=f) for f in losses.values()
    )
    torch.testing.assert_close(one * 2.0**-30, other, rtol=1e-10, atol=0)


def test_class_probabilities_and_own_losses_are_taken() -> None:
    network = PlainNet().double().eval()
    inputs, targets = batch()
    soft = nn.functional.one_hot(targets, 4).double() * 0.9 + 0.025
    index = FilterIndex.from_model(network)
    profile = filter_saliency(network, inputs.double(), soft, index)
    exact = one_by_one(network, inputs.double(), soft, index)
    torch.testing.assert_close(profile, exact, rtol=1e-10, atol=0)
    own = filter_saliency(
        network, inputs.double(), soft, index, loss=lambda out, y: (out - y).square().sum(1)
    )
    exact = one_by_one(
        network, inputs.double(), soft, index, loss=lambda out, y: (out - y).square().sum()
    )
    torch.testing.assert_close(own, exact, rtol=1e-10, atol=0)


class ManyInputs(nn.Module):
    """Takes two arguments and returns a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.net = PlainNet()

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(x * scale[:, None, None, None])}


def test_tuples_and_mappings_of_inputs_are_passed_on() -> None:
    network = ManyInputs().eval()
    inputs, targets = batch()
    scale = torch.rand(6)
    positional = filter_saliency(network, (inputs, scale), targets)
    named = filter_saliency(network, {"scale": scale, "x": inputs}, targets)
    assert torch.equal(positional, named)


def test_autocast_profiles_are_close_to_full_precision_and_float32() -> None:
    network = PlainNet().eval()
    index = FilterIndex.from_model(network)
    inputs, targets = batch()
    exact = one_by_one(network, inputs, targets, index)
    low = measure(
        network, inputs, targets, index=index,
        forward_context=lambda: torch.autocast("cpu", torch.bfloat16),
    ).profile  # fmt: skip
    assert low.dtype == torch.float32
    assert 1e-6 < layer_relative_error(low, exact, index) < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        outside = filter_saliency(network, inputs, targets, index)
    assert torch.equal(outside, low)


def test_inference_tensors_are_taken() -> None:
    network = PlainNet().eval()
    inputs, targets = batch()
    expected = filter_saliency(network, inputs, targets)
    with torch.inference_mode():
        profile = filter_saliency(network, inputs.clone(), targets.clone())
    assert torch.equal(profile, expected)
    assert not profile.is_inference()


def test_a_sample_with_a_nan_loss_spoils_no_other() -> None:
    network = PlainNet().eval()
    inputs, targets = batch()
    expected = filter_saliency(network, inputs, targets)
    spoilt = inputs.clone()
    spoilt[2, 0, 0, 0] = math.nan
    profile = filter_saliency(network, spoilt, targets)
    assert bool(torch.isnan(profile[2]).all())
    rest = [0, 1, 3, 4, 5]
    torch.testing.assert_close(profile[rest], expected[rest], rtol=1e-5, atol=0)


class Noisy(PlainNet):
    """Draws random numbers in forward, and can fail after them."""

    fails = False

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0 * torch.rand_like(x) + 0 * random.random() + 0 * np.random.rand()  # noqa: NPY002
        logits = super().forward(x)
        if self.fails:
            raise ZeroDivisionError
        return logits


@pytest.mark.parametrize("fails", [False, True])
def test_a_measurement_leaves_no_trace(fails: bool) -> None:
    network = Noisy()
    inputs, targets = batch()
    nn.functional.cross_entropy(network(inputs), targets).backward()
    network.eval().fails = fails
    list(network.parameters())[1].requires_grad_(False)
    before = [network_state(network), random_states()]
    if fails:
        with pytest.raises(ZeroDivisionError):
            filter_saliency(network, inputs, targets)
    else:
        filter_saliency(network, inputs, targets)
    assert_identical([network_state(network), random_states()], before)


def test_memory_is_given_back() -> None:
    network = PlainNet().eval()
    inputs, targets = batch()

    def tensors() -> int:
        gc.collect()
        return sum(type(o) in (Tensor, nn.Parameter) for o in gc.get_objects())

    filter_saliency(network, inputs, targets)
    before = tensors()
    for _ in range(3):
        filter_saliency(network, inputs, targets)
    assert tensors() <= before


def test_train_mode_is_refused() -> None:
    network = PlainNet().eval()
    network.features[1].train()
    with pytest.raises(InputError, match=r"features\.1 \(BatchNorm2d\) is in train mode"):
        filter_saliency(network, *batch())


def test_batch_norm_of_the_batch_is_refused() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()
    ).eval()
    with pytest.raises(InputError, match="without running statistics"):
        filter_saliency(network, *batch())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 1, 2, 3, 4, 0]), r"lie in 0\.\.4 but the network has 4 classes"),
        (torch.tensor([0, 1, 2, 3, -1, 0]), r"lie in -1\.\.3"),
        (torch.zeros(6, 3), r"class probabilities \[N, K\] that add up to 1"),
        (torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 6), "add up to 1"),
        (torch.zeros(6), "integer class numbers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(targets: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        filter_saliency(PlainNet().eval(), batch()[0], targets)


class Returning(nn.Module):
    """Returns whatever a function makes of the feature maps."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.conv(x))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda f: f, InputError, "logits of shape"),
        (
            lambda f: f.mean((1, 2, 3))[:, None],
            InputError,
            "'binary' for one logit",
        ),
        (lambda f: [f, f], InputError, "returned a list of"),
        (lambda f: {"a": f, "b": f}, InputError, "returned a mapping with the keys a, b"),
        (lambda f: f.mean((2, 3)).detach(), UnsupportedError, "no gradient"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(
    make: Callable[[Tensor], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        filter_saliency(Returning(make).eval(), *batch())


def test_losses_that_are_not_per_sample_are_refused() -> None:
    with pytest.raises(InputError, match="one loss per sample"):
        filter_saliency(PlainNet().eval(), *batch(), loss=nn.functional.cross_entropy)
    with pytest.raises(InputError, match="loss gave float"):
        filter_saliency(PlainNet().eval(), *batch(), loss=lambda out, y: 1.0)  # type: ignore[arg-type,return-value]


def test_an_index_of_another_network_is_refused() -> None:
    index = FilterIndex.from_model(zoo.resnet18())
    with pytest.raises(InputError, match=r"conv1\.weight but PlainNet has nothing"):
        filter_saliency(PlainNet().eval(), *batch(), index)


class Misused(nn.Module):
    """Uses a convolution weight in a way that a test chooses."""

    def __init__(self, use: Callable[["Misused", Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, x)


def without_gradients(module: Misused, x: Tensor) -> Tensor:
    """Under no_grad."""
    with torch.no_grad():
        features = module.conv(x)
    return torch.as_tensor(features.mean((2, 3)) * torch.ones(4, requires_grad=True))


def overwritten(module: Misused, x: Tensor) -> Tensor:
    """The input is changed after the convolution read it."""
    x = x * 1.0
    features = module.conv(x)
    x.mul_(2)
    return torch.as_tensor(features.mean((2, 3)))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (without_gradients, "ran without gradients"),
        (overwritten, "changed in place"),
    ],
)
def test_what_cannot_be_measured_exactly_is_refused_by_name(
    use: Callable[[Misused, Tensor], Tensor], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        filter_saliency(Misused(use).eval(), *batch())
    assert "conv.weight" in str(caught.value)
