"""What a repair changed: layers of the network, and samples of the accept splits."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from salmon.repairs.edit import Edit, rows_of
from salmon.repairs.predictions import Predictions
from salmon.tasks import class_name


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChange:
    """One tensor of the network."""

    name: str  # such as "layer1.0.conv1.weight"
    rows: tuple[str, ...]  # that were changed, such as ("3", "17"); filters where it holds filters
    of: int  # all rows
    weights: int  # changed values
    relative_change: float  # |new - old| / |old| of all these rows; infinite where old is zero


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassChange:
    """One class of a set."""

    label: int
    name: str  # the label again where it has none
    samples: int
    before: float  # accuracy
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleChange:
    """One sample that turned right or wrong."""

    id: int | str
    row: int  # in its split
    target: int | None  # class; None where the task has none
    before: int | None  # predicted class
    after: int | None
    details: dict[str, tuple[float, float]]  # what the task says of it, before and after
    what: str  # changed, in a few words


@dataclass(frozen=True, slots=True, kw_only=True)
class SetChange:
    """What became of an accept split."""

    classes: tuple[ClassChange, ...]
    fixed: tuple[SampleChange, ...]
    broken: tuple[SampleChange, ...]


def layer_changes(edit: Edit, state: Mapping[str, Tensor]) -> tuple[LayerChange, ...]:
    """Describe an edit of a network whose tensors still have the old values."""
    found = []
    for change in edit.changes:
        old, new = rows_of(state, change).double(), change.values.double()
        moved, norm = float((new - old).norm()), float(old.norm())
        found.append(
            LayerChange(
                name=change.layer.weight,
                rows=tuple(change.layer.channel_label(c) for c in change.channels.tolist()),
                of=change.layer.filters,
                weights=new.numel(),
                relative_change=moved / norm if norm else float("inf") if moved else 0.0,
            )
        )
    return tuple(found)


def set_change(before: Predictions, after: Predictions, ids: tuple[int | str, ...]) -> SetChange:
    """Compare what a network said of the same samples before and after."""
    was, now, targets = before.right, after.right, before.columns.get("target")
    classes = []
    for label in () if targets is None else targets.unique().tolist():
        own = targets == label
        classes.append(
            ClassChange(
                label=label,
                name=class_name(label, before.classes),
                samples=int(own.sum()),
                before=float(was[own].double().mean()),
                after=float(now[own].double().mean()),
            )
        )

    def changed(which: Tensor) -> tuple[SampleChange, ...]:
        return tuple(
            _sample_change(before, after, row, ids[row])
            for row in which.nonzero().squeeze(1).tolist()
        )

    return SetChange(classes=tuple(classes), fixed=changed(~was & now), broken=changed(was & ~now))


def _sample_change(
    before: Predictions, after: Predictions, row: int, name: int | str
) -> SampleChange:
    details = {
        key: (float(before.columns[key][row]), float(after.columns[key][row]))
        for key in before.details
    }
    target, said, says = (
        int(side.columns[key][row]) if key in side.columns else None
        for side, key in ((before, "target"), (before, "predicted"), (after, "predicted"))
    )
    what = [f"{key} {old:.3g} to {new:.3g}" for key, (old, new) in details.items()]
    if target is not None and said is not None and says is not None:
        true, old, new = (class_name(number, before.classes) for number in (target, said, says))
        what = [f"class {true}, {old} to {new}"]
    return SampleChange(
        id=name, row=row, target=target, before=said, after=says, details=details,
        what=what[0] if what else "by the rule of the task",
    )  # fmt: skip
