"""Canaries: each says which assumption about torch's internals does not hold any more."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from salmon import torch_internals as internals


def graph(result: Tensor) -> list[Any]:
    return list(internals.behind([result.grad_fn]))


def test_the_code_of_attention_reads_the_names_that_are_replaced() -> None:
    names = internals.attention.__code__.co_names
    for name in ("has_torch_function", "linear", "_in_projection_packed", "_in_projection"):
        assert name in names, f"multi_head_attention_forward does not call {name} any more"
    for name in ("_in_projection_packed", "_in_projection"):
        inner = getattr(functional, name).__code__.co_names
        assert "linear" in inner, f"{name} does not call linear any more"


@pytest.mark.parametrize("width", [None, 6])
def test_watched_attention_passes_every_projection_on(width: int | None) -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=width, vdim=width).eval()
    query, key = torch.randn(5, 3, 8), torch.randn(4, 3, width or 8)
    seen: list[torch.Size] = []

    def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append(weight.shape)
        return functional.linear(inputs, weight, bias)

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            called = internals.watched_attention(linear) if func is internals.attention else func
            return called(*args, **(kwargs or {}))

    with Watch():
        found, _ = attention(query, key, key)
    assert len(seen) >= 3, f"attention hands {seen} to linear, not projections and output"
    torch.testing.assert_close(found, attention(query, key, key)[0])


def test_tensors_inside_a_transform_are_known() -> None:
    inside: list[bool] = []

    def note(x: Tensor) -> Tensor:
        inside.append(internals.in_transform(x))
        return x.sum()

    torch.func.grad(note)(torch.ones(2))
    torch.vmap(note)(torch.ones(2, 2))
    assert inside == [True, True], "torch.func wraps tensors in another way"
    assert not internals.in_transform(torch.ones(2))


def test_the_gradient_of_a_batch_norm_of_one_sample_still_needs_the_workaround() -> None:
    norm = nn.BatchNorm2d(3).eval()
    x = torch.randn(1, 3, 4, 4)
    factors = torch.linspace(0, 1, 48).reshape(1, 16, 3)

    def weight_gradient() -> Tensor:
        tokens = norm(x).flatten(2).transpose(1, 2)
        return torch.autograd.grad((tokens * factors).sum(), norm.get_parameter("weight"))[0]

    wrong = weight_gradient()
    with internals.SingleBatchNorm():
        right = weight_gradient()
    scale = (norm.get_buffer("running_var") + norm.eps).rsqrt()
    expected = (x.flatten(2).transpose(1, 2) * factors).sum((0, 1)) * scale
    torch.testing.assert_close(right, expected)
    assert not torch.allclose(wrong, right), "torch's gradient is right: drop SingleBatchNorm"


def test_leaves_hang_on_the_nodes_that_collect_their_gradients() -> None:
    leaf = torch.ones(2, requires_grad=True)
    found = [internals.leaf_of(node) for node in graph((leaf * 2).sum())]
    assert found[-1] is leaf, "AccumulateGrad has no attribute 'variable' any more"
    assert found[:-1] == [None, None]


def test_each_node_comes_after_all_behind_it() -> None:
    a = torch.ones(2, requires_grad=True)
    b = a * 2
    order = internals.leaves_first((b * b.exp() + b).sum().grad_fn)
    assert len(order) == len(set(order)) == 6
    for place, node in enumerate(order):
        assert set(internals.nodes_before(node)) <= set(order[:place])
    assert internals.leaves_first(None) == []


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["Conv1d", "Conv2d", "Conv3d"])
def test_convolutions_save_their_weight(kind: str, groups: int) -> None:
    inputs = torch.ones(1, 4, *[5] * int(kind[4]))
    for transposed in (False, True):
        made = getattr(nn, kind.replace("Conv", "ConvTranspose") if transposed else kind)
        convolution = made(4, 6, 3, groups=groups)
        read = [r for node in graph(convolution(inputs)) for r in internals.weights_read(node)]
        wanted = (convolution.weight, "conv", 6, transposed)
        assert len(read) == 1, "ConvolutionBackward0 has another name or other arguments"
        assert read[0][0] is wanted[0]
        assert read[0][1:] == wanted[1:]


@pytest.mark.parametrize("shape", [(2, 3), (2, 5, 3)])
def test_matrix_products_are_found_by_name(shape: tuple[int, ...]) -> None:
    weight = torch.ones(4, 3, requires_grad=True)
    turned = torch.ones(3, 4, requires_grad=True)
    inputs, bias = torch.ones(shape), torch.ones(4, requires_grad=True)
    rows = inputs.flatten(0, -2)
    for result, wanted, second in (
        (functional.linear(inputs, weight), weight, False),
        (functional.linear(inputs, weight, bias), weight, False),
        (torch.addmm(bias, rows, turned), turned, True),
        (rows @ turned, turned, True),
    ):
        read = [r for node in graph(result) for r in internals.weights_read(node)]
        names = [node.name() for node in graph(result)]
        assert len(read) == 1, f"no weight was found behind {names}"
        assert read[0][0] is wanted
        assert read[0][1:] == ("linear", 4, second)


def test_reentrant_checkpoints_are_known_by_name() -> None:
    x = torch.ones(2, requires_grad=True)
    for reentrant in (True, False):
        result = torch.as_tensor(checkpoint(torch.exp, x, use_reentrant=reentrant))
        names = [node.name() for node in graph(result)]
        known = any(internals.is_reentrant(node) for node in graph(result))
        assert known == reentrant, f"a re-entrant checkpoint has one of the names {names}"


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Often(Once):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def test_functions_that_forbid_a_second_derivative_are_known_by_their_decorator() -> None:
    x, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    result = (Once.apply(x) + Often.apply(x)).sum()
    found = internals.once_differentiable(result, {id(x)})
    assert found == ["Once"], "the decorator once_differentiable leaves another mark"
    assert internals.once_differentiable(result, {id(other)}) == []


def test_a_linear_operation_on_three_dimensions_gives_a_view_of_its_own_base() -> None:
    weight = torch.ones(4, 3, requires_grad=True)
    result = functional.linear(torch.ones(2, 5, 3), weight)
    base = result._base
    assert base is None or base.numel() == result.numel(), "Caught.hook looks for such a base"
