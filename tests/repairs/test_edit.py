"""Edits: rows of filters, steps by hand, and weights put back bit for bit."""

import pytest
import torch
from torch import Tensor, nn

from salmon import FilterIndex, InputError
from salmon.filters import filter_rows, weight_of_rows
from salmon.repairs import Edit, edited
from salmon.repairs.edit import Change, plain_layout, rows_of, state_of, step_edit
from salmon.repairs.evidence import mean_gradients, without_conflict
from tests.shifts import some, trained

WEIGHTS = {
    "conv": nn.Conv2d(4, 6, 3, groups=2),
    "transposed": nn.ConvTranspose2d(4, 6, 3, groups=2),
    "attention": nn.MultiheadAttention(8, 2),
}


def index_of(network: nn.Module) -> FilterIndex:
    units = ("heads",) if isinstance(network, nn.MultiheadAttention) else ("conv",)
    return FilterIndex.from_model(nn.Sequential(network), units=units)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_comes_back_from_its_rows(name: str) -> None:
    index = index_of(WEIGHTS[name])
    layer = index.layers[0]
    weight = dict(nn.Sequential(WEIGHTS[name]).named_parameters())[layer.weight].detach()
    rows = filter_rows(weight, layer)
    assert rows.shape == (layer.filters, layer.size)
    assert torch.equal(weight_of_rows(rows, layer, weight.shape), weight)


@pytest.mark.parametrize("groups", [1, 2])
def test_rows_of_a_transposed_convolution_are_its_output_channels(groups: int) -> None:
    network = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False))
    index = FilterIndex.from_model(network)
    inputs = torch.randn(1, 4, 5, 5)
    whole = network(inputs)
    (layer,) = index.layers
    zero = Edit((Change(layer, torch.tensor([3]), torch.zeros(1, layer.size)),))
    with edited(network, zero):
        pruned = network(inputs)
    assert not pruned[:, 3].any()
    others = [0, 1, 2, 4, 5]
    assert torch.equal(pruned[:, others], whole[:, others])


def network_and_gradients() -> tuple[nn.Sequential, FilterIndex, dict[str, Tensor]]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.Conv2d(3, 4, 1, bias=False))
    index = FilterIndex.from_model(network)
    gradients = {name: torch.randn_like(p) for name, p in network.named_parameters()}
    return network, index, gradients


@pytest.mark.parametrize("kind", ["plain", "normalised"])
def test_steps_follow_their_formulas(kind: str) -> None:
    network, index, gradients = network_and_gradients()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    normalised = kind == "normalised"
    edit = step_edit(before, index, [5, 1], gradients, 0.1, normalised=normalised)
    assert (edit.filters, edit.weights) == (2, 5)
    with edited(network, edit):
        after = {name: p.detach().clone() for name, p in network.named_parameters()}
    for name, touched in (("0.weight", 1), ("1.weight", 2)):
        w, g = before[name][touched].double(), gradients[name][touched].double()
        rate = 0.1 * w.norm() / g.norm() if normalised else 0.1
        torch.testing.assert_close(after[name][touched].double(), w - rate * g, rtol=1e-6, atol=0)
        others = [i for i in range(len(before[name])) if i != touched]
        assert torch.equal(after[name][others], before[name][others])
    if normalised:
        assert edit.relative_change(before) == pytest.approx(0.1, rel=1e-5)


def test_a_filter_without_a_gradient_stays_as_it_is() -> None:
    network, index, gradients = network_and_gradients()
    gradients["0.weight"][1] = 0
    state = state_of(network)
    edit = step_edit(state, index, [1], gradients, 0.5, normalised=True)
    assert torch.equal(edit.changes[0].values, rows_of(state, edit.changes[0]))
    assert edit.relative_change(state) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("fails", [False, True])
def test_weights_get_their_bits_back(dtype: torch.dtype, fails: bool) -> None:
    network, index, gradients = network_and_gradients()
    network.to(dtype)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    edit = step_edit(state_of(network), index, range(7), gradients, 0.3, normalised=False)
    assert {change.values.dtype for change in edit.changes} == {dtype}
    try:
        with edited(network, edit):
            assert not torch.equal(network.get_parameter("0.weight"), before["0.weight"])
            if fails:
                raise RuntimeError("on the way")
    except RuntimeError:
        assert fails
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name])


def test_edits_know_what_they_change() -> None:
    network, index, gradients = network_and_gradients()
    gradients["0.weight"][0] = torch.nan
    state = state_of(network)
    assert not step_edit(state, index, [0], gradients, 0.1, normalised=False).finite
    edit = step_edit(state, index, [1], gradients, 0.1, normalised=False)
    assert edit.finite
    assert Edit(()).relative_change(state) == 0
    undo = edit.values_in(state)
    with edited(network, edit), edited(network, undo):
        assert torch.equal(rows_of(state_of(network), edit.changes[0]), undo.changes[0].values)
    with pytest.raises(InputError, match=r"filters lie in 3\.\.7 but the index holds 0\.\.6"):
        step_edit(state, index, [7, 3], gradients, 0.1, normalised=False)


def test_tensors_without_filters_are_edited_row_by_row() -> None:
    network = trained()
    state = state_of(network)
    before = {name: value.clone() for name, value in state.items()}
    names = ("1.running_var", "8.bias", "8.weight")
    changes = []
    for name in names:
        layout = plain_layout(name, state[name])
        assert (layout.filters, layout.size) == (len(state[name]), state[name][0].numel())
        changes.append(Change(layout, torch.tensor([2]), torch.full((1, layout.size), 7.0)))
    edit = Edit(tuple(changes))
    assert (edit.filters, edit.weights) == (0, 2 + 512)
    with edited(network, edit):
        for name in names:
            assert bool((state[name][2] == 7).all())
            assert torch.equal(state[name][:2], before[name][:2])
    assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_mean_gradients_are_those_of_a_loop_over_samples() -> None:
    network, samples = trained(), some(30, 5, shifted=True)
    names = ["0.weight", "3.weight", "8.weight"]
    found = mean_gradients(network, samples, names, 7)
    total = {name: torch.zeros_like(value) for name, value in found.items()}
    parameters = dict(network.named_parameters())
    for x, y in zip(samples.inputs, samples.targets, strict=True):
        loss = nn.functional.cross_entropy(network(x[None]), y[None])
        for name, g in zip(
            names, torch.autograd.grad(loss, [parameters[n] for n in names]), strict=True
        ):
            total[name] += g.double() / 30
    for name in names:
        scale = float(total[name].abs().max())
        torch.testing.assert_close(found[name], total[name], rtol=1e-4, atol=1e-5 * scale)
    assert all(p.grad is None for p in network.parameters())


def test_a_step_without_conflict_does_not_raise_the_reference_loss() -> None:
    _, index, step = network_and_gradients()
    reference = {name: torch.randn_like(value) for name, value in step.items()}
    kept = without_conflict(index, step, reference)
    for layer in index.layers:
        before, after, other = (
            filter_rows(g[layer.weight], layer) for g in (step, kept, reference)
        )
        inner = (before * other).sum(1)
        assert bool((inner < 0).any())
        agree = inner >= 0
        assert torch.equal(after[agree], before[agree])
        torch.testing.assert_close(
            (after * other).sum(1)[~agree], torch.zeros(int((~agree).sum())), rtol=0, atol=1e-6
        )
