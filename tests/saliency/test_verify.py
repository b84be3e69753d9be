"""``verify`` finds every weight that is measured wrongly."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from salmon import FilterIndex, VerificationError, verify
from salmon.saliency import measure
from tests.networks import PlainNet, batch


class KeysAndValues(nn.Module):
    """Attention whose keys and values have widths of their own: three weights under one path."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)
        self.to_q, self.to_k, self.to_v = (nn.Linear(12, width) for width in (8, 6, 4))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1).unflatten(1, (-1, 12))
        seen, _ = self.attention(self.to_q(rows), self.to_k(rows), self.to_v(rows))
        return torch.as_tensor(self.head(seen.mean(1)))


NETWORKS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "attention": (KeysAndValues, ("heads", "linear")),
    "convolutions": (PlainNet, ("conv", "linear")),
}
WEIGHTS = [
    (name, layer.weight)
    for name, (make, units) in NETWORKS.items()
    for layer in FilterIndex.from_model(make(), units=units).layers
]


def checked(name: str) -> tuple[nn.Module, FilterIndex, Tensor, Tensor]:
    torch.manual_seed(0)
    make, units = NETWORKS[name]
    network = make().eval()
    return network, FilterIndex.from_model(network, units=units), *batch(4)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_is_measured_right_passes_weight_by_weight(name: str) -> None:
    network, index, images, labels = checked(name)
    found = verify(network, images, labels, index)
    assert list(found) == [layer.weight for layer in index.layers]
    assert max(found.values()) < 1e-10


@pytest.mark.parametrize("factor", [5.0, 1.00001, 0.0, float("nan")])
@pytest.mark.parametrize(("name", "weight"), WEIGHTS)
def test_each_weight_that_is_measured_wrongly_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, weight: str, factor: float
) -> None:
    network, index, images, labels = checked(name)
    position = [layer.weight for layer in index.layers].index(weight)
    last = index.starts[position + 1] - 1

    def wrong(*args: Any, **options: Any) -> Any:
        measured = measure(*args, **options)
        profile = measured.profile.clone()
        profile[-1, last] *= factor  # one filter of one sample
        return replace(measured, profile=profile)

    monkeypatch.setattr("salmon.saliency.checks.measure", wrong)
    with pytest.raises(VerificationError, match=weight.replace(".", r"\.")):
        verify(network, images, labels, index, tolerance=1e-7)
