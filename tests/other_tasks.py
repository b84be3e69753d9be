"""Small networks for every task but one class a sample, and data that confuse them."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from salmon import Samples, Task
from salmon.saliency import Loss
from salmon.tasks import TASKS, AnyTask
from tests.shifts import squares


def quarter(images: Tensor, targets: Tensor) -> Tensor:
    """``[N, 12, 12]``: 1 in the bright quarter."""
    mask = torch.zeros(len(images), 12, 12, dtype=torch.int64)
    for each, target in zip(mask, targets.tolist(), strict=True):
        top, left = 6 * (target // 2), 6 * (target % 2)
        each[top : top + 6, left : left + 6] = 1
    return mask


def bits(images: Tensor, targets: Tensor) -> Tensor:
    """``[N, 2]``: whether it is in the lower half, and in the right one."""
    return torch.stack([targets // 2, targets % 2], 1)


def own_losses(output: Tensor, targets: Tensor) -> Tensor:
    return (output[:, 0] - targets).square()


CASES: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor], Loss]] = {
    "binary": (
        1, lambda _, y: (y >= 2).float(),
        lambda out, y: nn.functional.binary_cross_entropy_with_logits(out[:, 0], y),
    ),
    "multilabel": (
        2, lambda x, y: bits(x, y).float(), nn.functional.binary_cross_entropy_with_logits,
    ),
    "segmentation": (2, quarter, nn.functional.cross_entropy),
    "regression": (1, lambda _, y: y.float(), lambda out, y: (out[:, 0] - y).square().mean()),
    "sequence": (
        4, bits, lambda out, y: nn.functional.cross_entropy(out.movedim(2, 1), y),
    ),
    "custom": (1, lambda _, y: y.float(), lambda out, y: own_losses(out, y).mean()),
}  # fmt: skip


SHIFTS = {
    "binary": 1.4, "multilabel": 1.4, "segmentation": 0.15, "regression": 0.7, "sequence": 1.0,
    "custom": 0.7,
}  # fmt: skip
"""How much darker and flatter new images are, such that about half of them are mistakes."""


def task_of(name: str) -> AnyTask:
    if name == "custom":
        return Task(losses=own_losses, score=own_losses)
    task: AnyTask = TASKS[name]
    return task


class Tokens(nn.Module):
    def forward(self, found: Tensor) -> Tensor:
        tokens: Tensor = found.unflatten(1, (2, 2))
        return tokens


def network_of(name: str) -> nn.Sequential:
    outputs = CASES[name][0]
    body: list[nn.Module] = [
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(),
    ]  # fmt: skip
    if name == "segmentation":
        return nn.Sequential(*body, nn.Conv2d(16, outputs, 5, padding=2))
    tokens = [Tokens()] if name == "sequence" else []
    return nn.Sequential(
        *body, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, outputs), *tokens
    )


def some(name: str, count: int, seed: int, *, shifted: bool) -> Samples:
    images, classes = squares(count, seed, shifted=False)
    if shifted:
        images = (1 - 0.5 * SHIFTS[name]) * images - 0.5 * SHIFTS[name]
    return Samples(images, CASES[name][1](images, classes), tuple(range(count)))


@cache
def weights_of(name: str) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = network_of(name)
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        samples = some(name, 600, 0, shifted=False)
        for _ in range(8):
            for x, y in samples.batches(64):
                optimizer.zero_grad()
                CASES[name][2](network(x), y).backward()
                optimizer.step()
    return network.state_dict()


def trained(name: str) -> nn.Sequential:
    network = network_of(name)
    network.load_state_dict(weights_of(name))
    return network.eval()


class Multilabelled(LightningModule):
    """As a user would have it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained("multilabel")

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.net(images)
        return found

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("loss", CASES["multilabel"][2](self(batch[0]), batch[1]))

    test_step = validation_step


def loaders() -> dict[str, DataLoader[Any]]:
    """What it gets right, "val", and what it does not, "test"."""
    found = {}
    for name, seed in (("val", 1), ("test", 2)):
        samples = some("multilabel", 600, seed, shifted=name == "test")
        found[name] = DataLoader(TensorDataset(samples.inputs, samples.targets), 64)
    return found
