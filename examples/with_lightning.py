"""The monitor in an ordinary trainer: scikit-learn's digits, two epochs, a minute at most.

python examples/with_lightning.py [FOLDER]
"""

import sys

import torch
from pytorch_lightning import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from salmon import SaliencyMonitor


class Digits(LightningModule):
    """A small VGG-like network for 8x8 digits."""

    def __init__(self) -> None:
        """Build it."""
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 2 * 2, 10),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """``[N, 1, 8, 8]`` images to ``[N, 10]`` logits."""
        return torch.as_tensor(self.net(images))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the accuracy of a batch."""
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main(folder: str) -> None:
    """Train with the monitor and show what it found."""
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    digits = TensorDataset(images, torch.from_numpy(data.target))
    train, held_out = random_split(digits, [0.5, 0.5], torch.Generator().manual_seed(0))

    monitor = SaliencyMonitor()
    trainer = Trainer(max_epochs=2, accelerator="cpu", callbacks=[monitor], default_root_dir=folder)
    trainer.fit(Digits(), DataLoader(train, 64, shuffle=True), DataLoader(held_out, 64))

    found = monitor.results["validation"]
    print(f"{found.misclassified} of {found.samples} held-out digits are misclassified.")
    for row, sample in enumerate(found.mistakes.sample[:5].tolist()):
        blamed = [k for k in found.rankings["pot"].filters[row, :3].tolist() if k >= 0]
        names = ", ".join(found.index.label(k) for k in blamed)
        print(
            f"digit {sample} is taken for {found.mistakes.predicted[row]}: "
            f"{names or 'no filter stands out'}"
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "example-logs")
