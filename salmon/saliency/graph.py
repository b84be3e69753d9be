"""Walks over autograd's graph, from results towards inputs."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import Node


@dataclass(frozen=True, slots=True)
class Survey:
    """What a loss depends on."""

    reached: list[Node]  # caught nodes that the loss depends on
    roots: list[Node]  # those of them with no caught node between them and the inputs
    stray: set[int]  # ids of watched leaves that the loss depends on directly


def survey(total: Tensor, caught: Collection[Node], watched: Collection[int]) -> Survey:
    """Find which caught nodes and watched leaves a loss depends on.

    Args:
        total: The loss.
        caught: Nodes of the graph.
        watched: Ids of leaf tensors.

    Returns:
        The survey.
    """
    stray: set[int] = set()
    fed: dict[Node, bool] = {}  # node -> a caught node lies between it and the inputs
    start = total.grad_fn
    stack: list[tuple[Node, bool]] = [(start, False)] if start is not None else []
    while stack:
        node, children_done = stack.pop()
        if not children_done and node in fed:
            continue
        children = [child for child, _ in node.next_functions if child is not None]
        if children_done:
            fed[node] = any(child in caught or fed[child] for child in children)
            continue
        fed[node] = False
        stack.append((node, True))
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) in watched:
            stray.add(id(leaf))
        stack.extend((child, False) for child in children if child not in fed)
    reached = [node for node in caught if node in fed]
    return Survey(reached, [node for node in reached if not fed[node]], stray)


def sources(tensor: Tensor, caught: Collection[Node], watched: Mapping[int, int]) -> list[int]:
    """Find which watched leaves a tensor was computed from.

    Args:
        tensor: A weight that is no leaf.
        caught: Nodes that must not take part.
        watched: Values by id of leaf.

    Returns:
        The values of its watched leaves; nothing if a caught node took part as well, since the
        tensor then depends on the data too.
    """
    if tensor.grad_fn is None:
        return []
    found: dict[int, None] = {}
    seen: set[Node] = set()
    stack: list[Node] = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        if node in caught:
            return []
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) in watched:
            found[watched[id(leaf)]] = None
        stack.extend(child for child, _ in node.next_functions if child is not None)
    return list(found)
