"""Per-sample gradients and tail fits by other means. Packages that are missing are left out."""

import copy
import importlib.util
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from tests.benchmarks.measure import Task


def installed(*names: str) -> list[str]:
    """Those of some packages that are there."""
    return [name for name in names if importlib.util.find_spec(name) is not None]


def loop(network: nn.Module, weights: dict[str, Tensor], images: Tensor, labels: Tensor) -> Task:
    """One sample at a time."""

    def run() -> object:
        rows = []
        for x, y in zip(images, labels, strict=True):
            loss = nn.functional.cross_entropy(network(x[None]), y[None])
            gradients = torch.autograd.grad(loss, list(weights.values()))
            rows.append([g.abs().flatten(1).mean(1) for g in gradients])
        return rows

    return run


def vmapped(network: nn.Module, weights: dict[str, Tensor], images: Tensor, labels: Tensor) -> Task:
    """``torch.func``: all per-sample gradients at once."""

    def one(chosen: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(network, chosen, (x[None],))
        return nn.functional.cross_entropy(logits, y[None])

    def run() -> object:
        gradients = vmap(grad(one), (None, 0, 0))(weights, images, labels)
        return [g.abs().flatten(2).mean(2) for g in gradients.values()]

    return run


def opacus(network: nn.Module, weights: dict[str, Tensor], images: Tensor, labels: Tensor) -> Task:
    """Opacus' ``GradSampleModule``."""
    from opacus.grad_sample import GradSampleModule

    own = _for_hooks(network, weights)
    for module in own.modules():  # it watches modules in train mode only
        if isinstance(module, nn.Conv2d):
            module.training = True
    wrapped = GradSampleModule(own, loss_reduction="sum", strict=False)

    def run() -> object:
        wrapped.zero_grad()
        nn.functional.cross_entropy(wrapped(images), labels, reduction="sum").backward()
        watched = [p for p in wrapped.parameters() if p.requires_grad]
        return [p.grad_sample.abs().flatten(2).mean(2) for p in watched]

    return run


def backpack(
    network: nn.Module, weights: dict[str, Tensor], images: Tensor, labels: Tensor
) -> Task:
    """BackPACK's ``BatchGrad``."""
    from backpack import backpack as extensions
    from backpack import extend
    from backpack.extensions import BatchGrad

    own = _for_hooks(network, weights)
    for module in own.modules():
        if isinstance(module, nn.Conv2d):
            extend(module)

    def run() -> object:
        with extensions(BatchGrad()):
            nn.functional.cross_entropy(own(images), labels, reduction="sum").backward()
        watched = [p for p in own.parameters() if p.requires_grad]
        return [cast(Any, p).grad_batch.abs().flatten(2).mean(2) for p in watched]

    return run


def _for_hooks(network: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A copy with gradients for some weights only, and no in-place layers, which hooks forbid."""
    own = copy.deepcopy(network)
    for name, parameter in own.named_parameters():
        parameter.requires_grad_(name in weights)
    for module in own.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
    return own


Fitted = tuple[float, float, np.ndarray]
"""Shape, scale, and the excesses they were fitted to."""


def scipy_fit(values: np.ndarray) -> Fitted:
    """SciPy's maximum likelihood with the location fixed."""
    from scipy import stats

    with np.errstate(all="ignore"):
        shape, _, scale = stats.genpareto.fit(values, floc=0)
    return shape, scale, values


def pyextremes_fit(values: np.ndarray) -> Fitted:
    """pyextremes' model "MLE"."""
    import pandas as pd
    from pyextremes.models import get_model

    series = pd.Series(values, index=pd.date_range("2000", periods=len(values)))
    with np.errstate(all="ignore"):
        model = get_model(
            "MLE", extremes=series, distribution="genpareto", distribution_kwargs={"floc": 0}
        )
    return model.fit_parameters["c"], model.fit_parameters["scale"], values


def libspot_fit(values: np.ndarray) -> Fitted:
    """libspot: threshold and fit of a stream; 9 of 10 values lie below these excesses."""
    from libspot import Spot

    below = -np.linspace(values.max(), 0, 9 * len(values), endpoint=False)
    stream = np.random.default_rng(0).permutation(np.concatenate([below, values]))
    spot = Spot(q=1e-5, level=0.9, max_excess=2 * len(values), discard_anomalies=False)
    spot.fit(stream)
    return spot.gamma, spot.sigma, np.asarray(spot.excesses())


FITS: dict[str, Callable[[np.ndarray], Fitted]] = {
    "scipy": scipy_fit,
    "pyextremes": pyextremes_fit,
    "libspot": libspot_fit,
}


def timed_fits(name: str, rows: np.ndarray) -> tuple[float, list[Fitted]]:
    """Seconds per fit, and what was found."""
    start = time.perf_counter()
    found = [FITS[name](row) for row in rows]
    return (time.perf_counter() - start) / len(rows), found
