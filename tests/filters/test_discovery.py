"""Filters are found by what a network does with its weights, under names that last."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelPruning
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune

import salmon
from salmon import FilterIndex, InputError, Patch, SaliencyMonitor
from salmon.filters import parameters_by_name
from salmon.repairs import Edit
from salmon.repairs.edit import Change
from tests.networks import PlainNet, batch
from tests.trainers import Module, loader, trainer


class Own(nn.Module):
    """Convolutions written by hand, two of their weights in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(0.1 * torch.randn(6, 3, 3, 3))
        self.turned = nn.Parameter(0.1 * torch.randn(6, 4, 3, 3))
        self.scale = nn.Parameter(torch.ones(6, 1, 1, 1))
        self.mixing = nn.Parameter(0.5 * torch.randn(8, 5))
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.first * self.scale, padding=1).relu()
        x = functional.conv_transpose2d(x, self.turned, groups=2).relu()
        return torch.as_tensor(self.head((x.mean((2, 3)) @ self.mixing).relu()))


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return make().eval()


def test_weights_of_ones_own_modules_are_found_by_their_use() -> None:
    network, (images, labels) = seeded(Own), batch(5)
    index = FilterIndex.from_model(network, inputs=images)
    assert [(each.weight, each.layer, each.filters) for each in index.layers] == [
        ("first", "first", 6), ("turned", "turned", 8),
    ]  # fmt: skip
    assert max(salmon.verify(network, images, labels).values()) < 1e-6
    table = salmon.coverage(network, images, labels)
    assert table.measured == 14
    assert len(salmon.filter_saliency(network, images, labels)[0]) == 14


def test_products_with_a_weight_are_linear_units() -> None:
    network, (images, labels) = seeded(Own), batch(5)
    index = FilterIndex.from_model(network, units=("linear",), inputs=images)
    assert [(each.weight, each.filters, each.size) for each in index.layers] == [
        ("mixing", 5, 8), ("head.weight", 4, 5),
    ]  # fmt: skip
    assert max(salmon.verify(network, images, labels, index).values()) < 1e-6


def test_looking_for_use_changes_nothing_where_modules_hold_all_weights() -> None:
    network = PlainNet().eval()
    with_batch = FilterIndex.from_model(network, inputs=batch(2)[0])
    assert with_batch.layers == FilterIndex.from_model(network).layers


def test_where_nothing_is_found_it_says_what_was_looked_at() -> None:
    network = seeded(Own)
    with pytest.raises(InputError, match=r"5 weights \(first, turned, scale, mix.*inputs= gives"):
        FilterIndex.from_model(network)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    looked_at = "of the modules Flatten, Linear, Sequential and what forward does with them. "
    with pytest.raises(InputError, match=rf"{looked_at}To measure .* give units=\['linear'\]."):
        FilterIndex.from_model(linear, inputs=batch(2)[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("make", [PlainNet, Own])
def test_scripted_networks_are_measured(make: Callable[[], nn.Module]) -> None:
    plain, (images, labels) = seeded(make), batch(5)
    expected = salmon.filter_saliency(plain, images, labels)
    scripted = torch.jit.script(plain)
    for _ in range(3):  # which lets it optimise itself
        with torch.no_grad():
            scripted(images)
    found = salmon.filter_saliency(scripted, images, labels)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7)
    assert max(salmon.verify(scripted, images, labels).values()) < 1e-6


class OwnModule(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net: nn.Module = Own()  # type: ignore[assignment]


def test_the_monitor_finds_them_in_its_first_batch(tmp_path: Path) -> None:
    monitor, module = SaliencyMonitor(level=0.7, strict=True), seeded(OwnModule)
    trainer(tmp_path, monitor).validate(module, loader(), verbose=False)
    found = monitor.results["validation"]
    assert [layer.weight for layer in found.index.layers] == ["net.first", "net.turned"]
    judge = SaliencyMonitor(reference=monitor.last_fit(module), strict=True)
    trainer(tmp_path, judge).validate(module, loader(), verbose=False)
    assert judge.results["validation"].fit.samples == 40


def test_transformers_own_linear_layers_are_measured() -> None:
    transformers = pytest.importorskip("transformers")
    settings = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=20, num_labels=4,
        pad_token_id=0, bos_token_id=1, eos_token_id=1, attn_implementation="eager",
    )  # fmt: skip
    network = seeded(lambda: transformers.GPT2ForSequenceClassification(settings))
    inputs = {"input_ids": torch.randint(2, 50, (4, 7))}
    labels = torch.tensor([0, 1, 2, 3])
    index = FilterIndex.from_model(network, units=("linear",), inputs=inputs)
    sizes = {each.weight: (each.filters, each.size) for each in index.layers}
    assert sizes["transformer.h.0.attn.c_attn.weight"] == (48, 16)
    assert len(sizes) == 9
    assert max(salmon.verify(network, inputs, labels, index).values()) < 1e-6


PARAMETRISED: dict[str, Callable[[nn.Conv2d], Any]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "older weight norm": nn.utils.weight_norm,
    "older spectral norm": nn.utils.spectral_norm,
    "pruned": lambda conv: prune.random_unstructured(conv, "weight", amount=0.3),
    "own": lambda conv: parametrize.register_parametrization(conv, "weight", nn.Identity()),
    "compiled": lambda conv: None,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", PARAMETRISED)
def test_one_weight_keeps_one_name(kind: str) -> None:
    network = PlainNet().eval()
    before = FilterIndex.from_model(network)
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d):
            PARAMETRISED[kind](module)
    network.eval()  # parametrisations are new modules
    changed: Any = torch.compile(network) if kind == "compiled" else network
    after = FilterIndex.from_model(changed)
    assert after.fingerprint() == before.fingerprint()
    assert after.fits(network)
    assert torch.isfinite(salmon.filter_saliency(changed, *batch(3), before)).all()


def test_a_parameter_that_is_only_called_like_a_pruned_one_keeps_its_name() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    network[0].register_parameter("scale_orig", nn.Parameter(torch.ones(4)))
    assert list(parameters_by_name(network)) == ["0.weight", "0.bias", "0.scale_orig"]


def test_fits_outlive_the_pruning_of_a_training(tmp_path: Path) -> None:
    module, monitor = Module(), SaliencyMonitor(level=0.7, strict=True)
    pruning = ModelPruning(
        "l1_unstructured", parameters_to_prune=[(module.net.features[0], "weight")], amount=0.5,
        make_pruning_permanent=False,
    )  # fmt: skip
    trainer(tmp_path, monitor, pruning).fit(module, loader(), loader())
    assert hasattr(module.net.features[0], "weight_mask")
    fit = monitor.last_fit(module)
    pruning.make_pruning_permanent(module)
    assert not hasattr(module.net.features[0], "weight_mask")
    again = monitor.last_fit(module)
    assert torch.equal(fit.threshold, again.threshold)
    file = tmp_path / "salmon_logs" / "fit-validation.safetensors"
    judge = SaliencyMonitor(reference=file, strict=True)
    trainer(tmp_path, judge).validate(module, loader(), verbose=False)
    assert torch.equal(judge.results["validation"].fit.threshold, fit.threshold)


def test_a_patch_of_a_parametrised_network_goes_on_and_off_its_state() -> None:
    network = PlainNet()
    parametrizations.spectral_norm(network.features[0])
    index = FilterIndex.from_model(network)
    weights = {layer.weight for layer in index.layers}
    assert "features.0.weight" in weights
    layer = next(each for each in index.layers if each.weight == "features.0.weight")
    zeros = Change(layer, torch.arange(2), torch.zeros(2, layer.size))
    patch = Patch.make(network, Edit((zeros,)))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    assert patch.apply(state)
    assert not state["features.0.parametrizations.weight.original"][:2].any()
    assert patch.revert(state)
    assert all(torch.equal(state[n], value) for n, value in network.state_dict().items())
