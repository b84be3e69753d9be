"""Projects as users of Lightning have them, for the tests of the command line."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from torch import Tensor, nn
from torch.utils.data import DataLoader, random_split

from tests.shifts import dataset, layers


class Net(LightningModule):
    """Knows its hyperparameters."""

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = layers(width)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.net(self.scale * x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("right", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-2)


class Data(LightningDataModule):
    """Sets of its own."""

    def __init__(self, samples: int = 120, width: int = 8) -> None:
        super().__init__()
        self.samples, self.width = samples, width

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(dataset(self.samples, 0, shifted=False), 32, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(dataset(self.samples, 1, shifted=False), 32)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(dataset(self.samples, 2, shifted=True), 32)


class LateNet(Net):
    """Makes its layers when a trainer asks for them, and has as many classes as the data."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.net = nn.Identity()  # type: ignore[assignment]

    def configure_model(self) -> None:
        if isinstance(self.net, nn.Identity):
            self.net = layers(self.hparams["width"])


class LinkingCLI(LightningCLI):
    """The width of the network is that of the data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.init_args.width", "model.init_args.width")


def linking(args: Any, *, run: bool) -> LightningCLI:
    """The same as a function, with classes."""

    class OfClasses(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.link_arguments("data.width", "model.width")

    return OfClasses(LateNet, Data, args=args, run=run, save_config_callback=None)


class Bytes(Data):
    """Loads whole numbers, and makes images of them when they are on the device."""

    def test_dataloader(self) -> DataLoader[Any]:
        images, labels = dataset(self.samples, 2, shifted=True).tensors
        whole = torch.utils.data.TensorDataset((images * 64).round().int(), labels)
        return DataLoader(whole, 32)

    val_dataloader = test_dataloader

    def on_after_batch_transfer(self, batch: Sequence[Tensor], dataloader_idx: int) -> Any:
        return batch[0] / 64, batch[1]


class Halved(Net):
    """Its own hook, too."""

    def on_before_batch_transfer(self, batch: Sequence[Tensor], dataloader_idx: int) -> Any:
        return batch[0] // 2, batch[1]


class Split(Data):
    """Splits at random, with whatever seed there is, and only for a training."""

    def setup(self, stage: str) -> None:
        if stage == "fit":
            parts = random_split(dataset(3 * self.samples, 1, shifted=False), [0.7, 0.3])
            self.train_part, self.val_part = parts

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_part, 32, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val_part, 32)


def plain() -> nn.Module:
    """No module of Lightning."""
    return layers(8)


class OtherNet(lightning.pytorch.LightningModule):
    """Of the other package of Lightning, and with nothing but a forward."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = layers(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.net(x))


class OtherData(lightning.pytorch.LightningDataModule):
    """Two loaders."""

    def test_dataloader(self) -> list[DataLoader[Any]]:
        return [DataLoader(dataset(120, seed, shifted=True), 32) for seed in (2, 3)]
