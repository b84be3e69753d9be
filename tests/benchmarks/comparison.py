"""Is a scrambled layer traced? On the network and the held-out images of ``salmon demo``."""

import copy
import time
from typing import Any

import torch

from salmon import compare
from tests.benchmarks.repairs import subject

LAYERS = ("conv1", "layer1.0.conv2", "layer2.0.conv1", "layer3.1.conv1", "layer4.1.conv2")
LOUDER = 2.0  # the noise, in units of the weights
DRIFT = 1e-3  # of every tensor's spread, as after a fine-tuning


def rows() -> list[dict[str, Any]]:
    """Noise in one layer at a time, and the place that it has in each view."""
    old, _, images = subject(0)
    found = []
    for seed, layer in enumerate(LAYERS):
        new, name = copy.deepcopy(old), f"net.{layer}"
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in new.parameters():
                noise = torch.randn(parameter.shape, generator=random)
                parameter.add_(DRIFT * parameter.std().nan_to_num(0) * noise)
            weight = new.get_parameter(f"{name}.weight")
            noise = torch.randn(weight.shape, generator=random)
            weight.copy_(LOUDER * weight.norm() / noise.norm() * noise)
        began = time.perf_counter()
        one = compare(old, new, images)
        seconds = time.perf_counter() - began
        row: dict[str, Any] = {"scrambled": layer, "broken": one.counts.broken, "s": seconds}
        if one.blame is not None:
            shares, back = one.loss_shares, {each.name: each for each in one.reversals}
            others = [share for other, share in shares.items() if other != name]
            row |= {
                "loss": shares[name],
                "loss, largest other": max(others),
                "net of the reversal": round(back[name].net),
                "of random ones": round(back[name].random),
                "largest other": round(max(e.net for n, e in back.items() if n != name)),
                "place by blame": 1 + list(one.blame.layers).index(name),
                "of": len(one.blame.layers),
            }
        found.append(row)
    return found
