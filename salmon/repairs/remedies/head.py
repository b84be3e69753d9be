"""The last linear layer fitted anew, in closed form, on features of new and reference samples.

Ridge regression of what is missing to the targets, which are ``SCALE * (one-hot - mean)``: with the
features ``Phi`` [N, D] (one of which is 1 where the layer has a bias), the old logits ``Z``, each
less its mean, and targets ``T``, the change is
``(Phi^T Phi + penalty * tr / D * I)^-1 Phi^T (T - Z)``.
"""

from typing import Any

import torch
from torch import Tensor, nn

from salmon.filters import clean_name
from salmon.forward import call_network, eagerly, eval_mode, no_trace
from salmon.repairs.edit import Change, Edit, plain_layout
from salmon.repairs.evidence import Evidence
from salmon.repairs.predictions import to_device
from salmon.repairs.samples import Samples
from salmon.repairs.trial import Proposal, Proposals, rising
from salmon.saliency import class_numbers, logits_of

SCALE = 10.0
PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)


def head(evidence: Evidence) -> Proposals:
    """Fit with less and less penalty, until it loses too much.

    Nothing is proposed where no linear layer gives the logits, or samples have no class numbers.
    """
    found = _last_linear(evidence.model)
    classes = class_numbers(evidence.new.samples.targets) is not None
    if found is None or not classes or evidence.objective.task.name != "classification":
        return
    name, layer = found
    parts = [
        _features(evidence.model, layer, part, evidence.batch_size)
        for part in (evidence.new.samples, evidence.reference.samples)
    ]
    if any(part is None for part in parts):
        return
    features, logits, targets = (torch.cat(p) for p in zip(*parts, strict=True))
    if layer.bias is not None:
        features = torch.cat([features, features.new_ones(len(features), 1)], 1)
    fits = (
        Proposal(
            "head", "all", f"ridge {penalty:g}",
            _edit(evidence, name, layer, ridge(features, logits, targets, penalty)),
        )
        for penalty in PENALTIES
    )  # fmt: skip
    yield from rising(fits, evidence.settings.margin)


def ridge(features: Tensor, logits: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """The change of the weights.

    Args:
        features: ``[N, D]`` float64.
        logits: ``[N, K]``.
        targets: ``[N]`` classes.

    Returns:
        ``[D, K]``.
    """
    classes = logits.shape[1]
    wanted = SCALE * (nn.functional.one_hot(targets, classes).double() - 1 / classes)
    wide = len(features) < features.shape[1]  # then the system of the samples is the smaller one
    system = features @ features.T if wide else features.T @ features
    added = penalty * system.trace() / features.shape[1]
    # Without any feature that is not zero, nothing changes.
    system.diagonal().add_(added if added > 0 else 1.0)
    missing = wanted - (logits - logits.mean(1, keepdim=True))
    right = missing if wide else features.T @ missing
    change: Tensor = torch.linalg.solve(system, right)
    return features.T @ change if wide else change


def _last_linear(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """The last linear layer in the order of modules, with its clean path."""
    linear = [(n, module) for n, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        return None
    name, layer = linear[-1]
    own = [layer._parameters.get(part) is getattr(layer, part) for part in ("weight", "bias")]
    return (clean_name(name), layer) if all(own) else None


def _features(
    model: nn.Module, layer: nn.Linear, samples: Samples, batch_size: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """What the layer reads, ``[N, D]``, and the logits, if it is it that gives them."""
    found, seen = [], []

    def see(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        seen.append(((args[0] if args else kwargs["input"]).detach(), output.detach()))

    hook = layer.register_forward_hook(see, with_kwargs=True)
    try:
        with (
            torch.inference_mode(mode=False), torch.no_grad(), no_trace(model), eval_mode(model),
            eagerly(),
        ):  # fmt: skip
            for inputs, _ in samples.batches(batch_size):
                seen.clear()
                logits = logits_of(call_network(model, to_device(inputs, model)))
                if len(seen) != 1 or seen[0][0].ndim != 2 or not logits.equal(seen[0][1]):
                    return None
                found.append((seen[0][0].double().cpu(), logits.double().cpu()))
    finally:
        hook.remove()
    features, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
    return features, logits, samples.targets


def _edit(evidence: Evidence, name: str, layer: nn.Linear, change: Tensor) -> Edit:
    """The layer with a change ``[D, K]``, whose last row is the bias's where there is one."""
    inputs, found = layer.in_features, []
    for part, moved in (("weight", change[:inputs].T), ("bias", change[inputs:].T)):
        if not moved.numel():
            continue
        old = evidence.state[f"{name}.{part}"]
        layout = plain_layout(f"{name}.{part}", old)
        new = (old.detach().double().cpu().reshape(moved.shape) + moved).to(old.dtype)
        found.append(Change(layout, torch.arange(layout.filters), new))
    return Edit(tuple(found))
