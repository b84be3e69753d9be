"""Fit against its rivals, stream against keeping everything, callback against plain validation."""

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

from salmon import SaliencyMonitor, Tails, ViewSettings, fit_tails, gpd, rank_filters
from tests.benchmarks import rivals
from tests.benchmarks.measure import compare, seconds

FILTERS = 26_560  # of ResNet-50
LAYERS = 53
RANKED = 200  # samples
BATCH = 64
OTHERS = 0.025  # mean probability that the watched network gives to other classes
SHORT = 1e-9  # of the log-likelihood, by which a fit may fall short


def excesses(filters: int, length: int) -> Tensor:
    """Rows of generalized Pareto excesses in descending order, as the stream gives them."""
    random = np.random.default_rng(0)
    xi = random.uniform(-0.3, 1.2, (filters, 1))
    y = 1e-5 * np.expm1(xi * random.exponential(size=(filters, length))) / xi
    return torch.from_numpy(-np.sort(-y.astype(np.float32), axis=1))


def fit_rows(*, quick: bool) -> list[dict[str, Any]]:
    """All filters at once against one fit after another, speed and likelihood."""
    filters, length, sample = (2000, 1000, 20) if quick else (FILTERS, 1000, 100)
    data = excesses(filters, length)
    ones = torch.ones(filters * length, dtype=torch.float64)
    out = torch.empty_like(ones)  # else the making of the memory would be timed
    timing = compare(
        {
            "one log1p of all values": lambda: torch.log1p(ones, out=out),
            "salmon": lambda: gpd.fit(data),
        },
        budget=10,
    )
    each = timing["salmon"].seconds / filters
    table: list[dict[str, Any]] = [
        {
            "fit": "salmon",
            "ms per fit": 1e3 * each,
            "times salmon": 1.0,
            "rows short of the best likelihood known": _short(data[:sample], "salmon"),
            "all filters, s": timing["salmon"].seconds,
            "in passes of log1p": timing["salmon"],
        }
    ]
    for name in ["scipy", *([] if quick else rivals.installed("pyextremes", "libspot"))]:
        rivals.timed_fits(name, data[:1].double().numpy())  # imports
        cost, _ = rivals.timed_fits(name, data[:sample].double().numpy())
        table.append(
            {
                "fit": name,
                "ms per fit": 1e3 * cost,
                "times salmon": cost / each,
                "rows short of the best likelihood known": _short(data[:sample], name),
            }
        )
    return table


def _short(data: Tensor, name: str) -> str:
    """How many of some rows a fit leaves below the best likelihood known, on its own excesses."""
    short = 0
    for row in data.double().numpy():
        if name == "salmon":
            shape, scale, values = rivals.scipy_fit(row)
        else:
            shape, scale, values = rivals.FITS[name](row)
        ours = gpd.fit(torch.from_numpy(np.asarray(values))[None])
        with np.errstate(all="ignore"):
            theirs = float(stats.genpareto.logpdf(values, shape, scale=scale).sum())
        theirs = theirs if shape >= -1 and np.isfinite(theirs) else -np.inf
        mine, other = (float(ours.log_likelihood), theirs)
        mine, other = (mine, other) if name == "salmon" else (other, mine)
        short += mine < other - SHORT * abs(other)
    return f"{short} of {len(data)}"


def fit_curve_rows() -> list[dict[str, Any]]:
    """Seconds of the fit by filters and excesses."""
    table = []
    for filters, length in [(1000, 1000), (10_000, 1000), (100_000, 1000), (10_000, 100)]:
        data = excesses(filters, length)
        timing = compare({"fit": lambda data=data: gpd.fit(data)}, budget=5)["fit"]  # type: ignore[misc]
        table.append(
            {
                "filters": filters,
                "excesses": length,
                "fit, s": timing.seconds,
                "us per fit": 1e6 * timing.seconds / filters,
            }
        )
    return table


def posterior_rows() -> list[dict[str, Any]]:
    """What shrinking costs on top of the fit, and its rankings on top of those by likelihood."""
    data, layer = excesses(FILTERS, 1000), torch.arange(FILTERS) * LAYERS // FILTERS
    found = gpd.fit(data, curves=True)
    assert found.curve is not None
    curve = found.curve
    fitting = compare(
        {
            "gpd.fit": lambda: gpd.fit(data),
            "gpd.fit with curves": lambda: gpd.fit(data, curves=True),
            "gpd.posterior": lambda: gpd.posterior(curve, layer),
        },
        budget=20,
    )
    random = torch.Generator().manual_seed(0)
    tails = Tails(FILTERS)
    for _ in range(20):
        tails.update(torch.empty(100, FILTERS).exponential_(generator=random).pow_(1.5))
    profile = torch.empty(RANKED, FILTERS).exponential_(generator=random).pow_(1.5)
    shrunk = fit_tails(tails)
    ml, shown = shrunk.as_ml(), shrunk.posterior
    assert shown is not None

    def first() -> None:
        shown.lookups.clear()
        rank_filters(profile, shrunk)

    ranking = compare(
        {
            "rank_filters, likelihood": lambda: rank_filters(profile, ml),
            "rank_filters, shrunk, later calls": lambda: rank_filters(profile, shrunk),
            "rank_filters, shrunk, first call": first,
        },
        budget=20,
    )
    return [
        {"what": name, "s": timing.seconds, "of the first": timing}
        for timings in (fitting, ranking)
        for name, timing in timings.items()
    ]


def stream_rows(*, quick: bool) -> list[dict[str, Any]]:
    """The bounded stream: time per sample, and what keeping everything would take."""
    if quick:
        return [_stream_row(5000, 5000)]
    counts = [(FILTERS, 50_000), (5000, 1000), (5000, 10_000), (5000, 100_000)]
    return [_stream_row(*some) for some in [*counts, (1000, 10_000), (100_000, 10_000)]]


def _stream_row(filters: int, samples: int) -> dict[str, Any]:
    """Fresh random samples, their making not counted."""
    torch.manual_seed(0)
    tails = Tails(filters)
    streamed = 0.0
    for start in range(0, samples, BATCH):
        batch = torch.rand(min(BATCH, samples - start), filters)
        streamed += seconds(lambda batch=batch: tails.update(batch))  # type: ignore[misc]
    fitted = seconds(lambda: fit_tails(tails))
    return {
        "filters": filters,
        "samples": samples,
        "stream, ms per sample": 1e3 * streamed / samples,
        "fit_tails, s": fitted,
        "buffer, MB": tails.nbytes / 2**20,
        "all values, MB": filters * samples * 4 / 2**20,
    }


class _Net(LightningModule):
    """A network of the zoo that only validates."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = zoo.get_model(name, weights=None, num_classes=10)
        self.middle, self.times = torch.zeros(10), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.times * (self.net(x) - self.middle))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


def callback_rows(*, quick: bool) -> list[dict[str, Any]]:
    """Validation with the monitor against plain validation, and the limit of what it measures."""
    if quick:
        return [_callback_row("resnet18", 32, 3000, 0.05, budget=20)]
    return [
        _callback_row(network, size, samples, mistakes, budget=30)
        for network, size in (("resnet18", 32), ("mobilenet_v3_small", 64), ("densenet121", 32))
        for samples, mistakes in ((3000, 0.05), (6000, 0.05), (6000, 0.2))
    ]


def _callback_row(
    network: str, size: int, samples: int, mistakes: float, *, budget: float
) -> dict[str, Any]:
    """Random images, and labels of which a share is wrong."""
    torch.manual_seed(0)
    module = _Net(network)
    images = torch.randn(samples, 3, size, size)
    _warm(module, images[: 4 * BATCH])
    with torch.no_grad():
        logits = torch.cat([module(part) for part in images.split(BATCH)])
    module.middle = logits.mean(0)
    module.times = _times(logits - module.middle)
    logits = module.times * (logits - module.middle)
    labels, wrong = logits.argmax(1), torch.rand(samples) < mistakes
    labels[wrong] = (labels[wrong] + 1) % 10
    data = DataLoader(TensorDataset(images, labels), BATCH)
    weights = [p for p in module.parameters() if p.ndim == 4]

    def validate(*callbacks: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Trainer(
                accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
                enable_model_summary=False, callbacks=list(callbacks), default_root_dir=folder,
            ).validate(module, data, verbose=False)  # fmt: skip

    ends: list[float] = []

    class _Timed(SaliencyMonitor):
        def on_validation_epoch_end(self, *arguments: Any) -> None:
            start = time.perf_counter()
            super().on_validation_epoch_end(*arguments)
            ends.append(time.perf_counter() - start)

    first = SaliencyMonitor(views=ViewSettings(pictures=0))
    validate(first)
    measured = first.results["validation"].measured

    def plain_and_limit() -> None:
        validate()
        module.eval()
        rows = slice(0, measured)
        for x, y in zip(images[rows].split(BATCH), labels[rows].split(BATCH), strict=True):
            loss = nn.functional.cross_entropy(module(x), y, reduction="sum")
            torch.autograd.grad(loss, weights)

    found = compare(
        {
            "plain + limit": plain_and_limit,
            "plain": validate,
            "with monitor": lambda: validate(_Timed(views=ViewSettings(pictures=0))),
        },
        budget=budget,
    )
    plain, limit, with_monitor = (
        found[name].seconds for name in ("plain", "plain + limit", "with monitor")
    )
    return {
        "network": network,
        "input": size,
        "samples": samples,
        "mistakes": f"{mistakes:.0%}",
        "measured": f"{measured / samples:.1%}",
        "plain validation, s": plain,
        "with monitor, s": with_monitor,
        "of that at the end of the epoch, s": sorted(ends)[len(ends) // 2],
        "with monitor / plain": with_monitor / plain,
        "1 + 1.1 x limit of what is measured / plain": 1 + 1.1 * (limit - plain) / plain,
        "with monitor / (plain + limit)": found["with monitor"],
    }


def _warm(module: nn.Module, images: Tensor) -> None:
    """Let BatchNorm learn the images, without which some networks answer all of them alike."""
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.momentum = None  # the mean of all batches
    with torch.no_grad():
        for part in images.split(BATCH):
            module.train()(part)
    module.eval()


def _times(logits: Tensor) -> float:
    """What to multiply logits with, so that the network is as sure as a trained one."""
    low, high = 0.0, 1e6
    for _ in range(60):
        middle = (low + high) / 2
        others = 1 - (middle * logits.double()).softmax(1).amax(1).mean()
        low, high = (middle, high) if others > OTHERS else (low, middle)
    return low
