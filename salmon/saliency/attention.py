"""``multi_head_attention_forward`` with its linear operations handed to somebody who watches them.

torch checks at the top of that function whether anyone overrides it, and calls built-in functions
below, which no mode sees. So its own code is run here with another ``linear``.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import Tensor
from torch.nn import functional

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]

attention = functional.multi_head_attention_forward


def watched_attention(linear: Linear) -> Callable[..., Any]:
    """Build the function anew.

    Args:
        linear: Takes the place of ``torch.nn.functional.linear``; gets ``[L, N, E]`` inputs.

    Returns:
        A function with the arguments of ``multi_head_attention_forward``.
    """
    inner = {
        name: _with_globals(getattr(functional, name), {"linear": linear})
        for name in ("_in_projection_packed", "_in_projection")
    }
    changed = {"has_torch_function": lambda _tensors: False, "linear": linear} | inner
    return _with_globals(attention, changed)


def _with_globals(function: Any, changed: dict[str, Any]) -> FunctionType:
    """The same code with some global names replaced."""
    return FunctionType(
        function.__code__,
        function.__globals__ | changed,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
