"""What a trainer knows of its loaders and its precision, and contexts for work inside its loop."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import BatchSampler, DistributedSampler

from salmon.errors import UnsupportedError
from salmon.monitor.bases import logger
from salmon.monitor.distributed import Numbering
from salmon.monitor.loaders import flat_loaders, keeps_order, loader_names, sampler_of


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Make tensors that outlive ``Trainer.validate``'s inference mode."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


@contextmanager
def muted(pl_module: LightningModule) -> Iterator[None]:
    """Keep a ``self.log`` inside ``forward`` from logging the extra forward."""
    names = ("log", "log_dict")
    before = {name: pl_module.__dict__[name] for name in names if name in pl_module.__dict__}
    pl_module.__dict__.update(dict.fromkeys(names, lambda *_args, **_kwargs: None))
    try:
        yield
    finally:
        for name in names:
            del pl_module.__dict__[name]
        pl_module.__dict__.update(before)


_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


def check_trainer(trainer: Trainer) -> None:
    """Refuse trainers whose network cannot be measured in one piece."""
    strategy = type(trainer.strategy).__name__
    if strategy in _SHARDED:
        raise UnsupportedError(
            f"the trainer's {strategy} shards parameters, but SaliencyMonitor needs whole ones; "
            "use Trainer(strategy='auto', devices=1), or validate a checkpoint in such a trainer."
        )
    if trainer.world_size > 1 and "DDP" not in strategy:
        raise UnsupportedError(
            f"the trainer runs {trainer.world_size} processes by {strategy}, but SaliencyMonitor "
            "works with several processes in Trainer(strategy='ddp') only; use that, or "
            "Trainer(devices=1)."
        )


def rehearsal(trainer: Trainer) -> bool:
    """Whether it is a fast_dev_run, in which Lightning's loggers and checkpoints are off, too."""
    return bool(getattr(trainer, "fast_dev_run", False))


def forward_context(trainer: Trainer) -> AbstractContextManager[object]:
    """The trainer's autocast; float16 is left out, where gradients of 1e-8 would vanish.

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

    Returns:
        The number, or None where the loader cannot say.
    """
    testing = trainer.testing
    batches = (trainer.num_test_batches if testing else trainer.num_val_batches)[loader]
    one = loader_of(trainer, loader)
    # Batches made by the dataset itself, or by a sampler of the user's own, are of any size.
    own = type(getattr(one, "batch_sampler", None)) is not BatchSampler
    try:
        size: int = len(one.dataset)
    except (AttributeError, TypeError):
        return None
    if own:
        return None
    if batches == float("inf"):
        return size
    # Every process gets as many batches.
    most: int = int(batches) * one.batch_sampler.batch_size * trainer.world_size
    return min(size, most)


def is_last_batch(trainer: Trainer, number: int, loader: int) -> bool:
    """Whether a batch is the last one of its loader, in this process, as far as it can be known."""
    counts = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
    if number + 1 >= counts[loader]:
        return True
    loops = {"fit": trainer.fit_loop.epoch_loop.val_loop, "test": trainer.test_loop}
    loop = loops.get(getattr(trainer.state.fn, "value", ""), trainer.validate_loop)
    return bool(loop.batch_progress.is_last_batch)


def numbering_of(trainer: Trainer, loader: int) -> Numbering:
    """Where the samples of a loader stand in the pass.

    Returns:
        With several processes, that of the sampler that shares the samples out.
    """
    if trainer.world_size == 1:
        return Numbering()
    sampler = sampler_of(loader_of(trainer, loader))
    if isinstance(sampler, DistributedSampler):
        data: Any = sampler.dataset
        return Numbering(sampler.rank, sampler.num_replicas, len(data))
    if trainer.is_global_zero:
        logger.warning(
            "SaliencyMonitor cannot know which samples of loader %d each of the %d processes gets, "
            "since no DistributedSampler shares them out; it takes all of them for different ones.",
            loader, trainer.world_size,
        )  # fmt: skip
    return Numbering(trainer.global_rank, trainer.world_size)


def in_dataset_order(trainer: Trainer, loader: int) -> bool:
    """Whether a loader gives the samples of its dataset in order, so that positions are indices."""
    return keeps_order(loader_of(trainer, loader))


def scope_of(trainer: Trainer, stage: str, loader: int) -> str:
    """Name what one loader of a pass gives.

    Args:
        stage: ``"validation"`` or ``"test"``.

    Returns:
        The stage; with the loader's name behind where there are several.
    """
    names = loader_names(_loaders(trainer))
    return stage if len(names) == 1 else f"{stage}/{names[loader]}"


def _loaders(trainer: Trainer) -> Any:
    """Those of the running stage, as the user gave them."""
    return trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders


def loader_of(trainer: Trainer, number: int) -> Any:
    """One of the loaders of the running stage, in the order Lightning runs them."""
    return flat_loaders(_loaders(trainer))[number]
