"""Settings of the commands that work on a user's model and data, and the config they come from."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from salmon.errors import InputError, StateError
from salmon.files import read_text

_ODD_SCALARS = (ValueError, LookupError, TypeError, AttributeError)
"""What the YAML reader raises for numbers and bytes that say they are and are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """What to work on.

    Attributes:
        config: YAML of a ``fit`` run of LightningCLI; its model and data sections are used.
        model: ``package.module:name`` of a class or factory, instead of the config's class_path.
        data: The same of a LightningDataModule, or of a factory of a mapping with the loaders
            "new" and "reference".
        ckpt_path: Checkpoint with the weights; without one the network is used as it is built.
        weights_only: Whether the checkpoint may hold nothing but tensors and plain values; loading
            anything else can run code of whoever wrote it.
        new: Loader of the new data: "test" or "val" of the data module.
        reference: Loader of the data that the network serves already: "val", "test" or "none".
        device: "auto", "cpu", "cuda", ...
        batch_size: Samples at a time.
    """

    config: str | None = None
    model: str | None = None
    data: str | None = None
    ckpt_path: str | None = None
    weights_only: bool = True
    new: str = "test"
    reference: str = "val"
    device: str = "auto"
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Refuse unknown choices.

        Raises:
            InputError: If there is one.
        """
        if self.new not in ("test", "val") or self.reference not in ("test", "val", "none"):
            raise InputError(
                f"new is {self.new!r} and reference is {self.reference!r}; 'test' or 'val', and "
                "for the reference also 'none', are needed."
            )
        if self.new == self.reference:
            raise InputError(
                f"new and reference are both {self.new!r}; use --reference none where one set "
                "serves as both."
            )
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}; at least 1 is needed.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchSettings:
    """What to patch.

    Attributes:
        patch: The patch file.
        ckpt_path: Checkpoint of Lightning or torch, or a safetensors file.
        out: File for the changed checkpoint, in the format of its name.
        weights_only: Whether the checkpoint may hold nothing but tensors and plain values; loading
            anything else can run code of whoever wrote it.
    """

    patch: str
    ckpt_path: str
    out: str
    weights_only: bool = True


def config_sections(path: str | None) -> dict[str, Any]:
    """Read the sections of a config.

    Args:
        path: YAML; None has no sections.

    Returns:
        By name.

    Raises:
        InputError: If the file cannot be read, or is no mapping.
    """
    if path is None:
        return {}
    try:
        found = yaml.load(read_text(Path(path)), _Loader)
    except StateError as error:
        raise InputError(f"config {error}") from error
    except (yaml.YAMLError, *_ODD_SCALARS, RecursionError) as error:
        line = str(error).partition("\n")[0][:200]
        raise InputError(f"config {path} cannot be read ({line}); YAML is needed.") from error
    if not isinstance(found, dict):
        raise InputError(f"config {path} is no mapping; the config of a fit run is needed.")
    # LightningCLI saves the arguments of a subcommand under its name in some versions.
    return found["fit"] if isinstance(found.get("fit"), dict) and "model" not in found else found


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Reads plain values as LightningCLI does: ``1e-3`` is a number, a date is a string."""


_REPLACED = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in _REPLACED]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"([-+]?\d[\d_]*(\.[\d_]*([eE][-+]?\d+)?|[eE][-+]?\d+)|\.\d[\d_]*([eE][-+]?\d+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
