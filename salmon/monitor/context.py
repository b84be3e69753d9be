"""Small contexts around the monitor's work, and what a trainer knows of its loaders."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer


class Clock:
    """Seconds since it was made, and those of them spent inside its context."""

    def __init__(self) -> None:
        """Start."""
        self._born = time.perf_counter()
        self._entered = 0.0
        self.busy = 0.0

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._born

    @property
    def share(self) -> float:
        """Busy seconds as a share of all."""
        return self.busy / max(self.total, 1e-9)

    def __enter__(self) -> None:
        """Start counting as busy."""
        self._entered = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        """Stop counting as busy."""
        self.busy += time.perf_counter() - self._entered


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Make tensors that outlive ``Trainer.validate``'s inference mode."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


@contextmanager
def muted(pl_module: LightningModule) -> Iterator[None]:
    """Keep a ``self.log`` inside ``forward`` from logging the extra forward.

    Args:
        pl_module: The network.
    """
    names = ("log", "log_dict")
    before = {name: pl_module.__dict__[name] for name in names if name in pl_module.__dict__}
    pl_module.__dict__.update(dict.fromkeys(names, lambda *_args, **_kwargs: None))
    try:
        yield
    finally:
        for name in names:
            del pl_module.__dict__[name]
        pl_module.__dict__.update(before)


def forward_context(trainer: Trainer) -> AbstractContextManager[object]:
    """The trainer's autocast; float16 is left out, where gradients of 1e-8 would vanish.

    Args:
        trainer: The trainer.

    Returns:
        A context for forward and loss.
    """
    precision = getattr(trainer.precision_plugin, "precision", "")
    if precision == "16-mixed":
        return nullcontext()
    context: AbstractContextManager[object] = trainer.precision_plugin.forward_context()
    return context


def expected_samples(trainer: Trainer, loader: int) -> int | None:
    """How many samples a loader will give.

    Args:
        trainer: The trainer, in validation or test.
        loader: The loader's number.

    Returns:
        The number, or None where the loader cannot say.
    """
    testing = trainer.testing
    batches = (trainer.num_test_batches if testing else trainer.num_val_batches)[loader]
    loaders = trainer.test_dataloaders if testing else trainer.val_dataloaders
    one: Any = loaders[loader] if isinstance(loaders, Sequence) else loaders
    try:
        size = len(one.dataset)
    except (AttributeError, TypeError):
        return None
    per_batch = getattr(one, "batch_size", None)
    if per_batch is None or batches == float("inf"):
        return size
    return min(size, int(batches) * int(per_batch))
