"""What became of classes, confusions and slices, with p-values for all of them together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from salmon.repairs.predictions import Predictions, mcnemar
from salmon.tasks import class_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Some of the samples before and after."""

    kind: str  # "class", "confusion", or the name of a slice
    name: str  # such as "3", "3 as 5" or "camera 2"
    samples: int
    before: float  # share that is right; of a confusion, that is not mistaken so
    after: float
    fixed: int
    broken: int
    p: float  # that no more turn wrong than right, adjusted for all groups (Holm 1979)

    @property
    def lost(self) -> float:
        """Share lost."""
        return self.before - self.after


def groups_of(
    before: Predictions, after: Predictions, slices: Mapping[str, Sequence[object]]
) -> tuple[Group, ...]:
    """Compare every group, those that lost most samples first.

    Args:
        slices: By name, the ``[N]`` values of a column.
    """
    found = list(_groups(before, after, slices))
    order = sorted(range(len(found)), key=lambda i: found[i].p)
    steps = [(len(found) - place) * found[i].p for place, i in enumerate(order)]
    for i, p in zip(order, accumulate(steps, max), strict=True):
        found[i] = replace(found[i], p=min(1.0, p))
    return tuple(sorted(found, key=lambda each: each.fixed - each.broken))


def _groups(
    before: Predictions, after: Predictions, slices: Mapping[str, Sequence[object]]
) -> Iterator[Group]:
    was, now = before.right, after.right
    targets = before.columns.get("target")
    if targets is not None:
        for label in targets.unique().tolist():
            name = class_name(label, before.classes)
            yield _group("class", name, was, now, targets == label)
        said, says = before.columns["predicted"], after.columns["predicted"]
        pairs = torch.cat([torch.stack([targets, each], 1) for each in (said, says)])
        for target, other in pairs.unique(dim=0).tolist():
            if target != other:
                own = targets == target
                true, taken = (class_name(number, before.classes) for number in (target, other))
                yield _group("confusion", f"{true} as {taken}", said != other, says != other, own)
    for name, values in slices.items():
        for value in sorted(set(values), key=str):
            own = torch.tensor([each == value for each in values])
            yield _group(name, str(value), was, now, own)


def _group(kind: str, name: str, was: Tensor, now: Tensor, own: Tensor) -> Group:
    old, new = was[own], now[own]
    fixed, broken = int((~old & new).sum()), int((old & ~new).sum())
    return Group(
        kind=kind, name=name, samples=len(old), before=float(old.double().mean()),
        after=float(new.double().mean()), fixed=fixed, broken=broken, p=mcnemar(broken, fixed),
    )  # fmt: skip
