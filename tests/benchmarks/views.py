"""What views cost: bytes of event files, and seconds beside those of the measurement."""

import tempfile
from pathlib import Path
from typing import Any

import torch
import torchvision.models as zoo
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from salmon import SaliencyMonitor

CLASSES = 10
BATCH = 16


class _Net(LightningModule):
    """ResNet-50, which one step an epoch keeps changing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = zoo.resnet50(num_classes=CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.net(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


class _Costs(SaliencyMonitor):
    """Adds up what the passes cost."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = dict.fromkeys(("seconds", "pictures_seconds", "views_seconds"), 0.0)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        for name in self.seconds:
            self.seconds[name] += float(trainer.callback_metrics[f"salmon_details/cost/{name}"])


def rows() -> list[dict[str, Any]]:
    """A long run on small images, and a short one on large ones."""
    return [_row(50, 200, 64), _row(2, 256, 224)]


def _row(validations: int, samples: int, size: int) -> dict[str, Any]:
    """Train and validate on noise with a texture of its own in every class."""
    torch.manual_seed(0)
    labels = torch.randint(CLASSES, (samples,))
    # Smooth at several scales, so that flagged images take the bytes of photographs.
    images = sum(
        nn.functional.interpolate(torch.randn(samples, 3, side, side), size, mode="bilinear")
        for side in (4, 16, size // 2)
    )
    data = TensorDataset(torch.as_tensor(images), labels)
    monitor = _Costs()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            max_epochs=validations, limit_train_batches=1, accelerator="cpu", devices=1,
            callbacks=[monitor], enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, num_sanity_val_steps=0, log_every_n_steps=1,
            logger=TensorBoardLogger(folder, name="", version=""),
        ).fit(_Net(), DataLoader(data, BATCH), DataLoader(data, BATCH))  # fmt: skip
        events = sum(path.stat().st_size for path in Path(folder).glob("*tfevents*"))
        files = sum(path.stat().st_size for path in (Path(folder) / "salmon_logs").iterdir())
    total, views = monitor.seconds["seconds"], monitor.seconds["views_seconds"]
    pictures = monitor.seconds["pictures_seconds"]
    return {
        "network": "resnet50",
        "input": size,
        "samples": samples,
        "validations": validations,
        "event files, MB": events / 1e6,
        "files of the monitor, MB": files / 1e6,
        "monitor, s per validation": total / validations,
        "drawing and writing, s": views / validations,
        "drawing and writing, share": f"{views / total:.1%}",
        "pictures with maps, s": pictures / validations,
        "pictures with maps, share": f"{pictures / total:.1%}",
    }
