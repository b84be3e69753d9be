"""What the views of a pass need from the passes before, kept by the monitor and in checkpoints."""

from dataclasses import dataclass, field
from typing import Any

from salmon.views import History, PassRecord, mistakes_by_filter


@dataclass(slots=True)
class ViewMemory:
    """By scope, such as ``"validation"`` or ``"test/loader1"``."""

    histories: dict[str, History] = field(default_factory=dict)
    blamed: dict[str, dict[str, int]] = field(default_factory=dict)
    """Mistakes by filter in the table of the last pass."""
    shown: dict[str, str] = field(default_factory=dict)
    """Texts by tag, as last put up; not in checkpoints."""
    laid_out: set[tuple[str, str]] = field(default_factory=set)
    """Folders of loggers, with the tags that their layouts hold; not in checkpoints."""

    def take(self, scope: str, record: PassRecord) -> tuple[History, dict[str, int] | None]:
        """Add a pass.

        Args:
            scope: Its scope.
            record: The pass.

        Returns:
            The history with it, and mistakes by filter in the pass before, if there was one.
        """
        before = self.blamed.get(scope)
        known = self.histories.get(scope)
        history = History.start(record) if known is None else known.followed_by(record)
        self.histories[scope] = history
        self.blamed[scope] = mistakes_by_filter(record)
        return history, before if len(history.passes) > 1 else None

    def state_dict(self) -> dict[str, Any]:
        """Hand out what a resumed run needs.

        Returns:
            Plain values and tensors that ``torch.load(weights_only=True)`` reads back.
        """
        return {
            "histories": {scope: each.state_dict() for scope, each in self.histories.items()},
            "blamed": {scope: dict(each) for scope, each in self.blamed.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was written.

        Args:
            state: What :meth:`state_dict` gave.
        """
        self.histories = {
            scope: History.from_state_dict(each) for scope, each in state["histories"].items()
        }
        self.blamed = {scope: dict(each) for scope, each in state["blamed"].items()}
