"""Fit against SciPy, stream against keeping everything, callback against plain validation."""

import tempfile
import time
from typing import Any

import numpy as np
import torch
import torchvision.models as zoo
from pytorch_lightning import LightningModule, Trainer
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from salmon import SaliencyMonitor, Tails, fit_tails, gpd
from tests.benchmarks.measure import medians

FILTERS = 26_560  # of ResNet-50


def fit_row(*, quick: bool) -> dict[str, object]:
    """All filters at once against ``scipy.stats.genpareto.fit``, speed and likelihood."""
    filters, excesses, sample = (2000, 1000, 20) if quick else (FILTERS, 1000, 100)
    random = np.random.default_rng(0)
    xi = random.uniform(-0.3, 1.2, (filters, 1))
    y = 1e-5 * np.expm1(xi * random.exponential(size=(filters, excesses))) / xi
    rows = torch.from_numpy(-np.sort(-y.astype(np.float32), axis=1))
    ours = medians({"fit": lambda: gpd.fit(rows)}, rounds=3)["fit"]
    found = gpd.fit(rows)
    start = time.perf_counter()
    short = 0
    for i in range(sample):
        values = rows[i].double().numpy()
        with np.errstate(all="ignore"):
            shape, _, scale = stats.genpareto.fit(values, floc=0)
        theirs = stats.genpareto.logpdf(values, shape, scale=scale).sum()
        short += bool(shape >= -1 and theirs > found.log_likelihood[i] + 1e-6 * abs(theirs))
    each = (time.perf_counter() - start) / sample
    return {
        "filters x excesses": f"{filters} x {excesses}",
        "seconds": ours,
        "scipy / salmon, per fit": each / (ours / filters),
        f"rows below scipy's likelihood, of {sample}": short,
    }


def stream_row(*, quick: bool) -> dict[str, object]:
    """The bounded stream: time per sample, and what keeping everything would take."""
    filters, samples = (5000, 5000) if quick else (FILTERS, 50_000)
    torch.manual_seed(0)
    batches = [torch.rand(64, filters).pow_(-0.4) for _ in range(4)]
    tails = Tails(filters)
    start = time.perf_counter()
    for i in range(0, samples, 64):
        tails.update(batches[i // 64 % 4])
    streamed = time.perf_counter() - start
    start = time.perf_counter()
    fit_tails(tails)
    return {
        "filters x samples": f"{filters} x {samples}",
        "stream, ms per sample": 1e3 * streamed / samples,
        "fit_tails, s": time.perf_counter() - start,
        "buffer, MB": filters * (1 + 512 + 1024) * 4 / 2**20,
        "full table, MB": filters * samples * 4 / 2**20,
    }


class _Net(LightningModule):
    """ResNet-18 that only validates."""

    def __init__(self) -> None:
        super().__init__()
        self.net = zoo.resnet18(num_classes=10)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.net(x))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


def callback_row(*, quick: bool) -> dict[str, object]:
    """Validation with the monitor against validation plus the limit of its saliency."""
    batches = 4 if quick else 16
    torch.manual_seed(0)
    images, labels = torch.randn(64 * batches, 3, 32, 32), torch.randint(10, (64 * batches,))
    data, module = DataLoader(TensorDataset(images, labels), 64), _Net()
    weights = [p for p in module.parameters() if p.ndim == 4]

    def validate(*callbacks: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Trainer(
                accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
                enable_model_summary=False, callbacks=list(callbacks), default_root_dir=folder,
            ).validate(module, data, verbose=False)  # fmt: skip

    def limit() -> None:
        module.eval()
        for x, y in zip(images.split(64), labels.split(64), strict=True):
            loss = nn.functional.cross_entropy(module(x), y, reduction="sum")
            torch.autograd.grad(loss, weights)

    seconds = medians(
        {"plain": validate, "limit": limit, "watched": lambda: validate(SaliencyMonitor())},
        rounds=3,
    )
    return {
        "samples": 64 * batches,
        "plain validation, s": seconds["plain"],
        "with monitor, s": seconds["watched"],
        "with monitor / (plain + limit)": seconds["watched"]
        / (seconds["plain"] + seconds["limit"]),
    }
