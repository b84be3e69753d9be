"""Catching: which operation used which indexed weight, on what input.

A ``TorchFunctionMode`` watches the forward for convolutions and linear operations that read an
indexed weight, some of its rows, or something computed from it, however they are called. It keeps
the input (the graph keeps it anyway) and hooks the output for the gradient that will arrive there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from salmon.filters import CONVOLUTIONS, TRANSPOSED
from salmon.saliency.reduce import Geometry
from salmon.torch_internals import attention, behind, in_transform, leaf_of, watched_attention

_DIMS = {**CONVOLUTIONS, **TRANSPOSED}
_CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_ARGUMENTS = (
    "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
)  # fmt: skip
_linear = nn.functional.linear


class Layout(Enum):
    """Where the samples of the batch are in an input or output."""

    FIRST = "one row per sample"
    MAJOR = "m rows per sample, side by side"
    MINOR = "m rows per sample, a batch apart"
    SECOND = "one column per sample"


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """One call of an operation with an indexed weight, or with a tensor made from it.

    That is the weight itself, some of its rows, or something computed from it (weight
    normalisation, standardisation). Tensors are detached but ``alias`` and ``derived``.
    """

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
        """Turn gradients ``[n, *alias shape]`` into those of the parameter, ``[n, *its shape]``."""
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


class Catcher(TorchFunctionMode):
    """Context of one forward, and what was caught in it."""

    def __init__(self, weights: Sequence[Tensor], samples: int) -> None:
        """Take ``[L]`` indexed parameters, in index order, and the batch size."""
        super().__init__()
        self.uses: dict[int, Use] = {}  # by number, in order; whoever is done with one drops it
        self.edges: dict[Node, GradientEdge] = {}
        self.nodes: dict[Node, list[int]] = {}  # the numbers of the uses that a node serves
        self.blind: set[int] = set()  # layer numbers that ran without gradients
        self.listener: Callable[[int, Tensor], None] | None = None
        """Gets the number of a use and the gradient at its output, when it arrives."""
        self._weights = weights
        self._positions = {id(weight): i for i, weight in enumerate(weights)}
        self._samples = samples
        self._attention = watched_attention(self._linear)

    def release(self) -> None:
        """Let go of the graph; its nodes would otherwise keep each other alive."""
        self.listener = None
        self.uses.clear()
        self.edges.clear()
        self.nodes.clear()

    def _hook(self, numbers: list[int], output: Tensor) -> None:
        # A linear operation on more than two dimensions gives a view. An in-place operation on it
        # takes the view's node out of the graph, but not that of its base.
        base = output._base
        hooked = base if base is not None and base.numel() == output.numel() else output
        # The edge of this moment: an in-place activation moves the tensor to another node.
        edge = get_gradient_edge(hooked)
        self.edges[edge.node] = edge
        self.nodes[edge.node] = numbers
        hooked.register_hook(partial(self._arrived, numbers, output.shape))

    def _arrived(self, numbers: list[int], shape: torch.Size, grad: Tensor) -> None:
        if self.listener is not None:
            for number in numbers:
                self.listener(number, grad.reshape(shape))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Pass every call on; watch those that read an indexed weight."""
        kwargs = kwargs or {}
        if func is _linear:
            return self._linear(*args, **kwargs)
        if func is torch.addmm and len(args) == 3 and not kwargs and args[1].ndim == 2:
            bias, inputs, weight = args
            if bias.ndim == 1 and self._positions_of(weight):  # transformers' Conv1D
                return self._linear(inputs, weight.t(), bias)
        if func is attention:
            return self._attention(*args, **kwargs)
        if func in _DIMS:
            names = _TRANSPOSED_ARGUMENTS if func in TRANSPOSED else _CONVOLUTION_ARGUMENTS
            return self._convolve(func, dict(zip(names, args, strict=False)) | kwargs)
        return func(*args, **kwargs)

    def _positions_of(self, weight: Tensor) -> list[int]:
        """Layer numbers of the indexed weights that a tensor is, or was computed from."""
        position = self._positions.get(id(weight))
        if position is not None:
            return [position]
        found: dict[int, None] = {}
        for node in behind([weight.grad_fn]):
            if node in self.nodes:  # then it depends on the data, too
                return []
            position = self._positions.get(id(leaf_of(node)))
            if position is not None:
                found[position] = None
        return list(found)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        positions = self._positions_of(weight)
        if not positions or in_transform(input, weight):
            return _linear(input, weight, bias)
        layouts = _possible_layouts(input, self._samples, linear=True)
        return self._watch(
            lambda alias: _linear(input, alias, bias),
            input, weight, positions, geometry=None, layouts=layouts,
        )  # fmt: skip

    def _convolve(self, func: Callable[..., Any], call: dict[str, Any]) -> Tensor:
        positions = self._positions_of(call["weight"])
        if not positions or in_transform(call["input"], call["weight"]):
            return torch.as_tensor(func(**call))
        dims = _DIMS[func]
        inputs, geometry = _geometry(call, dims, transposed=func in TRANSPOSED)
        batched = inputs.ndim == dims + 2
        layouts = _possible_layouts(inputs, self._samples, linear=False) if batched else ()
        return self._watch(
            lambda alias: func(**(call | {"weight": alias})),
            inputs, call["weight"], positions, geometry=geometry, layouts=layouts,
        )  # fmt: skip

    def _watch(
        self,
        operation: Callable[[Tensor], Tensor],
        inputs: Tensor,
        weight: Tensor,
        positions: list[int],
        *,
        geometry: Geometry | None,
        layouts: tuple[Layout, ...],
    ) -> Tensor:
        """Run an operation on an alias of the weight, keep its input and hook its output."""
        if not torch.is_grad_enabled():
            self.blind.update(positions)
            return operation(weight)
        # An alias takes the weight's place in the graph: whatever of the weight itself is found
        # in the graph of the loss was not used by a caught operation.
        alias = weight.detach().requires_grad_()
        output = operation(alias)
        kept = inputs.detach().as_subclass(Tensor)
        numbers = []
        for position in positions:
            parameter = self._weights[position]
            rows = _rows(weight, parameter)
            numbers.append(len(self.uses))
            self.uses[numbers[-1]] = Use(
                position=position,
                parameter=parameter,
                alias=alias,
                derived=None if weight is parameter or rows else weight,
                rows=rows,
                inputs=kept,
                version=kept._version,
                geometry=geometry,
                dtype=output.dtype,
                layouts=layouts,
            )
        self._hook(numbers, output)
        return output


def _rows(weight: Tensor, parameter: Tensor) -> slice | None:
    """The rows of a parameter that a view of it consists of, if it consists of rows."""
    if weight._base is not parameter or not parameter.is_contiguous():
        return None
    if weight.shape[1:] != parameter.shape[1:] or weight.stride() != parameter.stride():
        return None
    start = (weight.storage_offset() - parameter.storage_offset()) // parameter.stride(0)
    return slice(start, start + weight.shape[0])


def _possible_layouts(inputs: Tensor, samples: int, *, linear: bool) -> tuple[Layout, ...]:
    """Which layouts the shape of an input allows, the most usual one first.

    Only the data can say whether one is right.

    Args:
        linear: Whether the last dimension is the only one that is not a position.
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


def _geometry(call: Mapping[str, Any], dims: int, *, transposed: bool) -> tuple[Tensor, Geometry]:
    """Read the geometry off the named arguments of a convolution.

    Returns:
        The input, padded by hand where "same" padding is not symmetric, and the geometry.
    """
    weight, inputs, padding = call["weight"], call["input"], call.get("padding", 0)
    kernel = tuple(weight.shape[2:])
    dilation = _spread(call.get("dilation", 1), dims)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(t % 2 for t in total):
            extra = [size for t in reversed(total) for size in (0, t % 2)]
            inputs = nn.functional.pad(inputs, extra)
        padding = [t // 2 for t in total]
    return inputs, Geometry(
        kernel=kernel,
        stride=_spread(call.get("stride", 1), dims),
        padding=_spread(padding, dims),
        dilation=dilation,
        output_padding=_spread(call.get("output_padding", 0), dims),
        groups=call.get("groups", 1),
        transposed=transposed,
        weight_shape=tuple(weight.shape),
    )


def _spread(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """Repeat a single number for every spatial dimension."""
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * dims if len(numbers) == 1 else numbers
