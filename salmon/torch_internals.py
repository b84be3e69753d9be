"""What this package relies on in torch beyond what torch promises, in one place.

Each trick has a canary in ``tests/test_torch_internals.py`` that says which one a new torch breaks.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn import functional
from torch.overrides import TorchFunctionMode

attention = functional.multi_head_attention_forward

MATRIX_PRODUCTS = {"AddmmBackward0": 2, "MmBackward0": 1, "LinearBackward0": 1}
"""Nodes of autograd's graph, and which of their arguments is the weight."""

# The code that the decorator puts around any backward.
_ONCE = torch.autograd.function.once_differentiable(lambda _ctx: None).__code__


def watched_attention(linear: Callable[..., Tensor]) -> Callable[..., Any]:
    """``multi_head_attention_forward`` with another ``linear``, which gets ``[L, N, E]`` inputs.

    torch checks at the top of that function whether anyone overrides it, and calls built-in
    functions below, which no mode sees. So its own code is run with other global names.
    """
    inner = {
        name: _with_globals(getattr(functional, name), {"linear": linear})
        for name in ("_in_projection_packed", "_in_projection")
    }
    changed = {"has_torch_function": lambda _tensors: False, "linear": linear} | inner
    return _with_globals(attention, changed)


def _with_globals(function: Any, changed: dict[str, Any]) -> FunctionType:
    return FunctionType(
        function.__code__,
        function.__globals__ | changed,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


def in_transform(*tensors: Tensor) -> bool:
    """Whether ``torch.func`` is at work, inside of which nothing can be kept or hooked."""
    return any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)


class SingleBatchNorm(TorchFunctionMode):
    """Works around torch's gradient of BatchNorm in eval mode, which is wrong for one sample.

    On a CPU (torch 2.14) it is where the gradient comes in another memory format than the input,
    as from ``x.flatten(2).transpose(1, 2)`` behind a convolutional stem.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Let the gradient of a batch norm come in the usual format."""
        output = func(*args, **(kwargs or {}))
        known = func is torch.batch_norm or func is nn.functional.batch_norm
        if known and output.requires_grad and len(output) == 1:
            output.register_hook(Tensor.contiguous)
        return output


def leaf_of(node: Node) -> Tensor | None:
    """The leaf whose gradient a node of the graph collects."""
    return getattr(node, "variable", None)


def nodes_before(node: Node) -> list[Node]:
    """The next nodes towards the leaves."""
    return [before for before, _ in node.next_functions if before is not None]


def behind(ends: Iterable[Node | None]) -> Iterator[Node]:
    """All nodes that some results come from, from the results towards the leaves."""
    seen: set[Node] = set()
    stack = [node for node in ends if node is not None]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            stack += nodes_before(node)


def leaves_first(end: Node | None) -> list[Node]:
    """The nodes that a result comes from, each after all that lie behind it."""
    order: dict[Node, None] = {}
    seen: set[Node] = set()
    stack = [] if end is None else [end]
    while stack:
        node = stack[-1]
        if node not in seen:
            seen.add(node)
            stack += [before for before in nodes_before(node) if before not in seen]
        else:
            order.setdefault(stack.pop())
    return list(order)


def is_reentrant(node: Node) -> bool:
    """Whether it is a checkpoint with ``use_reentrant=True``."""
    return node.name() == "CheckpointFunctionBackward"


def weights_read(node: Node) -> Iterator[tuple[Tensor, str, int, bool]]:
    """Leaves that an operation may have read as its weight.

    Returns:
        Of each the unit (``"conv"`` or ``"linear"``), the number of its output channels or rows,
        and whether these are the second dimension.
    """
    name, before = node.name(), [child for child, _ in node.next_functions]
    saved: Any = node
    if name == "ConvolutionBackward0":
        for leaf in _leaves_behind(before[1]):
            if leaf.shape == saved._saved_weight.shape:
                turned = bool(saved._saved_transposed)
                outputs = leaf.shape[1] * saved._saved_groups if turned else leaf.shape[0]
                yield leaf, "conv", outputs, turned
    elif name in MATRIX_PRODUCTS:
        factor = before[MATRIX_PRODUCTS[name]]
        matrices = [leaf for leaf in _leaves_behind(factor) if leaf.ndim == 2]
        if matrices:
            # inputs @ weight has a weight [inputs, outputs], as transformers' Conv1D.
            turned = hasattr(factor, "variable") and name != "LinearBackward0"
            weight = max(matrices, key=Tensor.numel)
            yield weight, "linear", weight.shape[int(turned)], turned


def _leaves_behind(node: Node | None) -> list[Tensor]:
    leaves = (leaf_of(each) for each in behind([node]))
    return [leaf for leaf in leaves if leaf is not None]


def once_differentiable(total: Tensor, leaves: Collection[int]) -> list[str]:
    """Find functions whose backward is run for some leaves, but must not be differentiated itself.

    Autograd does not always refuse to: it leaves out what goes through them, or takes it for
    constant.

    Args:
        leaves: Their ids.

    Returns:
        Names of ``torch.autograd.Function`` classes, each once.
    """
    found: dict[str, None] = {}
    leads: dict[Node, bool] = {}  # node -> a leaf lies behind it
    for node in leaves_first(total.grad_fn):
        leads[node] = id(leaf_of(node)) in leaves or any(leads[n] for n in nodes_before(node))
        own: object = getattr(node, "_forward_cls", None)
        once = any(_is_once(getattr(own, name, None)) for name in ("backward", "vjp"))
        if once and leads[node]:
            found[getattr(own, "__name__", node.name())] = None
    return list(found)


def _is_once(backward: object) -> bool:
    """Whether the decorator is among those of a backward."""
    while backward is not None:
        if getattr(backward, "__code__", None) is _ONCE:
            return True
        backward = getattr(backward, "__wrapped__", None)
    return False
