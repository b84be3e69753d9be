"""An ordinary LightningModule, its data and trainers for the tests."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer, callbacks
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.networks import PlainNet, batch


class Module(LightningModule):
    """A classifier with BatchNorm, dropout, a metric and momentum."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.net = PlainNet(classes)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.net(x))

    def unpack(self, batch: Any) -> tuple[Tensor, Tensor]:
        x, y = batch
        return x, y

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = self.unpack(batch)
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = self.unpack(batch)
        self.log("val_loss", nn.functional.cross_entropy(self(x), y.clamp(0, 3)))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def digits(samples: int = 40, seed: int = 0) -> TensorDataset:
    """Images whose class shows in their mean, with noise."""
    images, labels = batch(samples, seed=seed)
    return TensorDataset(images + 0.3 * labels[:, None, None, None], labels)


def loader(
    data: Dataset[Any] | None = None, batch_size: int = 8, *, shuffle: bool = False
) -> DataLoader[Any]:
    return DataLoader(data or digits(), batch_size, shuffle=shuffle)


def averaging(decay: float) -> callbacks.Callback:
    """Lightning's average of the weights; the test is skipped where it has none."""
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("Lightning averages weights since 2.6")
    return callbacks.EMAWeightAveraging(decay=decay)


def trainer(folder: Path, *others: Any, **options: Any) -> Trainer:
    """A quiet trainer on the CPU that writes into a folder."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
    }
    return Trainer(callbacks=list(others), **(quiet | options))
