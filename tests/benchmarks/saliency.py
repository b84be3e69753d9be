"""Saliency of a batch against the limit and the rivals.

*limit*: one plain forward and ``autograd.grad`` of the summed loss with respect to the same
weights.

    python -m tests.benchmarks.saliency CASE limit|salmon   prints the growth of the process's
                                                            memory in MB, of a first and a later run
    python -m tests.benchmarks.saliency CASE NAME cuda      prints its seconds on a GPU
"""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
import torchvision.models as zoo
from torch import Tensor, nn

from salmon import FilterIndex, filter_saliency
from tests.benchmarks import rivals
from tests.benchmarks.measure import Task, compare, growth, growth_in_own_process, seconds

# name: network, input size, batch, unit
CASES: dict[str, tuple[Callable[[], nn.Module], int, int, str]] = {
    "resnet18-32-b64": (zoo.resnet18, 32, 64, "conv"),
    "resnet18-32-b256": (zoo.resnet18, 32, 256, "conv"),
    "resnet18-224-b8": (zoo.resnet18, 224, 8, "conv"),
    "resnet50-224-b8": (zoo.resnet50, 224, 8, "conv"),
    "vgg19-224-b4": (zoo.vgg19, 224, 4, "conv"),
    "mobilenet_v3_small-224-b16": (zoo.mobilenet_v3_small, 224, 16, "conv"),
    "densenet121-32-b64": (zoo.densenet121, 32, 64, "conv"),
    "efficientnet_b0-224-b8": (zoo.efficientnet_b0, 224, 8, "conv"),
    "convnext_tiny-224-b8": (zoo.convnext_tiny, 224, 8, "conv"),
    "vit_b_16-224-b4": (zoo.vit_b_16, 224, 4, "heads"),
    "swin_t-224-b8": (zoo.swin_t, 224, 8, "heads"),
}
MEMORY = ("resnet18-32-b64", "resnet50-224-b8", "mobilenet_v3_small-224-b16", "vit_b_16-224-b4")
ON_GPU: dict[str, tuple[Callable[[], nn.Module], int, int, str]] = {
    "resnet50-224-b64": (zoo.resnet50, 224, 64, "conv"),
    "vit_b_16-224-b64": (zoo.vit_b_16, 224, 64, "heads"),
    "mobilenet_v3_large-224-b64": (zoo.mobilenet_v3_large, 224, 64, "conv"),
    "resnet18-32-b256": (zoo.resnet18, 32, 256, "conv"),
}
QUICK = ("resnet18-32-b64", "mobilenet_v3_small-224-b16")
BATCHES = (8, 32, 128, 512)  # of ResNet-18 at 32 pixels
SIZES = (32, 64, 128, 224)  # of the inputs of ResNet-18 in batches of 8
SLOW = ("loop", "vmap", "opacus", "backpack")


def tasks(
    build: Callable[[], nn.Module], size: int, batch: int, unit: str, device: str = "cpu"
) -> dict[str, Task]:
    """What is compared, on one network and batch."""
    torch.manual_seed(0)
    network = build().eval().to(device)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    index = FilterIndex.from_model(network, units=(unit,))
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    weights = {layer.weight: parameters[layer.weight] for layer in index.layers}
    images, labels = torch.randn(batch, 3, size, size), torch.randint(1000, (batch,))
    images, labels = images.to(device), labels.to(device)
    last = images.to(memory_format=torch.channels_last)

    def limit(x: Tensor) -> object:
        loss = nn.functional.cross_entropy(network(x), labels, reduction="sum")
        return torch.autograd.grad(loss, list(weights.values()))

    given = (network, weights, images, labels)
    found: dict[str, Task] = {
        "limit": partial(limit, images),
        "limit, channels last": partial(limit, last),
        "salmon": lambda: filter_saliency(network, images, labels, index),
        "loop": rivals.loop(*given),
    }
    if device != "cpu":  # there salmon puts the channels last itself
        found["salmon, channels last"] = lambda: filter_saliency(network, last, labels, index)
    # Those below hold all gradients of all samples at once.
    room = 1e9 if device == "cpu" else 1e10
    if batch * sum(weight.numel() for weight in weights.values()) < room:
        found["vmap"] = rivals.vmapped(*given)
        if unit == "conv":
            for name in rivals.installed("opacus", "backpack"):
                found[name] = getattr(rivals, name)(*given)
    return found


def rows(*, quick: bool) -> list[dict[str, Any]]:
    """One row per case: seconds of the limit, and everything in units of it."""
    table = []
    for case in QUICK if quick else CASES:
        chosen = tasks(*CASES[case])
        if quick:
            chosen = {name: chosen[name] for name in ("limit", "salmon")}
        found = compare(chosen, budget=8 if quick else 25, once=SLOW)
        row: dict[str, Any] = {"case": case, "limit, s": found["limit"].seconds}
        row |= {f"{name} / limit": found[name] for name in list(chosen)[1:]}
        table.append(row)
        print(f"{case} done", file=sys.stderr)
    return table


def gpu_rows() -> list[dict[str, Any]]:
    """On a GPU, with and without TF32 in the network's own convolutions: times and memory."""
    table = []
    for case, tf32 in product(ON_GPU, (True, False)):
        torch.backends.cudnn.allow_tf32 = tf32
        chosen = {name: _waiting(task) for name, task in tasks(*ON_GPU[case], "cuda").items()}
        alone = [name for name in ("backpack",) if chosen.pop(name, None)]  # it may end the process
        if not tf32:
            chosen = {name: task for name, task in chosen.items() if name not in SLOW}
        for name in list(chosen):
            _peak(chosen, name)  # also a warm-up
        peaks = {name: _peak(chosen, name) for name in ("limit", "salmon")}
        found = compare(chosen, budget=4, once=SLOW)
        limit = found["limit"].seconds
        row: dict[str, Any] = {
            "device": torch.cuda.get_device_name(),
            "case": case,
            "TF32": "yes" if tf32 else "no",
            "limit, ms": 1e3 * limit,
            "salmon, ms": 1e3 * found["salmon"].seconds,
        }
        row |= {f"{name} / limit": found[name] for name in list(found)[1:]}
        if tf32:
            torch.cuda.empty_cache()
            row |= {f"{name} / limit": _seconds_alone(case, name, limit) for name in alone}
        row |= {f"{name}, MB": peaks[name] for name in ("limit", "salmon")}
        table.append(row)
        print(f"{case} done", file=sys.stderr)
    torch.backends.cudnn.allow_tf32 = True
    return table


def _seconds_alone(case: str, name: str, limit: float) -> float | str:
    """What a task takes on the GPU in a process of its own, in units of the limit."""
    command = [sys.executable, "-m", "tests.benchmarks.saliency", case, name, "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout) / limit if done.returncode == 0 else "fails"


def _waiting(task: Task) -> Task:
    """A task that ends when the GPU does."""

    def run() -> None:
        task()
        torch.cuda.synchronize()

    return run


def _peak(chosen: dict[str, Task], name: str) -> float:
    """Most memory of a task on the GPU, in MB, without what is there before.

    A task that needs more than there is is left out.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        chosen[name]()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    except torch.OutOfMemoryError:
        del chosen[name]
        return 0


def memory_rows() -> list[dict[str, Any]]:
    """Growth of the memory in a process of its own, in MB."""
    table = []
    for case in MEMORY:
        limit, later_limit = growth_in_own_process("tests.benchmarks.saliency", case, "limit")
        salmon, later = growth_in_own_process("tests.benchmarks.saliency", case, "salmon")
        table.append(
            {
                "case": case,
                "limit, first batch": limit,
                "salmon, first batch": salmon,
                "ratio": salmon / limit,
                "limit, later batches": later_limit,
                "salmon, later batches": later,
                "ratio later": later / later_limit,
            }
        )
    return table


def curve_rows() -> list[dict[str, Any]]:
    """How the ratio to the limit grows with the batch and the size of the inputs."""
    table = []
    chosen = [(32, batch) for batch in BATCHES] + [(size, 8) for size in SIZES[1:]]
    for size, batch in chosen:
        several = tasks(zoo.resnet18, size, batch, "conv")
        found = compare({name: several[name] for name in ("limit", "salmon")}, budget=8)
        table.append(
            {
                "network": "resnet18",
                "input": size,
                "batch": batch,
                "limit, ms per sample": 1e3 * found["limit"].seconds / batch,
                "salmon / limit": found["salmon"],
            }
        )
    return table


if __name__ == "__main__":
    if sys.argv[3:] == ["cuda"]:
        task = _waiting(tasks(*ON_GPU[sys.argv[1]], "cuda")[sys.argv[2]])
        task()
        print(seconds(task))
    else:
        task = tasks(*CASES[sys.argv[1]])[sys.argv[2]]
        torch.nn.functional.conv2d(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 3, 3))  # loads it
        first = growth(task)
        growth(task)
        print(first, growth(task))
