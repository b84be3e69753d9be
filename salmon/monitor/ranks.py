"""The processes of a trainer: what they hand to each other, and how trouble of one ends all.

Thin over ``torch.distributed``. Collectives come in the same order on all ranks, or the ranks would
wait for each other for ever. So whatever can fail on one rank runs in :meth:`Ranks.together`, which
tells the others before any of them begins the next collective.
"""

import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from pytorch_lightning import Trainer
from torch import Tensor

from salmon.errors import SalmonError

_Value = TypeVar("_Value")


class PeerError(SalmonError, RuntimeError):
    """Another process of the trainer failed; its message is in this one."""


class Ranks:
    """All processes, of which this is one; one process alone needs no ``torch.distributed``."""

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        device: torch.device | None = None,
        group: Any = None,
    ) -> None:
        """Take note.

        Args:
            rank: Of this process in the group, from 0.
            size: Number of processes.
            device: Where tensors have to be for the backend; None is the CPU.
            group: Of ``torch.distributed``; None takes all processes.
        """
        self.rank = rank
        self.size = size
        self._device = device or torch.device("cpu")
        self._group = group

    @classmethod
    def of(cls, trainer: Trainer) -> "Ranks":
        """The processes of a trainer.

        Args:
            trainer: The trainer, set up.

        Returns:
            Them.
        """
        if trainer.world_size == 1 or not (dist.is_available() and dist.is_initialized()):
            return cls()
        device = trainer.strategy.root_device if dist.get_backend() == "nccl" else None
        return cls(trainer.global_rank, trainer.world_size, device)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def objects(self, value: _Value) -> list[_Value]:
        """Hand a small value to all.

        Args:
            value: Anything that can be pickled.

        Returns:
            The values of all ranks, by rank.

        Raises:
            PeerError: If that of another rank cannot be pickled; what pickle raises, if it is this
                one's.
        """
        if self.size == 1:
            return [value]
        error, data = None, b""
        try:
            data = pickle.dumps(value)  # may hold what a user's loader gave
        except Exception as caught:  # noqa: BLE001  # told to all, then raised
            error = caught
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, (_text(error), data), group=self._group)
        if error is not None:
            raise error
        self._raise_for_peers([text for text, _ in told])
        return [pickle.loads(theirs) for _, theirs in told]  # of this very program

    def together(self, task: Callable[[], _Value]) -> _Value:
        """Run a task without collectives on every rank; if one fails, all raise.

        Args:
            task: What to do here.

        Returns:
            What it gave here.

        Raises:
            PeerError: If it failed on another rank only.
        """
        error, value = None, None
        try:
            value = task()
        except Exception as caught:
            if self.size == 1:
                raise
            error = caught
        troubles = self.objects(_text(error))
        if error is not None:
            raise error
        self._raise_for_peers(troubles)
        return value  # type: ignore[return-value]

    def _raise_for_peers(self, troubles: Sequence[str | None]) -> None:
        """Raise if any rank had trouble."""
        for rank, text in enumerate(troubles):
            if text is not None:
                raise PeerError(f"rank {rank} of {self.size} failed ({text}).")

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Put the rows of all ranks under each other, on every rank.

        Args:
            rows: ``[N, ...]`` on the CPU; N may differ, all else is the same on all ranks.

        Returns:
            All rows, by rank, on the CPU.
        """
        if self.size == 1:
            return rows
        sizes = self.objects(len(rows))
        padded = rows.new_zeros((max(sizes), *rows.shape[1:])).to(self._device)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self._group)
        return torch.cat([part[:n].cpu() for part, n in zip(parts, sizes, strict=True)])

    def exchange(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Send a matrix to every rank and get one from each.

        Args:
            parts: ``[S_j, W]`` for rank j, on the CPU; W and the type may differ between ranks in
                W only.

        Returns:
            What the ranks sent here, by rank.
        """
        if self.size == 1:
            return list(parts)
        shapes = self.objects([tuple(part.shape) for part in parts])
        mine = [theirs[self.rank] for theirs in shapes]
        sent = torch.cat([part.flatten() for part in parts]).to(self._device)
        taken = sent.new_empty(sum(a * b for a, b in mine))
        dist.all_to_all_single(
            taken, sent, [a * b for a, b in mine], [part.numel() for part in parts],
            group=self._group,
        )  # fmt: skip
        pieces = taken.cpu().split([a * b for a, b in mine])
        return [piece.view(shape) for piece, shape in zip(pieces, mine, strict=True)]


def _text(error: Exception | None) -> str | None:
    """What the other ranks are told of an error."""
    return None if error is None else f"{type(error).__name__}: {error}"


ALONE = Ranks()
"""One process."""
