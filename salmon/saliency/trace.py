"""Leaving no trace: random states and module modes as they were, on exceptions too."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
