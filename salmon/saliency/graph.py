"""Walks over autograd's graph, from results towards inputs."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node

# The code that the decorator puts around any backward.
_ONCE = torch.autograd.function.once_differentiable(lambda _ctx: None).__code__


@dataclass(frozen=True, slots=True)
class Survey:
    """What a loss depends on."""

    reached: list[Node]  # caught nodes that the loss depends on
    roots: list[Node]  # those of them with no caught node between them and the inputs
    reentrant: bool  # whether it passes through a re-entrant checkpoint
    stray: set[int]  # values of watched leaves, and of aliases, that it depends on in another way


def survey(
    total: Tensor,
    caught: Collection[Node],
    watched: Mapping[int, int],
    aliases: Mapping[int, int],
) -> Survey:
    """Find which caught nodes and leaves a loss depends on.

    Args:
        watched: Values by id of leaf: leaves that the loss should not depend on.
        aliases: Values by id of leaf: leaves that it should depend on through one caught node only.
    """
    parents: dict[Node, list[Node]] = {}
    leaves: list[tuple[Node, int]] = []
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
            stray.add(watched[id(leaf)])
        if leaf is not None and id(leaf) in aliases:
            leaves.append((node, aliases[id(leaf)]))
        for child in children:
            parents.setdefault(child, []).append(node)
            if child not in fed:
                stack.append((child, False))
    stray |= {value for node, value in leaves if not _leads_to(node, parents, caught)}
    reached = [node for node in caught if node in fed]
    roots = [node for node in reached if not fed[node]]
    reentrant = any(fed[node] and node.name() == "CheckpointFunctionBackward" for node in fed)
    return Survey(reached, roots, reentrant, stray)


def _leads_to(node: Node, parents: Mapping[Node, list[Node]], caught: Collection[Node]) -> bool:
    """Whether the only way from a node towards the loss passes through a caught node."""
    while node not in caught:
        above = parents.get(node, [])
        if len(above) != 1:
            return False
        node = above[0]
    return True


def sources(tensor: Tensor, caught: Collection[Node], watched: Mapping[int, int]) -> list[int]:
    """Find which watched leaves a tensor was computed from.

    Args:
        tensor: A weight that is no leaf.

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


def once_differentiable(total: Tensor, leaves: Collection[int]) -> list[str]:
    """Find functions whose backward is run for the leaves, but must not be differentiated itself.

    Autograd does not always refuse to: it leaves out what goes through them, or takes it for
    constant.

    Returns:
        Names of ``torch.autograd.Function`` classes, each once.
    """
    found: dict[str, None] = {}
    leads: dict[Node, bool] = {}  # node -> a leaf lies behind it
    stack = [] if total.grad_fn is None else [(total.grad_fn, False)]
    while stack:
        node, children_done = stack.pop()
        if not children_done and node in leads:
            continue
        children = [child for child, _ in node.next_functions if child is not None]
        if not children_done:
            leads[node] = id(getattr(node, "variable", None)) in leaves
            stack.append((node, True))
            stack += [(child, False) for child in children if child not in leads]
            continue
        leads[node] = leads[node] or any(leads[child] for child in children)
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
