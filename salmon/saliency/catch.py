"""Catching: which operation used which indexed weight, on what input.

A ``TorchFunctionMode`` watches the forward for convolutions and linear operations that read an
indexed weight, some of its rows, or something computed from it, however they are called. It keeps
the input (the graph keeps it anyway) and hooks the output for the gradient that will arrive there.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from salmon.filters import CONVOLUTIONS, TRANSPOSED
from salmon.saliency.attention import attention, watched_attention
from salmon.saliency.geometry import Geometry, conv_geometry
from salmon.saliency.graph import sources
from salmon.saliency.uses import Layout, Use, possible_layouts

_DIMS = {**CONVOLUTIONS, **TRANSPOSED}
_CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_ARGUMENTS = (
    "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
)  # fmt: skip
_linear = nn.functional.linear


class Caught:
    """The uses of one forward."""

    def __init__(self) -> None:
        """Start empty."""
        self.uses: dict[int, Use] = {}  # by number, in order; whoever is done with one drops it
        self.edges: dict[Node, GradientEdge] = {}
        self.nodes: dict[Node, list[int]] = {}  # the numbers of the uses that a node serves
        self.blind: set[int] = set()  # layer numbers that ran without gradients
        self.listener: Callable[[int, Tensor], None] | None = None
        """Gets the number of a use and the gradient at its output, when it arrives."""

    def release(self) -> None:
        """Let go of the graph; its nodes would otherwise keep each other alive."""
        self.listener = None
        self.uses.clear()
        self.edges.clear()
        self.nodes.clear()

    def hook(self, numbers: list[int], output: Tensor) -> None:
        """Wait for the gradient of an output."""
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
        """Pass a gradient on to whoever listens."""
        if self.listener is not None:
            for number in numbers:
                self.listener(number, grad.reshape(shape))


class Catcher(TorchFunctionMode):
    """Context of one forward."""

    def __init__(self, weights: Sequence[Tensor], samples: int) -> None:
        """Prepare to catch.

        Args:
            weights: ``[L]`` indexed parameters, in index order.
            samples: N, the batch size.
        """
        super().__init__()
        self.caught = Caught()
        self._weights = weights
        self._positions = {id(weight): i for i, weight in enumerate(weights)}
        self._samples = samples
        self._attention = watched_attention(self._linear)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Pass every call on; watch those that read an indexed weight.

        Args:
            types: Types of its overriding arguments; unused.
        """
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
        return sources(weight, self.caught.nodes, self._positions)

    def _linear(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Run one linear operation, watched where it reads an indexed weight."""
        positions = self._positions_of(weight)
        if not positions or _transformed(input, weight):
            return _linear(input, weight, bias)
        layouts = possible_layouts(input, self._samples, linear=True)
        return self._watch(
            lambda alias: _linear(input, alias, bias),
            input, weight, positions, geometry=None, layouts=layouts,
        )  # fmt: skip

    def _convolve(self, func: Callable[..., Any], call: dict[str, Any]) -> Tensor:
        """Run one convolution, watched where it reads an indexed weight."""
        positions = self._positions_of(call["weight"])
        if not positions or _transformed(call["input"], call["weight"]):
            return torch.as_tensor(func(**call))
        dims = _DIMS[func]
        inputs, geometry = conv_geometry(call, dims, transposed=func in TRANSPOSED)
        batched = inputs.ndim == dims + 2
        layouts = possible_layouts(inputs, self._samples, linear=False) if batched else ()
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
            self.caught.blind.update(positions)
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
            numbers.append(len(self.caught.uses))
            self.caught.uses[numbers[-1]] = Use(
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
        self.caught.hook(numbers, output)
        return output


def _rows(weight: Tensor, parameter: Tensor) -> slice | None:
    """The rows of a parameter that a view of it consists of, if it consists of rows."""
    if weight._base is not parameter or not parameter.is_contiguous():
        return None
    if weight.shape[1:] != parameter.shape[1:] or weight.stride() != parameter.stride():
        return None
    start = (weight.storage_offset() - parameter.storage_offset()) // parameter.stride(0)
    return slice(start, start + weight.shape[0])


def _transformed(*tensors: Tensor) -> bool:
    """Whether ``torch.func`` is at work, inside of which nothing can be kept or hooked."""
    return any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)
