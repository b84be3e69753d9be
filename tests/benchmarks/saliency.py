"""Saliency of a batch against the limit and the rivals.

*limit*: one plain forward and ``autograd.grad`` of the summed loss with respect to the same
weights. *loop*: one sample at a time. *vmap*: ``torch.func.vmap`` of ``grad``.

    python -m tests.benchmarks.saliency CASE WHO   prints the growth of peak memory, in MB
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from salmon import FilterIndex, filter_saliency
from tests.benchmarks.measure import Task, medians, peak_megabytes, resident_peak

# name: network, input size, batch, unit
CASES: dict[str, tuple[Callable[[], nn.Module], int, int, str]] = {
    "resnet18-32-b64": (zoo.resnet18, 32, 64, "conv"),
    "resnet18-32-b256": (zoo.resnet18, 32, 256, "conv"),
    "resnet18-224-b8": (zoo.resnet18, 224, 8, "conv"),
    "resnet50-224-b8": (zoo.resnet50, 224, 8, "conv"),
    "vgg19-224-b4": (zoo.vgg19, 224, 4, "conv"),
    "mobilenet_v3_small-224-b16": (zoo.mobilenet_v3_small, 224, 16, "conv"),
    "vit_b_16-224-b4": (zoo.vit_b_16, 224, 4, "heads"),
}
MEMORY = ("resnet18-32-b64", "resnet50-224-b8", "vit_b_16-224-b4")
QUICK = ("resnet18-32-b64", "mobilenet_v3_small-224-b16")


def tasks(case: str) -> dict[str, Task]:
    """What is compared, on one network and batch."""
    build, size, batch, unit = CASES[case]
    torch.manual_seed(0)
    network = build().eval()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    index = FilterIndex.from_model(network, units=(unit,))
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    weights = {layer.weight: parameters[layer.weight] for layer in index.layers}
    images, labels = torch.randn(batch, 3, size, size), torch.randint(1000, (batch,))
    last = images.to(memory_format=torch.channels_last)

    def limit(x: Tensor) -> object:
        loss = nn.functional.cross_entropy(network(x), labels, reduction="sum")
        return torch.autograd.grad(loss, list(weights.values()))

    def loop() -> object:
        rows = []
        for x, y in zip(images, labels, strict=True):
            loss = nn.functional.cross_entropy(network(x[None]), y[None])
            gradients = torch.autograd.grad(loss, list(weights.values()))
            rows.append([g.abs().flatten(1).mean(1) for g in gradients])
        return rows

    def one(chosen: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(network, chosen, (x[None],))
        return nn.functional.cross_entropy(logits, y[None])

    def vmapped() -> object:
        gradients = vmap(grad(one), (None, 0, 0))(weights, images, labels)
        return [g.abs().flatten(2).mean(2) for g in gradients.values()]

    return {
        "limit": partial(limit, images),
        "limit, channels last": partial(limit, last),
        "salmon": lambda: filter_saliency(network, images, labels, index),
        "salmon, channels last": lambda: filter_saliency(network, last, labels, index),
        "loop": loop,
        "vmap": vmapped,
    }


def rows(*, quick: bool) -> list[dict[str, object]]:
    """One row per case: seconds of the limit, and everything in units of it."""
    table = []
    for case in QUICK if quick else CASES:
        chosen = tasks(case)
        if "b256" in case:
            del chosen["vmap"]  # takes about 17 GB
        if quick:
            chosen = {name: chosen[name] for name in ("limit", "salmon")}
        seconds = medians(chosen, rounds=5 if quick else 3, once=("loop", "vmap"))
        row: dict[str, object] = {"case": case, "limit, s": seconds["limit"]}
        row |= {f"{name} / limit": seconds[name] / seconds["limit"] for name in list(chosen)[1:]}
        if case in MEMORY and not quick:
            memory = {
                who: peak_megabytes("tests.benchmarks.saliency", case, who)
                for who in ("limit", "salmon")
            }
            row |= {f"{who}, MB": value for who, value in memory.items()}
        table.append(row)
        print(f"{case} done", file=sys.stderr)
    return table


if __name__ == "__main__":
    task = tasks(sys.argv[1])[sys.argv[2]]
    torch.nn.functional.conv2d(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 3, 3))  # load the library
    before = resident_peak()
    task()
    print(resident_peak() - before)
