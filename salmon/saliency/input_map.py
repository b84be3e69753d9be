"""Input-space saliency: which parts of an input make a sample's most salient filters salient.

    z(x) = (s(x) - mean) / std                   profile of x in standard deviations, [F]
    z'   = z(x), times ``boost`` at the given filters; a constant
    map  = | d cos(z(x), z') / dx |

A map has the shape of its input and the unit 1 / input; the unit of the loss cancels. It takes
a backward through the backward, so every sample is run alone. Parameters, ``.grad``, hooks, modes
and random states stay as they are.

Reference: Levin et al. (2021), Where do Models go Wrong? Parameter-Space Saliency Maps for
Explainability.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from salmon.errors import InputError, UnsupportedError
from salmon.filters import FilterIndex
from salmon.forward import call_network, eagerly, gradients_on, no_trace
from salmon.gpd import TailFit
from salmon.saliency.backward import IndexedWeight
from salmon.saliency.losses import Loss, check_samples, sample_losses, take_rows
from salmon.saliency.profile import check_eval_mode, indexed_weights, profile_row
from salmon.torch_internals import once_differentiable

PERCENTILES = (90.0, 99.0)
"""Values of a map up to the first are shown as 0, from the second on as 1."""

_MISSING = re.compile(r"derivative for '?(?:aten::)?(\w+?)(?:_backward)?'? is not implemented")
_TWICE = re.compile(r"double.?backward|differentiate twice|checkpoint is incompatible", re.I)


def input_saliency(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    index: FilterIndex,
    fit: TailFit,
    filters: Tensor,
    *,
    loss: Loss | None = None,
    boost: float = 100.0,
    forward_context: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Any:
    """Map the salient filters of some samples back to their inputs.

    The backward of a ``torch.autograd.Function`` of the network's own is differentiated as well.
    It must compute from saved inputs and outputs: what it takes from intermediate results counts
    as constant, which nothing here can notice.

    Args:
        inputs: A batch, as of :func:`salmon.filter_saliency`.
        filters: ``[N, K]`` int64 numbers of the filters to boost for each sample, -1 for none; such
            as ``Ranking.filters``.
        forward_context: Makes a context around forward and loss only, such as that of autocast.

    Returns:
        The nesting of ``inputs`` with ``|gradient|`` of the same shape in place of every floating
        tensor that has a row per sample, None in place of everything else. Detached, on the device
        of the input; float64 for float64 inputs, else float32. Zero where an input has no influence
        on the profile. A sample is NaN throughout where it has no filter to boost, where its loss
        or map is not finite, and where fewer than two samples gave the moments.
    """
    check_eval_mode(model)
    samples = check_samples(inputs, targets)
    _check_filters(index, fit, filters, samples)
    if not (math.isfinite(boost) and boost > 1):
        raise InputError(f"boost is {boost}; a finite factor above 1 is needed, such as 100.")
    weights = indexed_weights(model, index)
    leaves, structure = pytree.tree_flatten(inputs)
    mapped = [i for i, leaf in enumerate(leaves) if _is_mapped(leaf, samples)]
    if not mapped:
        raise InputError(
            f"inputs hold no floating-point tensor with {samples} rows, so there is no input to "
            "differentiate by; give the network what it makes of its inputs first, such as "
            "embeddings in place of token numbers."
        )
    maps: dict[int, Tensor] = {}
    with (
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        no_trace(model),
        gradients_on([weight.parameter for weight in weights]),
    ):
        for i in mapped:
            plain = leaves[i].as_subclass(Tensor)
            maps[i] = torch.full_like(plain, torch.nan, dtype=_wide(plain))
        for sample, row in enumerate(filters.cpu()):
            chosen = row[row >= 0]
            if not len(chosen):
                continue
            part = slice(sample, sample + 1)
            one, target = take_rows((leaves, targets), part, samples)
            roots = [one[i].detach().clone().requires_grad_() for i in mapped]
            for i, root in zip(mapped, roots, strict=True):
                one[i] = root
            given = pytree.tree_unflatten(one, structure)
            gradients = _pull_back(
                _profile(model, given, target, weights, loss, forward_context),
                roots,
                partial(_slope, fit=fit, chosen=chosen, boost=boost),
            )
            if all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
                for i, gradient in zip(mapped, gradients, strict=True):
                    maps[i][part] = gradient.abs()
    return pytree.tree_unflatten([maps.get(i) for i in range(len(leaves))], structure)


def map_of_image(gradient: Tensor) -> Tensor:
    """Turn the gradient of one image into something to look at.

    Args:
        gradient: ``[C, H, W]``, such as a row of :func:`input_saliency`.

    Returns:
        ``[H, W]`` largest ``|gradient|`` over the colours, clipped to its 90th and 99th percentile
        and scaled to [0, 1]. Zeros where the two percentiles are equal, or a value is not finite.
    """
    if gradient.ndim != 3 or not gradient.numel() or not gradient.is_floating_point():
        raise InputError(
            f"gradient is {gradient.dtype} of shape {tuple(gradient.shape)}; floating-point "
            "[C, H, W] with at least one pixel is needed, the map of a single image."
        )
    sizes = gradient.detach().abs().amax(0)
    sizes = sizes.to(_wide(sizes))
    levels = sizes.new_tensor(PERCENTILES) / 100
    low, high = sizes.flatten().quantile(levels)
    if not bool(torch.isfinite(sizes).all()) or not bool(low < high):
        return torch.zeros_like(sizes)
    shares: Tensor = (sizes - low) / (high - low)
    return shares.clamp(0, 1)


def _check_filters(index: FilterIndex, fit: TailFit, filters: Tensor, samples: int) -> None:
    """Refuse an index, a fit and filters that do not belong together."""
    moments = fit.mean.numel()
    if moments != len(index):
        raise InputError(
            f"fit has {moments} filters but index has {len(index)}; make the fit with this "
            "FilterIndex."
        )
    if filters.ndim != 2 or len(filters) != samples or filters.dtype != torch.int64:
        raise InputError(
            f"filters is {filters.dtype} of shape {tuple(filters.shape)}; int64 [{samples}, K] is "
            "needed, the filter numbers of each sample, such as Ranking.filters."
        )
    if filters.numel() and not (int(filters.min()) >= -1 and int(filters.max()) < moments):
        raise InputError(
            f"filters lie in {int(filters.min())}..{int(filters.max())} but index has filters "
            f"0..{moments - 1}; rank the filters of this index (-1 stands for none)."
        )


def _is_mapped(leaf: object, samples: int) -> bool:
    return (
        isinstance(leaf, Tensor)
        and leaf.is_floating_point()
        and leaf.ndim > 0
        and len(leaf) == samples
    )


def _wide(tensor: Tensor) -> torch.dtype:
    """The tensor's type, float32 for half precision."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _profile(
    model: nn.Module,
    inputs: Any,
    target: Tensor,
    weights: list[IndexedWeight],
    loss: Loss | None,
    forward_context: Callable[[], AbstractContextManager[object]],
) -> Tensor:
    """``[F]`` profile of one sample, with its graph; NaN where the loss is not finite."""
    # The other kernels of attention cannot be differentiated twice.
    with sdpa_kernel(SDPBackend.MATH), eagerly(), forward_context():
        output = call_network(model, inputs)
        losses = sample_losses(output, target, loss)
    parameters = [weight.parameter for weight in weights]
    once = once_differentiable(losses, {id(parameter) for parameter in parameters})
    if once:
        raise UnsupportedError(_refusal(", ".join(once)))
    with torch.autocast(losses.device.type, enabled=False), _refusals():
        gradients = torch.autograd.grad(
            losses.sum(), parameters, create_graph=True, allow_unused=True
        )
        profile = profile_row(gradients, weights)
    # The gradient of a NaN loss can be finite; such a sample has no saliency.
    return profile if bool(torch.isfinite(losses).all()) else profile * torch.nan


def _slope(profile: Tensor, fit: TailFit, chosen: Tensor, boost: float) -> Tensor:
    """``[F]`` derivative of the cosine similarity by a float64 profile on the CPU."""
    z = (profile - fit.mean) / fit.scale
    boosted = z.clone()
    boosted[chosen] *= boost
    length = torch.linalg.vector_norm(z)
    unit, other = z / length, boosted / torch.linalg.vector_norm(boosted)
    by_z: Tensor = (other - (unit @ other) * unit) / length
    return by_z / fit.scale


def _pull_back(
    profile: Tensor, roots: list[Tensor], slope_at: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Gradients by the inputs of what has the given derivative by the profile."""
    slope = slope_at(profile.detach().cpu().double())
    gradients: tuple[Tensor | None, ...] = (None,) * len(roots)
    if profile.requires_grad:
        with torch.autocast(profile.device.type, enabled=False), _refusals():
            gradients = torch.autograd.grad(profile, roots, slope.to(profile), allow_unused=True)
    # Without influence: zero, but NaN where the slope is.
    nothing = 0 * float(slope.sum())
    return [
        torch.full_like(root, nothing) if gradient is None else gradient
        for root, gradient in zip(roots, gradients, strict=True)
    ]


@contextmanager
def _refusals() -> Iterator[None]:
    """Say which operation cannot be differentiated twice; pass other errors on."""
    try:
        yield
    except RuntimeError as error:
        named = _MISSING.search(str(error))
        if named:
            raise UnsupportedError(_refusal(named[1].strip("_"))) from error
        if _TWICE.search(str(error)):
            raise UnsupportedError(_refusal(str(error).splitlines()[0])) from error
        raise


def _refusal(operation: str) -> str:
    return (
        f"the network uses an operation that cannot be differentiated twice ({operation}), which "
        "input-space saliency needs; replace it by one written with ordinary torch operations "
        "(checkpoints with use_reentrant=False), or do without the maps of this network."
    )
