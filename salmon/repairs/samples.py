"""Samples in memory, and their disjoint stratified split into repair, guard and accept."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from salmon.errors import InputError
from salmon.files import tensor_hash
from salmon.saliency import check_samples, class_numbers, take_rows

PARTS = ("repair", "guard", "accept")

Batch = tuple[Any, Tensor]
"""Inputs, a tensor or nesting of tensors, and ``[N, ...]`` targets."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Labelled samples on the CPU."""

    inputs: Any  # nesting of tensors with N rows
    targets: Tensor  # [N, ...], such as class numbers
    ids: tuple[int | str, ...]  # [N]; equal ids are the same sample
    classes: tuple[str, ...] = ()  # names, by class number, where they are known

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.targets)

    def take(self, rows: Tensor) -> "Samples":
        """The samples of ``[M]`` row numbers, in that order."""
        return replace(
            self,
            inputs=take_rows(self.inputs, rows, len(self)),
            targets=self.targets[rows],
            ids=tuple(self.ids[row] for row in rows.tolist()),
        )

    def alike(self, other: "Samples") -> bool:
        """Whether other samples have the same nesting, shapes and types, so that they may join."""
        (own, spec), (others, other_spec) = (
            pytree.tree_flatten((each.inputs, each.targets)) for each in (self, other)
        )
        forms = (
            [(t.shape[1:], t.dtype) if isinstance(t, Tensor) else None for t in leaves]
            for leaves in (own, others)
        )
        return spec == other_spec and next(forms) == next(forms)

    def joined(self, other: "Samples") -> "Samples":
        """These samples, and then others that are alike."""
        inputs = pytree.tree_map(
            lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0],
            self.inputs, other.inputs,
        )  # fmt: skip
        targets = torch.cat([self.targets, other.targets])
        return replace(self, inputs=inputs, targets=targets, ids=self.ids + other.ids)

    def fingerprint(self) -> str:
        """SHA-256 of ids, targets and inputs, which tells what data a patch was made with."""
        digest = hashlib.sha256(repr(self.ids).encode())
        for leaf in pytree.tree_leaves((self.targets, self.inputs)):
            digest.update((tensor_hash(leaf) if isinstance(leaf, Tensor) else repr(leaf)).encode())
        return digest.hexdigest()

    def batches(self, size: int) -> Iterable[Batch]:
        """Cut into batches."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield take_rows(self.inputs, part, len(self)), self.targets[part]

    @classmethod
    def collect(
        cls,
        batches: Iterable[Any],
        *,
        unpack: Callable[[Any], Batch] | None = None,
        ids: Callable[[Any], Sequence[int | str] | Tensor] | None = None,
        most: int | None = None,
        seed: int = 0,
        classes: Sequence[str] = (),
    ) -> "Samples":
        """Take samples out of a loader.

        Args:
            batches: Such as a ``DataLoader``; it must not shuffle unless ``ids`` is given, since
                samples are told apart by their position otherwise.
            unpack: ``batch -> (inputs, targets)``; None takes batches that are such pairs.
            ids: ``batch -> [N]`` numbers or names of its samples; None numbers them by position.
            most: Keep at most so many, those with the smallest hashes of id and seed.
            classes: Names, by class number, for the reports.

        Raises:
            InputError: If there are none, or they are not of one shape.
        """
        found = Gathering(most=most, seed=seed, classes=classes)
        for batch in batches:
            inputs, targets = batch if unpack is None else unpack(batch)
            found.add(inputs, targets, None if ids is None else ids(batch))
        return found.samples()

    def split(self, shares: Sequence[float], seed: int) -> dict[str, Tensor]:
        """Split by id into :data:`PARTS`, with the same shares of every class in all of them.

        No id is in two parts. The part of a sample depends on the seed and on the ids and classes.
        Targets that are no class numbers, or no 0 and 1 for each sample, are as of one class.

        Returns:
            ``[n]`` row numbers by part.
        """
        class_of: dict[int | str, int] = {}
        for name, label in zip(self.ids, self._strata().tolist(), strict=True):
            class_of.setdefault(name, label)
        wanted = torch.tensor(list(shares), dtype=torch.float64)
        owed = torch.zeros_like(wanted)  # over all classes, so that small ones add up, too
        part_of: dict[int | str, int] = {}
        for name in sorted(class_of, key=lambda name: (class_of[name], _hash(seed, name))):
            owed += wanted
            part_of[name] = int(owed.argmax())
            owed[part_of[name]] -= 1
        parts = torch.tensor([part_of[name] for name in self.ids])
        return {name: (parts == number).nonzero().squeeze(1) for number, name in enumerate(PARTS)}

    def _strata(self) -> Tensor:
        """``[N]`` int64 classes, where there are some."""
        classes = class_numbers(self.targets)
        if classes is not None:
            return classes
        if self.targets.numel() == len(self) and bool(self.targets.eq(self.targets.bool()).all()):
            return self.targets.reshape(-1).long()
        return torch.zeros(len(self), dtype=torch.int64)


class Gathering:
    """Samples that come in batches, of which at most so many are kept."""

    def __init__(
        self, *, most: int | None = None, seed: int = 0, classes: Sequence[str] = ()
    ) -> None:
        """Start empty; ``most`` keeps those with the smallest hashes of id and seed."""
        self._most, self._seed, self._classes = most, seed, tuple(classes)
        self._rows: list[tuple[bytes, Any, Tensor, int | str]] = []
        self._seen = 0

    def add(
        self, inputs: Any, targets: Tensor, ids: Sequence[int | str] | Tensor | None = None
    ) -> None:
        """Take up a batch; arguments as of :class:`Samples`, on any device.

        Args:
            ids: None numbers the samples by position.
        """
        count = check_samples(inputs, targets)
        classes = class_numbers(targets)
        inputs, targets = pytree.tree_map_only(
            Tensor, lambda t: t.detach().cpu().as_subclass(Tensor),
            (inputs, targets if classes is None else classes),
        )  # fmt: skip
        names = list(range(self._seen, self._seen + count)) if ids is None else _plain(ids, count)
        self._seen += count
        for i, name in enumerate(names):
            one = take_rows(inputs, slice(i, i + 1), count)
            self._rows.append((_hash(self._seed, name), one, targets[i : i + 1], name))
        if self._most is not None and len(self._rows) > 2 * self._most:
            self._thin_out()

    def merge(self, other: "Gathering") -> None:
        """Take over what another one kept of other samples."""
        self._rows += other._rows
        self._seen += other._seen
        self._thin_out()

    def samples(self) -> Samples:
        """Hand out what was kept."""
        if not self._rows:
            raise InputError("the loader gave no samples; at least a few hundred are needed.")
        self._thin_out()
        inputs, targets = pytree.tree_map(
            lambda *t: _put_together(t) if isinstance(t[0], Tensor) else t[0],
            *((row[1], row[2]) for row in self._rows),
        )
        return Samples(inputs, targets, tuple(row[3] for row in self._rows), self._classes)

    def _thin_out(self) -> None:
        if self._most is not None:
            self._rows = sorted(self._rows, key=lambda row: row[0])[: self._most]


def check_sizes(parts: dict[str, Samples], least: int, what: str) -> None:
    """Refuse splits with too few samples."""
    short = {name: len(part) for name, part in parts.items() if len(part) < least}
    if short:
        have = sum(len(part) for part in parts.values())
        need = max(-(-least * have // max(1, count)) for count in short.values())
        found = ", ".join(f"{count} in {name}" for name, count in short.items())
        raise InputError(
            f"the {what} data have {have} samples, of which only {found}; each part needs {least}, "
            f"so about {need} samples in all. Bring more, or lower min_split."
        )


def _put_together(rows: Sequence[Tensor]) -> Tensor:
    """Join samples."""
    shapes = {tuple(row.shape[1:]) for row in rows}
    if len(shapes) > 1:
        raise InputError(
            f"samples have the shapes {', '.join(map(str, sorted(shapes)[:3]))}; a repair needs "
            "inputs and targets of one shape, such as images of one size or padded sequences."
        )
    return torch.cat(list(rows))


def _hash(seed: int, name: int | str) -> bytes:
    """A uniform key that depends on the seed and an id only."""
    return hashlib.blake2b(f"{seed}:{type(name).__name__}:{name}".encode(), digest_size=8).digest()


def _plain(found: Sequence[int | str] | Tensor, count: int) -> list[int | str]:
    """Ids as numbers or names."""
    names = found.tolist() if isinstance(found, Tensor) else list(found)
    if len(names) != count:
        raise InputError(
            f"ids gave {len(names)} ids for a batch of {count} samples; as many are needed."
        )
    return [name if isinstance(name, int) else str(name) for name in names]
