"""What a monitor keeps from pass to pass and hands to checkpoints, and how it is read back.

A checkpoint may come from another version or another network: state of another form is refused, and
passes of other filters begin a new history.
"""

import secrets
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from salmon.errors import StateError
from salmon.filters import FilterIndex, Fingerprint
from salmon.records import record_of
from salmon.views import Blamed, History, PassRecord, blamed

STATE_VERSION = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorState:
    """What a checkpoint holds; tensors are in the innermost dictionaries."""

    version: int
    finished: dict[str, int]  # passes, by stage
    fits: dict[str, dict[str, Any]]  # by scope
    run: str
    histories: dict[str, dict[str, Any]]  # by scope, like the others
    blamed: dict[str, Blamed]
    filters: dict[str, Fingerprint]


def new_run() -> str:
    """Name a run.

    Returns:
        Such as ``20261124T113554-9f86d081``; what is random comes from the operating system, not
        from a generator whose numbers a training uses.
    """
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


@dataclass(slots=True)
class ViewMemory:
    """What the views need from earlier passes, by scope, such as ``"test/loader1"``."""

    run: str = field(default_factory=new_run)
    """Tells the files of this run from those of others in the same folder."""

    histories: dict[str, History] = field(default_factory=dict)
    blamed: dict[str, Blamed] = field(default_factory=dict)
    """Of the last pass."""
    filters: dict[str, Fingerprint] = field(default_factory=dict)
    """Of the last pass; not in the first checkpoints of version 2."""
    shown: dict[str, str] = field(default_factory=dict)
    """Texts by tag, as last put up; not in checkpoints."""
    told: set[str] = field(default_factory=set)
    """Warnings that were given once; not in checkpoints."""
    without_maps: bool = False
    """Whether saliency maps failed once, so that they are not tried again; not in checkpoints."""

    def take(
        self, scope: str, record: PassRecord, index: FilterIndex
    ) -> tuple[History, Blamed | None]:
        """Add a pass.

        Args:
            index: Its filters; the passes of others are forgotten.

        Returns:
            The history with it, and whom the pass before blamed, if there was one.
        """
        filters = index.fingerprint()
        same = self.filters.get(scope, filters) == filters
        known = self.histories.get(scope) if same else None
        history = History.start(record) if known is None else known.followed_by(record)
        before = self.blamed.get(scope) if len(history.passes) > 1 else None
        self.histories[scope], self.filters[scope] = history, filters
        self.blamed[scope] = blamed(record)
        return history, before

    def accuracy(self, scope: str) -> float | None:
        """Share of right samples in the last pass; None before the first one."""
        known = self.histories.get(scope)
        if known is None or not int(known.samples[-1]):
            return None
        return 1 - int(known.misclassified[-1]) / int(known.samples[-1])

    def state_dict(self) -> dict[str, Any]:
        """Hand out what a resumed run needs.

        Returns:
            Plain values and tensors that ``torch.load(weights_only=True)`` reads back.
        """
        return {
            "run": self.run,
            "histories": {scope: each.state_dict() for scope, each in self.histories.items()},
            "blamed": {scope: asdict(each) for scope, each in self.blamed.items()},
            "filters": {scope: list(each) for scope, each in self.filters.items()},
        }

    def take_over(self, state: MonitorState) -> None:
        """Go on where a checkpoint was written; what was known of other passes is forgotten."""
        histories = {scope: History.from_state_dict(e) for scope, e in state.histories.items()}
        self.run, self.histories = state.run, histories
        self.blamed, self.filters = dict(state.blamed), dict(state.filters)


def checked_state(state: Any) -> MonitorState:
    """Check the state of a monitor.

    Args:
        state: What ``SaliencyMonitor.state_dict`` gave.
    """
    version = state.get("version") if isinstance(state, dict) else type(state).__name__
    if version != STATE_VERSION:
        raise StateError(
            f"the checkpoint holds SaliencyMonitor state of version {version} but {STATE_VERSION} "
            "is needed"
        )
    found = record_of(MonitorState, state, "the monitor's state")
    if min(found.finished.values(), default=0) < 0:
        raise StateError(f"the monitor's state counts {found.finished} finished passes")
    return found
