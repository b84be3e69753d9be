"""Everything that a measurement could leave behind, and an exact comparison of it."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def random_states() -> list[Any]:
    """States of torch, NumPy and Python."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return [
        torch.get_rng_state(),
        name,
        torch.from_numpy(np.asarray(keys)),
        rest,
        random.getstate(),
    ]


def network_state(network: nn.Module) -> list[Any]:
    """Values, gradients, flags, modes and hooks of a network."""
    return [
        [p.detach().clone() for p in network.parameters()],
        [b.clone() for b in network.buffers()],
        [None if p.grad is None else p.grad.clone() for p in network.parameters()],
        [p.requires_grad for p in network.parameters()],
        [m.training for m in network.modules()],
        [
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
            for m in network.modules()
        ],
        [len(p._backward_hooks or {}) for p in network.parameters()],
        [sorted(m.__dict__) for m in network.modules()],
    ]


def assert_identical(one: Any, other: Any) -> None:
    """Bit for bit, in any nesting."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        assert_identical(list(one.values()), list(other.values()))
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_identical(a, b)
    else:
        assert one == other
