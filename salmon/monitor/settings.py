"""The monitor's arguments, checked once. ``SaliencyMonitor`` documents each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from salmon.errors import InputError
from salmon.filters import FilterIndex
from salmon.gpd import TailFit
from salmon.monitor.batches import SampleIds, Unpack, unpack_batch
from salmon.saliency import Loss
from salmon.views import ViewSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All arguments of a monitor."""

    level: float = 0.90
    max_exceedances: int = 1024
    top_k: int = 25
    include: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    groups: Callable[[str], str] | None = None
    units: Sequence[str] = ("conv",)
    unpack: Unpack = unpack_batch
    loss: Loss | None = None
    sample_ids: SampleIds | None = None
    reference: TailFit | str | Path | None = None
    every_n_validations: int = 1
    max_samples: int | None = None
    memory_mb: int = 256
    seed: int = 0
    write_files: bool = True
    views: ViewSettings = field(default_factory=ViewSettings)
    strict: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers out of range.

        Raises:
            InputError: If one is.
        """
        if not isinstance(self.level, int | float) or not 0 < self.level < 1:
            raise InputError(f"level is {self.level!r}; a number in (0, 1) is needed, such as 0.9.")
        for name in ("include", "exclude", "units"):
            if isinstance(getattr(self, name), str):
                raise InputError(
                    f"{name} is the string {getattr(self, name)!r}; a list of strings is needed, "
                    f"such as [{getattr(self, name)!r}]."
                )
        lowest = {
            "max_exceedances": 2,
            "top_k": 1,
            "every_n_validations": 1,
            "max_samples": 1,
            "memory_mb": 1,
        }
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is None and name == "max_samples":
                continue
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} is {value!r}; a whole number >= {least} is needed.")

    def build_index(self, model: nn.Module) -> FilterIndex:
        """Index the filters that the arguments select.

        Args:
            model: The network.

        Returns:
            The index.
        """
        return FilterIndex.from_model(
            model,
            include=self.include,
            exclude=self.exclude,
            groups=self.groups,
            units=self.units,
        )
