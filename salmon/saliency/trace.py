"""Leaving no trace, and running whatever the caller has switched on.

Random states, module modes and frozen parameters are as they were afterwards, on exceptions too.
Compiled networks run uncompiled, and inference tensors become ordinary ones.
"""

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def keep_rng() -> Iterator[None]:
    """Restore the random states of torch (all devices in use), NumPy and Python on exit."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    numpy = np.random.get_state()  # noqa: NPY002
    python = random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        np.random.set_state(numpy)  # noqa: NPY002
        random.setstate(python)


@contextmanager
def gradients_on(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Let frozen parameters ask for gradients, and freeze them again on exit.

    Args:
        parameters: Leaves.
    """
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_()
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad = False


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[bool]:
    """Put every module into eval mode, and each back into its own mode on exit.

    Args:
        model: The network.

    Yields:
        Whether any module was in train mode.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield bool(training)
    finally:
        for module in training:
            module.training = True


def eagerly() -> AbstractContextManager[object]:
    """Run compiled networks uncompiled.

    Compiled code would pass by the catcher unseen, and cannot be differentiated twice.

    Returns:
        A context for the forward.
    """
    # Asking for the stance imports the compiler, which takes seconds; without it, no need.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def usable_in_graph(tensor: Tensor) -> Tensor:
    """Make a tensor that autograd may keep.

    Args:
        tensor: Perhaps made under ``torch.inference_mode``.

    Returns:
        The tensor without a graph, copied if need be.
    """
    with torch.inference_mode(mode=False):
        return tensor.clone() if tensor.is_inference() else tensor.detach()
