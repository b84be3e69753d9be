"""The monitor's arguments, checked once. ``SaliencyMonitor`` documents each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from salmon.diagnosis import PassSettings, check_whole
from salmon.errors import InputError
from salmon.filters import FilterIndex, check_units, clean_name
from salmon.gpd import TailFit
from salmon.monitor.batches import SampleIds, Unpack, unpack_batch
from salmon.views import ViewSettings

_FUNCTIONS: dict[str, tuple[str, str]] = {
    # argument: what it has to be, and an example
    "unpack": ("a function", "lambda batch: (batch[0], batch[2])"),
    "sample_ids": ("a function or None", "lambda batch: batch['path']"),
    "groups": ("a function or None", "lambda layer: layer.partition('.')[0]"),
}


@dataclass(frozen=True, kw_only=True)
class Settings(PassSettings):
    """All arguments of a monitor."""

    include: Sequence[str] | None = None
    exclude: Sequence[str] | None = ()
    groups: Callable[[str], str] | None = None
    units: Sequence[str] = ("conv",)
    unpack: Unpack = unpack_batch
    sample_ids: SampleIds | None = None
    reference: TailFit | str | Path | None = None
    every_n_validations: int = 1
    write_files: bool = True
    views: ViewSettings = field(default_factory=ViewSettings)
    strict: bool = False

    def __post_init__(self) -> None:
        """Refuse what would be found out only in the first validation."""
        super().__post_init__()
        check_whole("every_n_validations", self.every_n_validations, 1)
        for name, (kind, example) in _FUNCTIONS.items():
            value = getattr(self, name)
            if not callable(value) and not (value is None and "None" in kind):
                raise InputError(f"{name} is {value!r}; {kind} is needed, such as {example}.")
        if not isinstance(self.views, ViewSettings):
            raise InputError(
                f"views is {self.views!r}; ViewSettings are needed, such as "
                "salmon.ViewSettings(pictures=0)."
            )
        if self.reference is not None and not isinstance(self.reference, TailFit | str | Path):
            raise InputError(
                f"reference is a {type(self.reference).__name__}; fits as of "
                "monitor.last_fit(model), or the path of a file with them, are needed."
            )
        for name in ("strict", "write_files"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}; True or False is needed.")
        if self.exclude is None:
            object.__setattr__(self, "exclude", ())
        for name in ("include", "exclude", "units"):
            if isinstance(getattr(self, name), str):
                raise InputError(
                    f"{name} is the string {getattr(self, name)!r}; a list of strings is needed, "
                    f"such as [{getattr(self, name)!r}]."
                )
        check_units(self.units)

    def check_patterns(self, model: nn.Module) -> None:
        """Refuse to include what no module of a network is called.

        Raises:
            InputError: If no pattern fits one.
        """
        paths = [clean_name(path) for path, _ in model.named_modules()]
        patterns = self.include or ()
        if patterns and not any(fnmatchcase(path, one) for path in paths for one in patterns):
            raise InputError(
                f"include={patterns!r} names no module of {type(model).__name__}; there are "
                f"{', '.join(paths[1:9])}{' and others' if len(paths) > 9 else ''}."
            )

    def build_index(self, model: nn.Module, inputs: Any = None) -> FilterIndex:
        """Index the filters that the arguments select, by what a batch of inputs goes through.

        Args:
            inputs: None finds torch's own modules only.
        """
        return FilterIndex.from_model(
            model,
            include=self.include,
            exclude=self.exclude or (),
            groups=self.groups,
            units=self.units,
            inputs=inputs,
        )
