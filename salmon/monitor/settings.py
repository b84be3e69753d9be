"""The monitor's arguments, checked once. ``SaliencyMonitor`` documents each."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from salmon.errors import InputError
from salmon.filters import FilterIndex
from salmon.gpd import TailFit
from salmon.monitor.batches import SampleIds, Unpack, unpack_batch
from salmon.saliency import Loss
from salmon.views import ViewSettings

_KINDS: dict[str, tuple[str, str]] = {
    # argument: what it has to be, and an example
    "unpack": ("a function", "lambda batch: (batch[0], batch[2])"),
    "loss": ("a function or None", "torch.nn.CrossEntropyLoss(reduction='none')"),
    "sample_ids": ("a function or None", "lambda batch: batch['path']"),
    "groups": ("a function or None", "lambda layer: layer.partition('.')[0]"),
}


def _check_kinds(settings: "Settings") -> None:
    """Refuse arguments of another type, which would be found out only in the first validation."""
    for name, (kind, example) in _KINDS.items():
        value = getattr(settings, name)
        if not callable(value) and not (value is None and "None" in kind):
            raise InputError(f"{name} is {value!r}; {kind} is needed, such as {example}.")
    if not isinstance(settings.views, ViewSettings):
        raise InputError(
            f"views is {settings.views!r}; ViewSettings are needed, such as "
            "salmon.ViewSettings(pictures=0)."
        )
    reference = settings.reference
    if reference is not None and not isinstance(reference, TailFit | str | Path):
        raise InputError(
            f"reference is a {type(reference).__name__}; fits as of monitor.last_fit(model), or "
            "the path of a file with them, are needed."
        )
    for name in ("strict", "write_files"):
        if not isinstance(getattr(settings, name), bool):
            raise InputError(f"{name} is {getattr(settings, name)!r}; True or False is needed.")
    if not isinstance(settings.seed, int):
        raise InputError(f"seed is {settings.seed!r}; a whole number is needed.")


def per_sample(loss: Any) -> Any:
    """Let a loss module of torch give one loss per sample.

    Args:
        loss: A loss such as ``torch.nn.CrossEntropyLoss()``, or any other value.

    Returns:
        A copy with ``reduction="none"`` of a module that would average or add up; else the same.
    """
    if isinstance(loss, nn.Module) and getattr(loss, "reduction", "none") in ("mean", "sum"):
        loss = copy.copy(loss)
        loss.reduction = "none"
    return loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All arguments of a monitor."""

    level: float = 0.90
    max_exceedances: int = 1024
    top_k: int = 25
    include: Sequence[str] | None = None
    exclude: Sequence[str] | None = ()
    groups: Callable[[str], str] | None = None
    units: Sequence[str] = ("conv",)
    unpack: Unpack = unpack_batch
    loss: nn.Module | Loss | None = None
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
            raise InputError(
                f"level is {self.level!r}; a number in (0, 1) is needed (90 % is 0.9)."
            )
        object.__setattr__(self, "loss", per_sample(self.loss))
        if self.exclude is None:
            object.__setattr__(self, "exclude", ())
        _check_kinds(self)
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

    def build_index(self, model: nn.Module, inputs: Any = None) -> FilterIndex:
        """Index the filters that the arguments select.

        Args:
            model: The network.
            inputs: A batch, to find weights by their use; None finds torch's own modules.

        Returns:
            The index.
        """
        return FilterIndex.from_model(
            model,
            include=self.include,
            exclude=self.exclude or (),
            groups=self.groups,
            units=self.units,
            inputs=inputs,
        )
