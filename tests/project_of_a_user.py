"""A LightningCLI project, as a user has it; the tests of the command line copy it."""

import time
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.shifts import dataset, layers


class Squares(LightningDataModule):
    def __init__(self, samples: int = 400, shifted: bool = True, shuffle: bool = False) -> None:
        super().__init__()
        self.samples, self.shifted, self.shuffle = samples, shifted, shuffle

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(dataset(self.samples, 1, shifted=False), 64)

    def test_dataloader(self) -> DataLoader[Any]:
        new = dataset(self.samples, 2, shifted=self.shifted)
        return DataLoader(new, 64, shuffle=self.shuffle)


class Net(LightningModule):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.net = layers(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.net(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("right", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


class NetOfMappings(Net):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        right = (self(batch["image"]).argmax(1) == batch["label"]).float().mean()
        self.log("right", right, batch_size=len(batch["label"]))


def loaders() -> dict[str, Any]:
    """What ``--data`` may name instead of a data module."""
    data = Squares()
    return {"test": data.test_dataloader(), "val": data.val_dataloader()}


def in_pieces() -> dict[str, Any]:
    """A loader that has no length and can be read once."""
    batches = iter(Squares(shuffle=True).test_dataloader())
    return {"night": (batch for batch in batches), "val": Squares().val_dataloader()}


def noisy() -> dict[str, Any]:
    """Other samples each time."""
    return {"test": DataLoader(dataset(100, time.time_ns() % 2**31, shifted=True), 64)}


def cameras() -> dict[str, Any]:
    """Batches that say more than the label."""
    images, labels = dataset(100, 2, shifted=True).tensors
    rows = [
        {"image": image, "label": label, "camera": "left" if row % 2 else "right"}
        for row, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    return {"test": DataLoader(rows, 64)}  # type: ignore[arg-type]


def broken() -> nn.Module:
    raise ZeroDivisionError("in the user's own code")


CONFIG = """\
seed_everything: 0
trainer:
  max_epochs: 3
model:
  class_path: tests.project_of_a_user.Net
  init_args:
    width: 16
data:
  class_path: tests.project_of_a_user.Squares
  init_args:
    samples: 400
repair:
  shares: [0.1]
  remedies: [step, tune]
  epochs: 2
"""
