"""One step that leaves alone what the reference data excite.

For the weight ``W`` [O, K] of a convolution and the patches ``a`` [K] of its input, the step of
filter o is ``-(C + damping * tr(C) / K * I)^-1 g_o`` with ``C`` the mean of ``a a^T`` over the
reference samples: the input factor of Kronecker-factored curvature (Martens and Grosse 2015, ICML).
It is normalised to a share of ``|W_o|``. Left out are filters whose weight is not read as it is by
plain convolutions, such as transposed or parametrised ones.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from salmon.filters import FilterIndex, filter_rows, weight_of_rows
from salmon.forward import call_network, eagerly, eval_mode, gradients_on, no_trace
from salmon.repairs.edit import by_layer, step_edit
from salmon.repairs.evidence import Evidence
from salmon.repairs.predictions import to_device
from salmon.repairs.samples import Samples
from salmon.repairs.trial import Proposal, Proposals, rising
from salmon.saliency import Catcher, Geometry, Use, indexed_weights

RATES = (0.01, 0.03, 0.1, 0.3)
"""Relative change of each filter."""

DAMPING = 0.01
PATCHES_PER_WEIGHT = 16
MOST_PATCHES = 4096
"""Of a layer; less where 16 for each weight of a filter are less."""


def curvature(evidence: Evidence, order: str, shares: Sequence[float]) -> Proposals:
    """Step along the preconditioned mean gradient of the new samples.

    Rates and numbers of filters are tried as those of a plain step.
    """
    index, filters = evidence.index, evidence.first(order, max(shares))
    if not len(filters):  # none is ranked
        return
    patches = input_patches(
        evidence.model, evidence.reference.samples, index, evidence.batch_size,
        evidence.settings.seed,
    )  # fmt: skip
    directions, served = _directions(index, filters, evidence.gradients, patches)
    for share in sorted(shares, reverse=True):
        chosen = evidence.first(order, share)
        chosen = chosen[torch.isin(chosen, served)]
        steps = (
            Proposal(
                "curvature", order, f"{rate:g}",
                step_edit(evidence.state, index, chosen, directions, rate, normalised=True),
            )
            for rate in (RATES if len(chosen) else ())
        )  # fmt: skip
        if not (yield from rising(steps, evidence.settings.margin)):
            break


def _directions(
    index: FilterIndex, filters: Tensor, gradients: Mapping[str, Tensor], patches: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """Preconditioned gradients by weight, and the filters that have one."""
    found, served = {}, []
    for layer, channels in by_layer(index, filters):
        if layer.weight not in patches:
            continue
        inputs = patches[layer.weight].double()  # [groups, n, K]
        gradient = gradients[layer.weight]
        rows = filter_rows(gradient, layer).clone()
        group_of = channels // (layer.filters // len(inputs))
        for group in group_of.unique().tolist():
            own = channels[group_of == group]
            rows[own] = precondition(inputs[group], rows[own], DAMPING)
        found[layer.weight] = weight_of_rows(rows, layer, gradient.shape)
        served.append(channels + index.starts[index.layers.index(layer)])
    return found, torch.cat(served) if served else filters[:0]


def precondition(inputs: Tensor, gradients: Tensor, damping: float) -> Tensor:
    """Solve ``(C + damping * tr(C) / K * I) x = g`` with ``C = inputs^T inputs / n``.

    Args:
        inputs: ``[n, K]`` float64. The smaller of the systems of K and of n unknowns is solved.
        gradients: ``[m, K]``.

    Returns:
        ``[m, K]``; the gradients themselves where all inputs are zero.
    """
    n, size = inputs.shape
    ridge = damping * inputs.square().sum() / size  # n times that of C
    if ridge == 0:
        return gradients
    if n >= size:
        system = inputs.T @ inputs
        system.diagonal().add_(ridge)
        return n * torch.cholesky_solve(gradients.T, torch.linalg.cholesky(system)).T
    system = inputs @ inputs.T
    system.diagonal().add_(ridge)
    seen = torch.cholesky_solve(inputs @ gradients.T, torch.linalg.cholesky(system))
    return n * (gradients - (inputs.T @ seen).T) / ridge


def input_patches(
    model: nn.Module, samples: Samples, index: FilterIndex, batch_size: int, seed: int
) -> dict[str, Tensor]:
    """``[groups, n, K]`` patches that convolutions read, by weight; float32 on the CPU.

    About :data:`MOST_PATCHES` positions of each layer at most, at random, as many of each batch.
    """
    weights = [each.parameter for each in indexed_weights(model, index)]
    random = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = defaultdict(list)
    unread: set[str] = set()
    with (
        torch.inference_mode(mode=False), no_trace(model), eval_mode(model), eagerly(),
        gradients_on(weights),
    ):  # fmt: skip
        for inputs, targets in samples.batches(batch_size):
            share = len(targets) / len(samples)
            with torch.enable_grad(), Catcher(weights, len(targets)) as catcher:
                call_network(model, to_device(inputs, model))
            for use in catcher.uses.values():
                name, size = index.layers[use.position].weight, index.layers[use.position].size
                geometry = use.geometry
                if geometry is None or not _is_plain(use, geometry):
                    unread.add(name)
                    continue
                most = max(1, round(share * min(MOST_PATCHES, PATCHES_PER_WEIGHT * size)))
                found[name].append(_some_patches(use.inputs, geometry, most, random))
            catcher.release()
    return {name: torch.cat(p, 1) for name, p in found.items() if name not in unread}


def _is_plain(use: Use, geometry: Geometry) -> bool:
    """Whether a batch was convolved with the whole weight, and its input is still as it was."""
    batched = use.inputs.ndim == len(geometry.kernel) + 2
    unchanged = use.inputs._version == use.version
    return use.whole and not geometry.transposed and batched and unchanged


def _some_patches(inputs: Tensor, geometry: Geometry, most: int, random: torch.Generator) -> Tensor:
    """``[groups, n, K]`` of what a convolution reads at some of its positions, n at most ``most``.

    Args:
        inputs: ``[N, C, *size]``.
    """
    pad = [p for size in reversed(geometry.padding) for p in (size, size)]
    windows = nn.functional.pad(inputs.detach(), pad)
    for i, (k, d, s) in enumerate(
        zip(geometry.kernel, geometry.dilation, geometry.stride, strict=True)
    ):
        windows = windows.unfold(2 + i, (k - 1) * d + 1, s)[..., ::d]
    spatial = len(geometry.kernel)  # windows: [N, C, *positions, *kernel], a view
    samples, _, *positions = windows.shape[: 2 + spatial]
    sizes = (samples, *positions)
    count = torch.Size(sizes).numel()
    chosen = torch.randperm(count, generator=random)[:most].to(inputs.device)
    at: tuple[slice | Tensor, ...] = (slice(None), *torch.unravel_index(chosen, sizes))
    picked = windows.transpose(0, 1)[at]  # [C, n, *kernel]
    groups = geometry.groups
    # [groups, n, C / groups, *kernel]
    by_group: Tensor = picked.unflatten(0, (groups, -1)).transpose(1, 2)
    return by_group.flatten(2).float().cpu()
