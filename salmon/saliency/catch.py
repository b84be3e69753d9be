"""Catching: which convolution used which indexed weight, on what input, with what gradient.

A ``TorchFunctionMode`` watches the forward for convolutions whose weight is in the index, however
they are called. It keeps the input (the graph keeps it anyway) and hooks the output; when the
gradient arrives there, the layer is reduced at once. No weight gradient is ever computed: the
backward is asked for the gradient at the first caught outputs only.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from salmon.errors import UnsupportedError
from salmon.saliency.geometry import Geometry, resolve_padding, spread
from salmon.saliency.reduce import filter_sums, shared

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
_DIMS = {
    function: i + 1 for group in (_CONVOLUTIONS, _TRANSPOSED) for i, function in enumerate(group)
}
_CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_ARGUMENTS = (
    "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Use:
    """One call of a convolution with an indexed weight."""

    position: int  # layer number in the index
    inputs: Tensor  # detached, shares memory with what the convolution read
    version: int  # of the input's memory when it was read
    geometry: Geometry
    dtype: torch.dtype  # of the convolution's output


class Catcher(TorchFunctionMode):
    """Context of one forward, and the backward after it."""

    def __init__(self, weights: Sequence[tuple[str, Tensor]], samples: int) -> None:
        """Prepare to catch.

        Args:
            weights: ``[L]`` name and parameter of every indexed weight, in index order.
            samples: N, the batch size.
        """
        super().__init__()
        self._names = [name for name, _ in weights]
        self._positions = {id(weight): i for i, (_, weight) in enumerate(weights)}
        self._samples = samples
        self._uses: list[_Use] = []
        self._edges: list[GradientEdge] = []
        self._expected: Counter[int] = Counter()
        self._arrived: dict[int, list[tuple[Tensor, Tensor, Geometry]]] = defaultdict(list)
        self._sums: dict[int, Tensor] = {}
        self._blind: set[int] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Pass every call on; watch those of convolutions with an indexed weight.

        Args:
            func: The torch function called.
            types: Types of its overriding arguments; unused.
            args: Its positional arguments.
            kwargs: Its named arguments.

        Returns:
            What the function returned.
        """
        kwargs = kwargs or {}
        if func not in _DIMS:
            return func(*args, **kwargs)
        transposed = func in _TRANSPOSED
        names = _TRANSPOSED_ARGUMENTS if transposed else _CONVOLUTION_ARGUMENTS
        call = dict(zip(names, args, strict=False)) | kwargs
        position = self._positions.get(id(call["weight"]))
        if position is None:
            return func(*args, **kwargs)
        if not torch.is_grad_enabled():
            self._blind.add(position)
            return func(*args, **kwargs)
        return self._watch(func, call, position, transposed=transposed)

    def backward(self, total: Tensor) -> dict[int, Tensor]:
        """Run the backward and hand out the sums of every layer that the loss depends on.

        Args:
            total: The summed loss of the forward that was caught.

        Returns:
            ``[N, O]`` sums of ``|per-sample weight gradient|`` by layer number; a layer without an
            entry has no influence on the loss.

        Raises:
            UnsupportedError: If an indexed weight also reached the loss outside the caught
                convolutions, or its gradient was switched off.
        """
        if self._blind:
            names = ", ".join(self._names[i] for i in sorted(self._blind))
            raise UnsupportedError(
                f"{names} ran without gradients (torch.no_grad in forward?), so its saliency is "
                "unknown; leave its layer out with exclude=, or enable gradients there."
            )
        try:
            roots = self._survey(total)
            # Under autocast the reductions would run in half precision.
            with torch.autocast(total.device.type, enabled=False):
                if roots and self._samples:
                    torch.autograd.grad(total, roots)
        finally:
            self.release()
        return self._sums

    def release(self) -> None:
        """Let go of the graph; its nodes would otherwise keep each other alive."""
        self._edges.clear()
        self._uses.clear()
        self._arrived.clear()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop watching; after an exception, also let go of the graph.

        Args:
            exc_type: Class of the exception, if any.
            exc_value: The exception, if any.
            traceback: Its traceback, if any.
        """
        super().__exit__(exc_type, exc_value, traceback)  # type: ignore[no-untyped-call]
        if exc_type is not None:
            self.release()

    def __enter__(self) -> Self:
        """Start watching.

        Returns:
            This object.
        """
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def _watch(
        self, func: Callable[..., Any], call: dict[str, Any], position: int, *, transposed: bool
    ) -> Tensor:
        """Run one convolution, keep its input and hook its output."""
        dims = _DIMS[func]
        inputs, weight = call["input"], call["weight"]
        if inputs.ndim != dims + 2 or inputs.shape[0] != self._samples:
            raise UnsupportedError(
                f"{self._names[position]} read an input of shape {tuple(inputs.shape)}; "
                f"[{self._samples}, channels, {dims} spatial sizes] is needed, one row per sample "
                "of the batch. Leave its layer out with exclude=."
            )
        # An alias takes the weight's place in the graph: a frozen weight would cut it there, and
        # whatever of the weight itself is found in the graph was not used by a caught call.
        call["weight"] = weight.detach().requires_grad_()
        output: Tensor = func(**call)
        kernel = tuple(weight.shape[2:])
        dilation = spread(call.get("dilation", 1), dims)
        kept, padding = resolve_padding(inputs.detach(), kernel, dilation, call.get("padding", 0))
        use = _Use(
            position=position,
            inputs=kept,
            version=kept._version,
            geometry=Geometry(
                kernel=kernel,
                stride=spread(call.get("stride", 1), dims),
                padding=padding,
                dilation=dilation,
                output_padding=spread(call.get("output_padding", 0), dims),
                groups=call.get("groups", 1),
                transposed=transposed,
                weight_shape=tuple(weight.shape),
            ),
            dtype=output.dtype,
        )
        self._uses.append(use)
        # The edge of this moment: an in-place activation moves the tensor to another node.
        self._edges.append(get_gradient_edge(output))
        output.register_hook(partial(self._reduce, use))
        return output

    def _survey(self, total: Tensor) -> list[GradientEdge]:
        """Walk the graph: count the uses it reaches, and find those with none further up."""
        caught: dict[Node, int] = {edge.node: i for i, edge in enumerate(self._edges)}
        stray: set[int] = set()
        fed: dict[Node, bool] = {}  # node -> a caught node lies between it and the inputs
        start = total.grad_fn
        stack: list[tuple[Node, bool]] = [(start, False)] if start is not None else []
        while stack:
            node, children_done = stack.pop()
            children = [child for child, _ in node.next_functions if child is not None]
            if children_done:
                fed[node] = any(child in caught or fed[child] for child in children)
                continue
            if node in fed:
                continue
            fed[node] = False
            stack.append((node, True))
            for child in children:
                leaf = getattr(child, "variable", None)
                if leaf is not None and id(leaf) in self._positions:
                    stray.add(self._positions[id(leaf)])
                if child not in fed:
                    stack.append((child, False))
        if stray:
            names = ", ".join(self._names[i] for i in sorted(stray))
            raise UnsupportedError(
                f"{names} also reached the loss other than as the weight of a convolution call, so "
                "its saliency would be wrong; leave its layer out with exclude=."
            )
        reached = {node: i for node, i in caught.items() if node in fed}
        self._expected.update(self._uses[i].position for i in reached.values())
        return [self._edges[i] for node, i in reached.items() if not fed[node]]

    def _reduce(self, use: _Use, grad: Tensor) -> None:
        """The gradient of one output arrived: reduce, or wait for the weight's other uses."""
        if use.inputs._version != use.version:
            raise UnsupportedError(
                f"the input of {self._names[use.position]} was changed in place after the "
                "convolution read it, so its gradient is lost; use an out-of-place operation."
            )
        # Half precision is summed in float32, from the values the convolution really read.
        wide = torch.float64 if use.dtype == torch.float64 else torch.float32
        arrived = (use.inputs.to(use.dtype).to(wide), grad.detach().to(wide), use.geometry)
        if self._expected[use.position] == 1:
            self._sums[use.position] = filter_sums(*arrived)
            return
        waiting = self._arrived[use.position]
        waiting.append(arrived)
        if len(waiting) == self._expected[use.position]:
            self._sums[use.position] = shared(self._arrived.pop(use.position))
