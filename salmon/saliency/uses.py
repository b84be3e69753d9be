"""A use: one call of an operation with an indexed weight, and the way back to its gradient.

The operation read ``inputs`` and a tensor made from the weight: the weight itself, some of its
rows, or something computed from it (weight normalisation, standardisation). Per-sample gradients
are ``[n, *weight shape]`` for n samples.
"""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from salmon.saliency.geometry import Geometry
from salmon.saliency.reduce import filter_sums, linear_sums, weight_gradients

_CODE_TOLERANCE = 1e-2  # neighbouring codes differ by a factor of 2 at least


class Layout(Enum):
    """Where the samples of the batch are in an input or output."""

    FIRST = "one row per sample"
    MAJOR = "m rows per sample, side by side"
    MINOR = "m rows per sample, a batch apart"
    SECOND = "one column per sample"


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """One call; tensors are detached but ``alias`` and ``derived``."""

    position: int  # layer number in the index
    parameter: Tensor  # the indexed weight
    alias: Tensor  # leaf in the graph of the loss that took the place of what was read
    derived: Tensor | None  # what was read, with its graph back to the parameter
    rows: slice | None  # of the parameter's first dimension; None where all or derived
    inputs: Tensor
    version: int  # of the input's memory when it was read
    geometry: Geometry | None  # None for a linear operation
    dtype: torch.dtype  # of the output
    layouts: tuple[Layout, ...]  # that the shapes allow

    @property
    def whole(self) -> bool:
        """Whether the parameter itself was read, all of it."""
        return self.derived is None and self.rows is None

    def lift(self, gradients: Tensor) -> Tensor:
        """Turn gradients of what was read into gradients of the parameter.

        Args:
            gradients: ``[n, *alias shape]``.

        Returns:
            ``[n, *parameter shape]``.
        """
        if self.derived is not None:
            shaped = gradients.reshape(len(gradients), *self.derived.shape).to(self.derived.dtype)
            try:  # one small graph, backwards for all samples at once
                (lifted,) = torch.autograd.grad(
                    self.derived, self.parameter, shaped, retain_graph=True, is_grads_batched=True
                )
            except RuntimeError:  # some operation in it has no batched backward
                lifted = torch.stack(
                    [
                        torch.autograd.grad(self.derived, self.parameter, one, retain_graph=True)[0]
                        for one in shaped
                    ]
                )
            return lifted.detach()
        if self.rows is None:
            return gradients
        whole = gradients.new_zeros((len(gradients), *self.parameter.shape))
        whole[:, self.rows] = gradients
        return whole


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """A use whose output gradient has arrived, both with the samples in front."""

    use: Use
    inputs: Tensor  # [N, C, *S] of a convolution, [N, P, C] of a linear; or [N, m, ...] of both
    grad: Tensor  # [N, O, *P], [N, P, O]; or [N, m, ...]
    folded: bool  # whether there is a dimension m, whose rows belong to one sample

    @classmethod
    def of(cls, use: Use, grad: Tensor, layout: Layout, samples: int) -> "Arrival":
        """Put the samples in front.

        Args:
            samples: N.

        Returns:
            The arrival; half precision becomes float32, from the values that were really read.
        """
        wide = torch.float64 if use.dtype == torch.float64 else torch.float32
        inputs = _samples_first(use.inputs.to(use.dtype).to(wide), layout, samples)
        grad = _samples_first(grad.detach().to(wide), layout, samples)
        folded = layout in (Layout.MAJOR, Layout.MINOR)
        if use.geometry is None:
            inputs, grad = _as_positions(inputs), _as_positions(grad)
            folded = False
        return cls(use, inputs, grad, folded)

    def sums(self) -> Tensor:
        """Reduce without materialising, for a direct use that is its weight's only one.

        Returns:
            ``[N, R]`` sums of ``|per-sample gradient|`` over each of the R rows that were read
            (output channels of a convolution).
        """
        if self.use.geometry is None:
            return linear_sums(self.inputs, self.grad)
        return filter_sums(self.inputs, self.grad, self.use.geometry)

    def gradients(self, part: slice) -> Tensor:
        """Per-sample gradients of the parameter for a few samples.

        Returns:
            ``[n, *parameter shape]``.
        """
        inputs, grad = self.inputs[part], self.grad[part]
        if self.use.geometry is None:
            return self.use.lift(torch.bmm(grad.transpose(1, 2), inputs))
        if not self.folded:
            return self.use.lift(weight_gradients(inputs, grad, self.use.geometry))
        each = weight_gradients(inputs.flatten(0, 1), grad.flatten(0, 1), self.use.geometry)
        return self.use.lift(each.unflatten(0, (len(inputs), -1)).sum(1))


def possible_layouts(inputs: Tensor, samples: int, *, linear: bool) -> tuple[Layout, ...]:
    """Which layouts the shape of an input allows; only the data can say whether one is right.

    Args:
        inputs: What an operation read, ``[..., C]`` for a linear one.
        samples: N.
        linear: Whether the last dimension is the only one that is not a position.

    Returns:
        None, one, or several, the most usual one first.
    """
    if samples == 0 or inputs.ndim < 2 or inputs.is_complex():
        return ()
    length = inputs.shape[0]
    found = []
    if length == samples:
        found.append(Layout.FIRST)
    elif length % samples == 0:
        found += [Layout.MAJOR, Layout.MINOR]
    if linear and inputs.ndim > 2 and inputs.shape[1] == samples:
        found.append(Layout.SECOND)
    return tuple(found)


def sample_codes(samples: int) -> Tensor:
    """Powers of two by which samples are told apart, other ones for neighbours.

    A gradient scales with such a factor without rounding.

    Args:
        samples: N.

    Returns:
        ``[N]`` between 2^-8 and 2^7.
    """
    number = torch.arange(samples)
    return torch.pow(2.0, (number + 7 * (number // 16)) % 16 - 8)


def fits(layout: Layout, plain: Tensor, coded: Tensor, codes: Tensor) -> bool:
    """Whether the gradient at every position scales with the code of the position's sample.

    Args:
        coded: The same for the losses times ``codes``.
        codes: ``[N]``.

    Returns:
        Whether all do; positions without a gradient do, and those without a finite one.
    """
    a, b = (
        _samples_first(sizes, layout, len(codes)).reshape(len(codes), -1)
        for sizes in (plain, coded)
    )
    expected = a * codes.to(a).unsqueeze(1)
    close = (b - expected).abs() <= _CODE_TOLERANCE * expected
    return bool((close | ~(torch.isfinite(a) | torch.isfinite(b))).all())


def _samples_first(tensor: Tensor, layout: Layout, samples: int) -> Tensor:
    """A view with N in front."""
    if layout is Layout.MAJOR:
        tensor = tensor.unflatten(0, (samples, -1))
    if layout is Layout.MINOR:
        tensor = tensor.unflatten(0, (-1, samples)).transpose(0, 1)
    if layout is Layout.SECOND:
        return tensor.transpose(0, 1)
    return tensor


def _as_positions(values: Tensor) -> Tensor:
    """``[N, ..., C]`` to ``[N, P, C]``."""
    return values.unsqueeze(1) if values.ndim == 2 else values.flatten(1, -2)
