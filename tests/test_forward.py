"""Running a user's network once more leaves nothing behind in it, in its inputs or in a batch."""

import copy
import logging
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.ao.quantization import get_default_qat_qconfig, prepare_qat
from torch.nn.utils import prune, spectral_norm, weight_norm
from torchmetrics.classification import MulticlassAccuracy

import salmon
from salmon import SaliencyMonitor
from tests.networks import PlainNet, batch
from tests.traces import assert_identical, network_state, random_states
from tests.trainers import Module, averaging, digits, loader, trainer


class Counter:
    """A plain object of the user's own."""

    def __init__(self) -> None:
        self.calls = 0
        self.sizes: list[int] = []


class Collector(PlainNet):
    """Keeps everything that a forward can keep, wherever it can be kept."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__(classes)
        self.register_buffer("average", torch.zeros(3))
        self.register_buffer("seen", torch.zeros(0))
        self.metric = MulticlassAccuracy(classes)
        self.own_draws = torch.Generator().manual_seed(5)
        self.numpy_draws = np.random.default_rng(5)
        self.old_numpy_draws = np.random.RandomState(5)
        self.python_draws = random.Random(5)
        self.cache: dict[str, Any] = {}
        self.kept: list[Any] = []
        self.nested: dict[str, list[Tensor]] = {"features": []}
        self.latest = deque([torch.zeros(1)], maxlen=3)
        self.shapes: set[tuple[int, ...]] = set()
        self.table = np.zeros(3)
        self.constants = np.broadcast_to(np.ones(1), 3)  # may not be written to
        self.counter = Counter()
        self.total = torch.zeros(())
        self.calls = 0
        self.hidden = [nn.BatchNorm1d(4)]  # no submodule, so that it is in no state dict
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.average = 0.9 * self.get_buffer("average") + 0.1 * x.mean((0, 2, 3))
        self.get_buffer("seen").resize_(len(x)).copy_(x.mean((1, 2, 3)).detach())
        draws = torch.rand(1, generator=self.own_draws) + self.numpy_draws.random()
        draws = draws + self.old_numpy_draws.rand() + self.python_draws.random()
        logits = torch.as_tensor(super().forward(x)) + 0 * draws
        self.metric(logits.detach(), logits.argmax(1))
        self.cache.setdefault("weights", self.features[0].get_parameter("weight") * 2)
        self.cache["last"] = logits
        self.kept.append(logits)
        self.nested["features"].append(logits)
        self.latest.append(logits)
        self.shapes.add(tuple(x.shape))
        self.table[self.calls % 3] += 1
        self.counter.calls += 1
        self.counter.sizes.append(len(x))
        self.total.data.add_(1)  # past the version counter
        self.hidden[0].get_buffer("running_mean").add_(1)
        self.calls += 1
        self.last = logits
        return logits


def held(network: Collector) -> list[Any]:
    """All that a forward of it changes."""
    return [
        [b.clone() for b in network.buffers()],
        [torch.as_tensor(getattr(network.metric, n)).clone() for n in ("tp", "_update_count")],
        network.own_draws.get_state(),
        str(network.numpy_draws.bit_generator.state),
        str(network.old_numpy_draws.get_state()),
        network.python_draws.getstate(),
        list(network.cache), len(network.kept), len(network.nested["features"]),
        [t.clone() for t in network.latest], sorted(network.shapes), network.table.tolist(),
        [network.counter.calls, list(network.counter.sizes)], network.total.clone(),
        network.hidden[0].get_buffer("running_mean").clone(), network.calls, network.last is None,
    ]  # fmt: skip


def test_a_measurement_puts_back_all_that_forward_keeps() -> None:
    network = Collector().eval()
    images, labels = batch(6)
    before, state, drawn = held(network), network_state(network), random_states()
    salmon.filter_saliency(network, images, labels)
    assert_identical(held(network), before)
    assert_identical(network_state(network), state)
    assert_identical(random_states(), drawn)
    copy.deepcopy(network)
    network(images)
    assert held(network)[-2] == 1  # the network itself does change when it is run


def test_it_is_put_back_when_the_network_raises_half_way() -> None:
    class Breaks(Collector):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise ZeroDivisionError

    network = Breaks().eval()
    before = held(network)
    with pytest.raises(ZeroDivisionError):
        salmon.filter_saliency(network, *batch(6))
    assert_identical(held(network), before)


class CollectingModule(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Collector()


class Quantised(Module):
    """Prepared for quantisation-aware training, whose observers watch in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        for module in self.net.modules():
            module.qconfig = get_default_qat_qconfig("x86")
        prepare_qat(self.net.train(), inplace=True)


def trained(folder: Path, make: Callable[[], Module], *callbacks: Any) -> list[Any]:
    seed_everything(1, verbose=False)
    module = make()
    work = trainer(folder, *callbacks, max_epochs=2)
    work.fit(module, loader(digits(48), shuffle=True), loader())
    kept = held(module.net) if isinstance(module.net, Collector) else []
    return [network_state(module), work.optimizers[0].state_dict(), kept]


@pytest.mark.filterwarnings("ignore:.*quant_min and quant_max:UserWarning")  # of torch's defaults
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch moves its quantisation elsewhere
@pytest.mark.parametrize("make", [CollectingModule, Quantised])
def test_training_is_the_same_where_forward_writes_state(
    tmp_path: Path, make: Callable[[], Module]
) -> None:
    monitor = SaliencyMonitor(level=0.7)
    watched = trained(tmp_path / "with", make, monitor)
    alone = trained(tmp_path / "without", make)
    assert monitor.results["validation"].samples == 40
    assert_identical(watched, alone)


def test_a_parameter_that_forward_changes_is_named_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Clamps(PlainNet):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.features[0].get_parameter("weight").clamp_(-0.1, 0.1)
            return super().forward(x)

    network = Clamps().eval()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            salmon.filter_saliency(network, *batch(4))
    told = [r.getMessage() for r in caplog.records if "in place" in r.getMessage()]
    assert len(told) == 1
    assert "features.0.weight" in told[0]


NORMED: dict[str, Callable[[nn.Module], Any]] = {
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
    "pruning": lambda layer: prune.random_unstructured(layer, "weight", amount=0.3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", NORMED)
def test_coverage_then_verify_works_where_weights_are_computed_before_forward(kind: str) -> None:
    network = PlainNet().eval()
    NORMED[kind](network.features[0])
    images, labels = batch(4)
    with torch.no_grad():
        network(images)
    copy.deepcopy(network)
    salmon.coverage(network, images, labels)
    assert max(salmon.verify(network, images, labels).values()) < 1e-6
    copy.deepcopy(network)


def test_coverage_then_verify_works_for_a_network_that_caches_in_eval_mode() -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("levit_128s", num_classes=4)
    for module in network.modules():  # a new one passes almost nothing on
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            module.momentum = 1.0
    images, labels = torch.rand(4, 3, 224, 224), torch.tensor([0, 1, 2, 3])
    network(images)  # in train mode, for the statistics
    network.eval()
    salmon.coverage(network, images, labels)
    assert max(salmon.verify(network, images, labels).values()) < 1e-6


class KeepsBest(Callback):
    """Copies the network after each validation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.best = copy.deepcopy(pl_module)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*use_buffers.*:UserWarning")
@pytest.mark.parametrize("other", [KeepsBest, lambda: averaging(0.5)])
@pytest.mark.parametrize("kind", ["collector", "weight norm"])
def test_callbacks_that_copy_the_network_work_beside_the_monitor(
    tmp_path: Path, kind: str, other: Callable[[], Callback]
) -> None:
    def make() -> Module:
        module = Module()
        if kind == "weight norm":
            weight_norm(module.net.features[0])
            with torch.no_grad():  # or it could not be copied before the first training step
                module(batch(2)[0])
        else:
            module.net.register_forward_hook(lambda net, _args, output: setattr(net, "out", output))
        return module

    seed_everything(1, verbose=False)
    monitor = SaliencyMonitor(level=0.7, strict=True)
    trainer(tmp_path, monitor, other(), max_epochs=2).fit(make(), loader(), loader())
    assert monitor.results["validation"].samples == 40


class Normalises(PlainNet):
    """Changes its input in place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).div_(0.25))


class Apart(PlainNet):
    """The same function without a trace."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - 0.5) / 0.25)


def test_the_argument_of_filter_saliency_stays_as_it_is() -> None:
    torch.manual_seed(1)
    network = Normalises().eval()
    images, labels = batch(6)
    before = images.clone()
    profile = salmon.filter_saliency(network, images, labels)
    assert torch.equal(images, before)
    other = Apart().eval()
    other.load_state_dict(network.state_dict())
    assert torch.equal(profile, salmon.filter_saliency(other, images, labels))


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_forward_that_changes_its_input_is_measured_on_what_it_got(
    tmp_path: Path, stage: str
) -> None:
    thresholds, batches = [], []

    class Witness(Callback):
        def on_validation_batch_end(
            self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any,
            batch_idx: int, dataloader_idx: int = 0,
        ) -> None:  # fmt: skip
            batches.append(batch[0].clone())

    for network in (Normalises, Apart):
        seed_everything(1, verbose=False)
        module = Module()
        module.net = network()
        monitor = SaliencyMonitor(level=0.7, strict=True)
        work = trainer(tmp_path, monitor, Witness(), limit_train_batches=2, num_sanity_val_steps=0)
        if stage == "fit":
            work.fit(module, loader(), loader())
        else:
            work.validate(module, loader(), verbose=False)
        thresholds.append(monitor.results["validation"].fit.threshold)
    assert torch.equal(*thresholds)
    raw = torch.cat([images for images, _ in loader()])
    changed, as_loaded = torch.cat(batches[:5]), torch.cat(batches[5:])
    assert torch.equal(as_loaded, raw)
    assert torch.equal(changed, (raw - 0.5) / 0.25)  # as without the monitor


def test_a_tensor_of_inference_mode_outside_of_the_network_is_refused_with_advice() -> None:
    elsewhere: list[Tensor] = []

    class Caches(PlainNet):
        def forward(self, x: Tensor) -> Tensor:
            if not elsewhere:
                elsewhere.append(torch.full((1,), 2.0))
            return super().forward(x) * elsewhere[0]

    network = Caches().eval()
    images, labels = batch(4)
    with torch.inference_mode():
        network(images)
    with pytest.raises(salmon.UnsupportedError, match=r"Trainer\(inference_mode=False\)"):
        salmon.filter_saliency(network, images, labels)


def test_tensors_made_in_inference_mode_do_not_end_a_measurement() -> None:
    class Caches(PlainNet):
        """Keeps a tensor from its first forward."""

        scale: Tensor | None = None
        tables: list[Tensor] | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.scale is None:
                self.scale, self.tables = torch.ones(1), [torch.ones(1, 3, 1, 1)]
            assert self.tables is not None
            return super().forward(x * self.scale * self.tables[0])

    network = Caches().eval()
    images, labels = batch(4)
    with torch.inference_mode():
        network(images)
    profile = salmon.filter_saliency(network, images, labels)
    assert network.scale is not None
    assert network.scale.is_inference()
    plain = PlainNet().eval()
    plain.load_state_dict(network.state_dict())
    assert torch.equal(profile, salmon.filter_saliency(plain, images, labels))
