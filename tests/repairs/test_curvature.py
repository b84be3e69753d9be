"""Steps that leave alone what the reference excites: patches, the solve, and what comes of it."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from salmon import FilterIndex, Samples
from salmon.filters import filter_rows
from salmon.repairs import Edit, edited
from salmon.repairs.edit import rows_of, step_edit
from salmon.repairs.remedies import curvature
from salmon.repairs.remedies.curvature import (
    MOST_PATCHES,
    PATCHES_PER_WEIGHT,
    RATES,
    input_patches,
    precondition,
)
from tests.evidences import driven, evidence_of, trial_of
from tests.shifts import CLASSES, some, squares, trained
from tests.traces import assert_identical, network_state, random_states

CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3),
    "pointwise": nn.Conv2d(4, 6, 1),
    "oblong": nn.Conv2d(4, 6, (1, 3), padding=(0, 1)),
    "padded": nn.Conv2d(4, 6, 3, padding=2),
    "strided": nn.Conv2d(4, 6, 3, stride=(2, 1), padding=1),
    "dilated": nn.Conv2d(4, 6, 3, dilation=(1, 2), padding=1),
    "groups": nn.Conv2d(4, 6, 3, groups=2, padding=1),
    "depthwise": nn.Conv2d(4, 4, 3, groups=4),
    "everything": nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), dilation=2, groups=2),
}


def random_samples(count: int, *shape: int) -> Samples:
    random = torch.Generator().manual_seed(5)
    inputs = torch.randn(count, *shape, generator=random)
    return Samples(inputs, torch.zeros(count, dtype=torch.int64), tuple(range(count)))


def patches_of(layer: nn.Module, samples: Samples, *, batch_size: int, seed: int = 0) -> Tensor:
    network = nn.Sequential(layer)
    index = FilterIndex.from_model(network)
    return input_patches(network, samples, index, batch_size, seed)["0.weight"]


def unfolded(layer: nn.Conv2d, samples: Samples) -> Tensor:
    """``[groups, n, K]`` of all positions."""
    columns = nn.functional.unfold(
        samples.inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride  # type: ignore[arg-type]
    )  # fmt: skip
    by_group: Tensor = columns.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2)
    return by_group.flatten(1, 2)


@pytest.mark.parametrize(("n", "size"), [(7, 30), (30, 30), (45, 30), (5000, 30), (1, 12)])
@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_the_solve_is_that_of_the_dense_system(n: int, size: int, damping: float) -> None:
    random = torch.Generator().manual_seed(n)
    spread = torch.logspace(0, -3, size, dtype=torch.float64)  # of the inputs' scales
    inputs = torch.randn(n, size, generator=random, dtype=torch.float64) * spread + 0.5
    gradients = torch.randn(4, size, generator=random, dtype=torch.float64)
    second = inputs.T @ inputs / n
    system = second + damping * second.trace() / size * torch.eye(size, dtype=torch.float64)
    wanted = torch.linalg.solve(system, gradients.T).T
    found = precondition(inputs, gradients, damping)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))


@pytest.mark.parametrize("n", [3, 20])
def test_inputs_of_zero_leave_the_gradients_as_they_are(n: int) -> None:
    gradients = torch.randn(4, 10, dtype=torch.float64)
    assert torch.equal(precondition(gradients.new_zeros(n, 10), gradients, 0.01), gradients)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("batch_size", [2, 3])
def test_patches_are_what_unfold_gives(name: str, batch_size: int) -> None:
    layer = CONVOLUTIONS[name]
    samples = random_samples(2 if layer.weight[0].numel() < 10 else 3, 4, 5, 6)
    found, wanted = patches_of(layer, samples, batch_size=batch_size), unfolded(layer, samples)
    assert found.shape == wanted.shape
    for some_rows, all_rows in zip(found, wanted, strict=True):
        assert sorted(some_rows.tolist()) == sorted(all_rows.tolist())


def test_a_convolution_is_its_patches_times_its_filters() -> None:
    torch.manual_seed(0)
    for layer, shape in (
        (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (4, 17)),
        (nn.Conv3d(2, 4, 2, padding=1, groups=2), (2, 2, 2, 2)),
        (nn.Conv1d(4, 6, 5, padding="same"), (4, 9)),
        (nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (4, 9)),
    ):
        samples = random_samples(3, *shape)
        layer.bias = None
        found = patches_of(layer, samples, batch_size=3)
        rows = layer.weight.detach().flatten(1).unflatten(0, (layer.groups, -1))
        products = found @ rows.transpose(1, 2)  # [groups, n, O / groups]
        outputs = layer(samples.inputs).detach().flatten(2).unflatten(1, (layer.groups, -1))
        wanted = outputs.permute(1, 0, 3, 2).flatten(1, 2)
        assert products.shape == wanted.shape
        for group, other in zip(products, wanted, strict=True):
            torch.testing.assert_close(
                group[group[:, 0].argsort()], other[other[:, 0].argsort()], rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_some_patches_are_among_all_and_repeat_with_the_seed(name: str) -> None:
    layer, samples = CONVOLUTIONS[name], random_samples(40, 4, 12, 12)
    most = min(MOST_PATCHES, PATCHES_PER_WEIGHT * layer.weight[0].numel())
    found = patches_of(layer, samples, batch_size=20)
    assert found.shape[1] == most
    assert torch.equal(found, patches_of(layer, samples, batch_size=20))
    assert not torch.equal(found, patches_of(layer, samples, batch_size=20, seed=1))
    for some_rows, all_rows in zip(found, unfolded(layer, samples), strict=True):
        assert set(map(tuple, some_rows.tolist())) <= set(map(tuple, all_rows.tolist()))


class _Changing(nn.Module):
    """Changes what its convolution has read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs * 2
        found: Tensor = self.layer(inputs)
        inputs.add_(1)
        return found + inputs


def test_what_is_not_read_as_it_is_by_plain_convolutions_is_left_out() -> None:
    network = nn.Sequential(
        nn.ConvTranspose2d(1, 1, 3), _Changing(), nn.Conv2d(4, 4, 3),
        parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
    )  # fmt: skip
    index = FilterIndex.from_model(network)
    assert len(index.layers) == 4
    found = input_patches(network, some(20, 1, shifted=False), index, 10, 0)
    assert list(found) == ["2.weight"]


def test_filters_without_patches_are_not_stepped() -> None:
    torch.manual_seed(0)

    def network_of(layer: nn.Module) -> nn.Sequential:
        return nn.Sequential(
            nn.ConvTranspose2d(1, 4, 3), nn.ReLU(), layer, nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, CLASSES),
        )  # fmt: skip

    proposal = next(curvature(evidence_of(network_of(nn.Conv2d(4, 6, 3))), "random", (1.0,)))
    assert [(c.layer.weight, len(c.channels)) for c in proposal.edit.changes] == [("2.weight", 6)]
    nowhere = evidence_of(network_of(nn.ConvTranspose2d(4, 6, 3)))
    assert list(curvature(nowhere, "random", (0.5, 1.0))) == []


@pytest.mark.parametrize("order", ["pot", "spread:random"])
def test_a_step_changes_the_reference_less_than_the_plain_one_of_equal_size(order: str) -> None:
    network = trained()
    evidence = evidence_of(network)
    fresh, _ = squares(300, 9, shifted=False)
    logits = network(fresh).detach()

    def moved(edit: Edit) -> float:
        with edited(network, edit), torch.no_grad():
            return float((network(fresh) - logits).square().mean())

    proposals = curvature(evidence, order, (0.2,))
    proposal = next(proposals)
    for rate in RATES[:3]:
        assert proposal.how == f"{rate:g}"
        plain = step_edit(
            evidence.state, evidence.index, evidence.first(order, 0.2), evidence.gradients, rate,
            normalised=True,
        )  # fmt: skip
        assert plain.filters == proposal.edit.filters
        for edit in (plain, proposal.edit):
            assert edit.relative_change(evidence.state) == pytest.approx(rate, rel=1e-4)
        assert moved(proposal.edit) < 0.5 * moved(plain)
        proposal = proposals.send(trial_of(proposal))


def test_every_filter_goes_down_the_loss_of_the_new_samples() -> None:
    evidence = evidence_of(trained())
    edit = next(curvature(evidence, "random", (1.0,))).edit
    assert edit.filters == len(evidence.index)
    for change in edit.changes:
        step = change.values - rows_of(evidence.state, change)
        gradient = filter_rows(evidence.gradients[change.layer.weight], change.layer)
        assert bool(((step * gradient[change.channels]).sum(1) < 0).all())


def test_rates_are_raised_until_a_step_is_given_up_or_loses_too_much() -> None:
    evidence = evidence_of(trained())
    margin = evidence.settings.margin
    for lost, complete, tried in (
        (0.0, False, 1), (2.1 * margin, True, 1), (1.9 * margin, True, len(RATES)),
    ):  # fmt: skip
        proposals = curvature(evidence, "random", (0.1, 0.2))
        seen = driven(proposals, partial(trial_of, lost=lost, complete=complete))
        found = [(proposal.edit.filters, proposal.how) for proposal in seen]
        assert found == [(f, f"{rate:g}") for f in (10, 5) for rate in RATES[:tried]]


def test_nothing_is_left_in_the_network() -> None:
    network = trained().train()
    network[0].requires_grad_(requires_grad=False)
    evidence = evidence_of(network)
    before = network_state(network), random_states()
    next(curvature(evidence, "random", (0.1,)))
    assert_identical((network_state(network), random_states()), before)
