"""What a monitor keeps from pass to pass and hands to checkpoints, and how it is read back.

A checkpoint may come from another version or another network, or be damaged: state that does not
have the right types and shapes is refused, and passes of other filters begin a new history.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from salmon.errors import StateError
from salmon.filters import FilterIndex
from salmon.views import History, PassRecord, mistakes_by_filter

STATE_VERSION = 2
_READABLE = (1, STATE_VERSION)  # the first had no views

_ADVICE = (
    "Resume without the monitor's state by changing its level, or use the package version and the "
    "checkpoint that belong together."
)

_Value = TypeVar("_Value")
Fingerprint = list[tuple[str, int, int]]


@dataclass(slots=True)
class ViewMemory:
    """What the views need from earlier passes, by scope, such as ``"test/loader1"``."""

    histories: dict[str, History] = field(default_factory=dict)
    blamed: dict[str, dict[str, int]] = field(default_factory=dict)
    """Mistakes by filter in the table of the last pass."""
    filters: dict[str, Fingerprint] = field(default_factory=dict)
    """Of the last pass; not in the first checkpoints of version 2."""
    shown: dict[str, str] = field(default_factory=dict)
    """Texts by tag, as last put up; not in checkpoints."""
    laid_out: set[tuple[str, str]] = field(default_factory=set)
    """Folders of loggers, with the tags that their layouts hold; not in checkpoints."""

    def take(
        self, scope: str, record: PassRecord, index: FilterIndex
    ) -> tuple[History, dict[str, int] | None]:
        """Add a pass.

        Args:
            scope: Its scope.
            record: The pass.
            index: Its filters; the passes of others are forgotten.

        Returns:
            The history with it, and mistakes by filter in the pass before, if there was one.
        """
        filters = index.fingerprint()
        same = self.filters.get(scope, filters) == filters
        known = self.histories.get(scope) if same else None
        history = History.start(record) if known is None else known.followed_by(record)
        before = self.blamed.get(scope) if len(history.passes) > 1 else None
        self.histories[scope], self.filters[scope] = history, filters
        self.blamed[scope] = mistakes_by_filter(record)
        return history, before

    def state_dict(self) -> dict[str, Any]:
        """Hand out what a resumed run needs.

        Returns:
            Plain values and tensors that ``torch.load(weights_only=True)`` reads back.
        """
        return {
            "histories": {scope: each.state_dict() for scope, each in self.histories.items()},
            "blamed": {scope: dict(each) for scope, each in self.blamed.items()},
            "filters": {scope: list(each) for scope, each in self.filters.items()},
        }

    def load_state_dict(self, state: Any) -> None:
        """Go on where a checkpoint was written; what was known of other passes is forgotten.

        Args:
            state: What :meth:`state_dict` gave; ``{}`` knows of no passes.

        Raises:
            StateError: If it is something else; nothing is changed then.
        """
        state = _by_name(state, "views", lambda each: each)
        histories = _by_name(state.get("histories", {}), "histories", History.from_state_dict)
        blamed = _by_name(
            state.get("blamed", {}), "blamed", lambda each: _by_name(each, "blamed", _count)
        )
        filters = _by_name(state.get("filters", {}), "filters", _fingerprint)
        self.histories, self.blamed, self.filters = histories, blamed, filters


def checked_state(state: Any) -> tuple[dict[str, int], dict[str, dict[str, Any]], Any]:
    """Take the state of a monitor apart.

    Args:
        state: What ``SaliencyMonitor.state_dict`` gave, in this version or an earlier one.

    Returns:
        Finished passes by stage; states of fits by scope; and the state of a :class:`ViewMemory`,
        which checks it.

    Raises:
        StateError: If it is of another version, or damaged.
    """
    version = state.get("version") if isinstance(state, dict) else type(state).__name__
    if type(version) is not int or version not in _READABLE:
        raise StateError(
            f"the checkpoint holds SaliencyMonitor state of version {version!r} but "
            f"{STATE_VERSION} is needed. {_ADVICE}"
        )
    finished = _by_name(state.get("finished"), "finished", _count)
    fits = _by_name(state.get("fits"), "fits", lambda fit: _by_name(fit, "fits", lambda x: x))
    return finished, fits, state.get("views") if version > 1 else {}


def _by_name(value: Any, what: str, read: Callable[[Any], _Value]) -> dict[str, _Value]:
    """A dictionary with strings as keys, each value read."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise _damaged(what, value, "a dictionary with strings as keys")
    return {name: read(each) for name, each in value.items()}


def _count(value: Any) -> int:
    """A number of passes or mistakes."""
    if type(value) is not int or value < 0:
        raise _damaged("finished or blamed", value, "a whole number >= 0")
    return value


def _fingerprint(value: Any) -> Fingerprint:
    """What :meth:`FilterIndex.fingerprint` gave."""
    if not isinstance(value, list) or not all(
        isinstance(row, tuple | list) and [type(item) for item in row] == [str, int, int]
        for row in value
    ):
        raise _damaged("filters", value, "a list of (weight, filters, size)")
    return [(row[0], row[1], row[2]) for row in value]


def _damaged(what: str, value: Any, needed: str) -> StateError:
    """What came, what was needed, what to do."""
    return StateError(
        f"the checkpoint's SaliencyMonitor state is damaged: {what} holds {type(value).__name__} "
        f"where {needed} is needed. {_ADVICE}"
    )
