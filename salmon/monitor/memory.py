"""What a monitor keeps from pass to pass and hands to checkpoints, and how it is read back.

A checkpoint may come from another version or another network, or be damaged: state that does not
have the right types and shapes is refused, and passes of other filters begin a new history.
"""

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from salmon.errors import StateError
from salmon.filters import FilterIndex, Fingerprint, checked_fingerprint
from salmon.plain import dict_of, same_whole, shown
from salmon.views import History, PassRecord, mistakes_by_filter

STATE_VERSION = 2
_READABLE = (1, STATE_VERSION)  # the first had no views

MOST_LETTERS = 100
"""In the name of a run."""


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
    blamed: dict[str, dict[str, int]] = field(default_factory=dict)
    """Mistakes by filter in the table of the last pass."""
    filters: dict[str, Fingerprint] = field(default_factory=dict)
    """Of the last pass; not in the first checkpoints of version 2."""
    shown: dict[str, str] = field(default_factory=dict)
    """Texts by tag, as last put up; not in checkpoints."""
    told: set[str] = field(default_factory=set)
    """Warnings that were given once; not in checkpoints."""
    without_maps: bool = False
    """Whether saliency maps failed once, so that they are not tried again; not in checkpoints."""
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
            "run": self.run,
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
        parts = dict_of(Any, state, "the monitor's views")
        histories = dict_of(Any, parts.get("histories", {}), "the monitor's histories")
        blamed = dict_of(dict[str, int], parts.get("blamed", {}), "the monitor's blamed filters")
        filters = dict_of(Any, parts.get("filters", {}), "the monitor's filters")
        fresh = {scope: History.from_state_dict(each) for scope, each in histories.items()}
        prints = {
            scope: checked_fingerprint(each, source="the monitor's state")
            for scope, each in filters.items()
        }
        run = parts.get("run", self.run)
        if not isinstance(run, str) or len(run) > MOST_LETTERS:
            raise StateError(f"the monitor's run is {shown(run)} where a short name is needed.")
        self.run = run
        self.histories, self.blamed, self.filters = fresh, blamed, prints


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
    whole = dict_of(Any, state, "the monitor's state")
    version = whole.get("version")
    if not any(same_whole(version, readable) for readable in _READABLE):
        raise StateError(
            f"the checkpoint holds SaliencyMonitor state of version {shown(version)} but "
            f"{STATE_VERSION} is needed; resume without the monitor's state by changing its level, "
            "or use the package version that wrote it."
        )
    finished = dict_of(int, whole.get("finished"), "the monitor's finished passes")
    if any(number < 0 for number in finished.values()):
        raise StateError(
            f"the monitor's state counts {shown(finished)} finished passes; whole numbers >= 0 are "
            "needed. Resume without the monitor's state by changing its level."
        )
    fits = dict_of(dict[str, Any], whole.get("fits"), "the monitor's fits")
    return finished, fits, {} if same_whole(version, 1) else whole.get("views")
