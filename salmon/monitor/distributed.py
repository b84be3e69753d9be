"""The processes of a trainer: what they hand to each other, and how trouble of one ends all.

Thin over ``torch.distributed``. Collectives come in the same order in all processes, or they would
wait for each other for ever. So whatever can fail in one runs in :meth:`Processes.together`, which
tells the others before any of them begins the next collective.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from pytorch_lightning import Trainer
from torch import Tensor

from salmon.errors import SalmonError

_Value = TypeVar("_Value")


class PeerError(SalmonError, RuntimeError):
    """Another process of the trainer failed; its message is in this one."""


@dataclass(frozen=True, slots=True)
class Processes:
    """All processes, of which this is one; one process alone needs no ``torch.distributed``."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of(cls, trainer: Trainer) -> "Processes":
        """The processes of a trainer that is set up."""
        if trainer.world_size == 1 or not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(trainer.global_rank, trainer.world_size)

    @property
    def first(self) -> bool:
        """Whether this is the one that fits, ranks and writes."""
        return self.rank == 0

    def together(self, task: Callable[[], _Value]) -> _Value:
        """Run a task without collectives in every process; if one fails, all raise."""
        if self.size == 1:
            return task()
        error, value = None, None
        try:
            value = task()
        except Exception as caught:  # noqa: BLE001  # told to all, then raised
            error = caught
        troubles = self._told(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, text in enumerate(troubles):
            if text is not None:
                raise PeerError(f"rank {rank} of {self.size} failed ({text}).")
        return value  # type: ignore[return-value]

    def objects(self, value: _Value) -> list[_Value]:
        """Hand a small value to all."""
        if self.size == 1:
            return [value]
        data = self.together(lambda: pickle.dumps(value))  # may hold what a user's loader gave
        return [pickle.loads(theirs) for theirs in self._told(data)]  # of this very program

    def reduce(self, value: _Value, merge: Callable[[_Value], object]) -> None:
        """Hand a value to the first process, one after the other."""
        if self.size == 1:
            return
        data = self.together(lambda: b"" if self.first else pickle.dumps(value))
        troubles: list[Exception] = []
        for rank in range(1, self.size):
            if self.rank == rank:
                dist.send_object_list([data], dst=0)
            elif self.first:
                theirs: list[Any] = [None]
                dist.recv_object_list(theirs, src=rank)
                try:
                    if not troubles:
                        merge(pickle.loads(theirs[0]))
                except Exception as caught:  # noqa: BLE001  # the others go on sending
                    troubles.append(caught)

        def tell() -> None:
            for trouble in troubles:
                raise trouble

        self.together(tell)

    def on_first(self, task: Callable[[], _Value]) -> _Value:
        """Run a task without collectives in the first process only."""
        if self.size == 1:
            return task()
        value: list[Any] = []

        def work() -> bytes:
            value.extend([task()] if self.first else [])
            return pickle.dumps(value[0]) if self.first else b""

        told: list[Any] = [self.together(work)]
        dist.broadcast_object_list(told)
        found: _Value = value[0] if self.first else pickle.loads(told[0])
        return found

    def _told(self, value: _Value) -> list[_Value]:
        """What can surely be pickled, from all to all."""
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, value)
        return told


@dataclass(slots=True)
class Numbering:
    """Where the samples of a process stand in the whole pass.

    The order is that of ``torch.utils.data.DistributedSampler``: of w processes, r gets the samples
    r, r + w, r + 2w and so on; what lies beyond the last sample repeats earlier ones, so that all
    processes get as many.
    """

    rank: int = 0
    ranks: int = 1
    samples: int | None = None  # of all processes; those beyond are repeats
    seen: int = 0

    def next(self, count: int) -> Tensor:
        """Number the samples that follow: ``[count]`` int64 positions, -1 for repeats."""
        numbers = torch.arange(self.seen, self.seen + count) * self.ranks + self.rank
        self.seen += count
        return numbers if self.samples is None else numbers.where(numbers < self.samples, -1)

    def batch(self, number: int) -> int:
        """Position among the batches of all processes, of one among those of this process."""
        return number * self.ranks + self.rank
