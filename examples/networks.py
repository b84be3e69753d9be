"""What is measured of known networks, and whether it is measured right: makes docs/networks.md.

    python examples/networks.py > docs/networks.md

Random weights, small inputs, two samples; each network is verified in float64 against one
``autograd.grad`` per sample. The timm networks need the package timm.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision.models as zoo
from torch import nn

from salmon import Coverage, FilterIndex, coverage, filter_saliency, verify

CONV = ("conv",)


@dataclass(frozen=True, slots=True)
class Network:
    """One network to try."""

    name: str
    build: Callable[[], nn.Module]
    size: int  # of the square input
    units: tuple[str, ...] = CONV

    def make(self) -> nn.Module:
        """Build it in eval mode, with BatchNorm statistics of some random images."""
        torch.manual_seed(1)
        network = self.build().train()
        with torch.no_grad():
            for parameter in network.parameters():
                if not parameter.any():  # a classifier of zeros would pass no gradient on
                    parameter.normal_(std=0.1)
            network(torch.randn(4, 3, self.size, self.size))
        return network.eval()


def _timm(name: str, **options: Any) -> nn.Module:
    """A timm network with random weights."""
    import timm

    return timm.create_model(name, num_classes=10, **options)


def _standardised() -> nn.Module:
    """A ResNet whose convolutions standardise their weights."""
    from timm.layers.std_conv import StdConv2d

    return _timm("resnetv2_50", conv_layer=StdConv2d)


NETWORKS = [
    Network("resnet18", zoo.resnet18, 40),
    Network("resnet50", zoo.resnet50, 40),
    Network("vgg19", zoo.vgg19, 33),
    Network("vgg19_bn", zoo.vgg19_bn, 33),
    Network("densenet121", zoo.densenet121, 40),
    Network("inception_v3", partial(zoo.inception_v3, init_weights=False, aux_logits=False), 80),
    Network("googlenet", partial(zoo.googlenet, init_weights=False), 40),
    Network("mobilenet_v3_small", zoo.mobilenet_v3_small, 40),
    Network("efficientnet_b0", zoo.efficientnet_b0, 40),
    Network("shufflenet_v2_x1_0", zoo.shufflenet_v2_x1_0, 40),
    Network("convnext_tiny", zoo.convnext_tiny, 40, ("conv", "linear")),
    Network("regnet_y_400mf", zoo.regnet_y_400mf, 40),
    Network("vit_b_16", partial(zoo.vit_b_16, image_size=48), 48, ("heads",)),
    Network("swin_t", zoo.swin_t, 48, ("heads",)),
]
TIMM_NETWORKS = [
    Network("timm resnetv2_50, standardised weights", _standardised, 32),
    Network("timm vit_tiny_patch16", partial(_timm, "vit_tiny_patch16_224", img_size=32), 32,
            ("heads",)),
]  # fmt: skip


def check(network: Network) -> tuple[Coverage, float]:
    """The coverage of a network, and its largest difference from one-by-one autograd."""
    model = network.make()
    index = FilterIndex.from_model(model, units=network.units)
    inputs, targets = torch.randn(2, 3, network.size, network.size), torch.tensor([3, 1])
    table = coverage(model, inputs, targets, index)
    saliency = filter_saliency(model, inputs, targets, index)
    assert saliency.any(0).double().mean() > 0.5, "nothing to compare"
    return table, max(verify(model, inputs, targets, index, tolerance=1e-8).values())


def main() -> None:
    """Print the page."""
    print("# Networks\n")
    print("Made by `python examples/networks.py > docs/networks.md`: random weights, two samples.")
    print("*Difference* is the largest one from one `autograd.grad` per sample in float64,")
    print("relative to the largest saliency of the layer. How to read the columns: `fast` weights")
    print("are reduced as their gradient arrives; `in pieces` means per-sample gradients of a few")
    print("samples at a time; `one by one` means one backward per sample. Weights without")
    print("influence (auxiliary heads in eval mode) have saliency 0.\n")
    ways = ("fast", "in pieces", "one by one", "no influence")
    columns = ("network", "units", "filters", *ways, "difference")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    others = []
    extra = TIMM_NETWORKS if importlib.util.find_spec("timm") else []
    for network in NETWORKS + extra:
        table, difference = check(network)
        counts = [
            sum(row.filters > 0 and row.how.startswith(how) for row in table.rows) for how in ways
        ]
        print(
            f"| {network.name} | {', '.join(network.units)} | {table.measured} | "
            f"{' | '.join(map(str, counts))} | {difference:.0e} |"
        )
        plain = ("fast", "holds no filters", "left out; units=")
        odd = {row.how for row in table.rows if not row.how.startswith(plain)}
        others += [
            (network.name, how, [row.parameter for row in table.rows if row.how == how])
            for how in sorted(odd)
        ]
    print("\n## Weights that are not fast\n")
    print("| network | how | weights |\n|---|---|---|")
    for name, how, parameters in others:
        named = ", ".join(f"`{parameter}`" for parameter in parameters[:4])
        more = f" and {len(parameters) - 4} more" if len(parameters) > 4 else ""
        print(f"| {name} | {how} | {named}{more} |")
    print("\nThe table of one network, parameter by parameter: `print(salmon.coverage(model,")
    print("inputs, labels))`. To check your own: `salmon.verify(model, inputs, labels)`.")


if __name__ == "__main__":
    main()
