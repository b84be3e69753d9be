"""The last linear layer fitted anew: the closed form, what it does, and where it is not tried."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from salmon.repairs import edited
from salmon.repairs.evidence import Evidence
from salmon.repairs.remedies import head
from salmon.repairs.remedies.head import PENALTIES, SCALE, ridge
from tests.evidences import ByKeyword, assert_same, driven, evidence_of
from tests.shifts import CLASSES, squares, trained
from tests.traces import assert_identical, network_state, random_states


def body() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )


def lstsq(features: Tensor, logits: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """The change by least squares on ``[Phi; sqrt(lambda) I]``."""
    columns = features.shape[1]
    one_hot = np.eye(logits.shape[1])[targets.numpy()]
    wanted = SCALE * (one_hot - one_hot.mean(1, keepdims=True))
    missing = wanted - (logits.numpy() - logits.numpy().mean(1, keepdims=True))
    root = np.sqrt(penalty * np.square(features.numpy()).sum() / columns)
    above = np.concatenate([features.numpy(), root * np.eye(columns)])
    beside = np.concatenate([missing, np.zeros((columns, logits.shape[1]))])
    return torch.from_numpy(np.linalg.lstsq(above, beside, rcond=None)[0])


def with_ones(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], 1)


def of_both(evidence: Evidence, layers: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """What some layers make of all samples, in float64; the old logits, and the targets."""
    parts = evidence.new, evidence.reference
    with torch.no_grad():
        features = torch.cat([layers(part.samples.inputs).double() for part in parts])
        logits = torch.cat([evidence.model(part.samples.inputs).double() for part in parts])
    return features, logits, torch.cat([part.samples.targets for part in parts])


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(("samples", "size"), [(400, 20), (15, 20)])
def test_the_change_is_that_of_penalised_least_squares(
    samples: int, size: int, penalty: float
) -> None:
    random = torch.Generator().manual_seed(samples)
    features = torch.rand(samples, size, generator=random, dtype=torch.float64)
    logits = 3 * torch.randn(samples, 5, generator=random, dtype=torch.float64) + 7
    targets = torch.randint(5, (samples,), generator=random)
    found = ridge(features, logits, targets, penalty)
    wanted = lstsq(features, logits, targets, penalty)
    assert found.shape == (size, 5)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8 * float(wanted.abs().max()))


def test_the_logits_are_the_old_ones_and_what_the_change_makes_of_the_features() -> None:
    network = trained()
    evidence = evidence_of(network)
    read, logits, targets = of_both(evidence, network[:-1])
    fresh, _ = squares(100, 9, shifted=True)
    with torch.no_grad():
        features, old = network[:-1](fresh).double(), network(fresh).double()
    proposals = driven(head(evidence))
    assert [proposal.how for proposal in proposals] == [f"ridge {p:g}" for p in PENALTIES]
    for proposal, penalty in zip(proposals, PENALTIES, strict=True):
        assert proposal.order == "all"
        assert [c.layer.weight for c in proposal.edit.changes] == ["8.weight", "8.bias"]
        with edited(network, proposal.edit), torch.no_grad():
            new = network(fresh).double()
        change = lstsq(with_ones(read), logits, targets, penalty)
        wanted = old + with_ones(features) @ change
        # In float32, as the network is.
        torch.testing.assert_close(new, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_the_fit_learns_the_new_samples_and_keeps_the_reference() -> None:
    network = trained()
    proposal = driven(head(evidence_of(network, reference=300)))[-1]
    right = []
    with edited(network, proposal.edit), torch.no_grad():
        for shifted in (True, False):
            images, targets = squares(300, 50, shifted=shifted)
            right.append(float((network(images).argmax(1) == targets).double().mean()))
    images, targets = squares(300, 50, shifted=True)
    assert right[0] > float((network(images).argmax(1) == targets).double().mean()) + 0.2
    assert right[1] > 0.95


def test_a_layer_without_a_bias_gets_the_solution_without_one() -> None:
    layers = body().double()
    layer = nn.Linear(24, CLASSES, bias=False).double()
    evidence = evidence_of(nn.Sequential(layers, layer).eval())
    found = of_both(evidence, layers)
    old = layer.weight.detach().clone()
    for proposal, penalty in zip(driven(head(evidence)), PENALTIES, strict=True):
        (change,) = proposal.edit.changes
        assert change.layer.weight == "1.weight"
        assert change.channels.tolist() == list(range(CLASSES))
        wanted = old + lstsq(*found, penalty).T
        torch.testing.assert_close(
            change.values, wanted, rtol=1e-8, atol=1e-8 * float(wanted.abs().max())
        )


def test_inputs_given_by_keyword_are_seen() -> None:
    found, wanted = (
        driven(head(evidence_of(network))) for network in (ByKeyword(*trained()).eval(), trained())
    )
    assert len(wanted) == len(PENALTIES)
    for one, other in zip(found, wanted, strict=True):
        assert one.how == other.how
        assert_same(one.edit, other.edit)


class Positions(nn.Module):
    """Logits of every position, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 6, 3)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(inputs).relu().flatten(2).transpose(1, 2)).mean(1)
        return logits


class OutOfOrder(nn.Module):
    """Has a last linear layer that is not the last one to be called."""

    def __init__(self) -> None:
        super().__init__()
        self.body = body()
        self.head = nn.Linear(24, CLASSES)
        self.middle = nn.Linear(24, 24)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.middle(self.body(inputs)).relu())
        return logits


class Twice(nn.Module):
    """Calls its only linear layer on the image and on its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = body()
        self.head = nn.Linear(24, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        mirrored: Tensor = self.head(self.body(inputs.flip(-1)))
        logits: Tensor = self.head(self.body(inputs))
        return logits + 0 * mirrored


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "followed by something": lambda: nn.Sequential(
        body(), nn.Linear(24, CLASSES), nn.Hardtanh(-0.1, 0.1)
    ),
    "scaled": lambda: nn.Sequential(body(), nn.Linear(24, CLASSES), nn.BatchNorm1d(CLASSES)),
    "of every position": Positions,
    "out of order": OutOfOrder,
    "twice": Twice,
    "parametrised": lambda: nn.Sequential(
        body(), parametrizations.weight_norm(nn.Linear(24, CLASSES))
    ),
    "none": lambda: nn.Sequential(nn.Conv2d(1, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_where_no_linear_layer_gives_the_logits_there_is_nothing_to_propose(name: str) -> None:
    assert driven(head(evidence_of(OTHERS[name]()))) == []


@pytest.mark.parametrize("make", [trained, Twice])
def test_the_network_is_left_as_it_was(make: Callable[[], nn.Module]) -> None:
    network = make().train()
    evidence = evidence_of(network)
    before = network_state(network), random_states()
    driven(head(evidence))
    assert_identical((network_state(network), random_states()), before)
