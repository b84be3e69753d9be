"""Model, data and checkpoint of ``diagnose`` and ``repair``, from a config or from names.

On LightningCLI's conventions: the ``model`` and ``data`` sections of a ``fit`` config with
``class_path`` and ``init_args``; or ``package.module:name`` of a class or factory.
"""

import importlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from torch import nn

from salmon.cli.checkpoints import Checkpoint, load_weights, read_checkpoint
from salmon.cli.settings import JobSettings, config_sections
from salmon.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What was loaded."""

    model: nn.Module  # in eval mode, on its device
    name: str  # of its class
    checkpoint: Checkpoint | None
    new: Any  # loader
    reference: Any | None


def load_job(settings: JobSettings) -> Job:
    """Build model and data, and load the weights.

    Args:
        settings: What to load.

    Returns:
        The job.

    Raises:
        InputError: If something is missing or does not fit.
        StateError: If the checkpoint cannot be read, or is of another network.
    """
    if str(Path.cwd()) not in sys.path:  # as ``python -m`` does, for the user's own modules
        sys.path.insert(0, str(Path.cwd()))
    sections = config_sections(settings.config)
    from pytorch_lightning import LightningDataModule, LightningModule

    model = _build("model", settings.model, sections.get("model"), _bases(LightningModule))
    data = _build("data", settings.data, sections.get("data"), _bases(LightningDataModule))
    if not isinstance(model, nn.Module):
        raise InputError(f"model gave a {type(model).__name__}; a torch.nn.Module is needed.")
    checkpoint = None
    if settings.ckpt_path is not None:
        checkpoint = read_checkpoint(Path(settings.ckpt_path), weights_only=settings.weights_only)
        load_weights(model, checkpoint, source=settings.ckpt_path)
    new, reference = _loaders(data, settings)
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).eval()
    return Job(model, type(model).__name__, checkpoint, new, reference)


def _bases(base: type) -> tuple[type, ...]:
    """A class of Lightning under both names of the package."""
    bases = [base]
    if "lightning" in sys.modules or importlib.util.find_spec("lightning") is not None:
        bases.append(getattr(importlib.import_module("lightning.pytorch"), base.__name__))
    return tuple(bases)


def _build(what: str, name: str | None, section: Any, bases: tuple[type, ...]) -> Any:
    """Make an object from ``package.module:name``, from a section, or from both."""
    if name is not None:
        found = _import(what, name)
        if isinstance(found, type) and isinstance(section, Mapping):
            return _with_arguments(what, found, section.get("init_args", section))
        if not callable(found):
            raise InputError(f"--{what} {name} is a {type(found).__name__}; a class or function "
                             "is needed.")  # fmt: skip
        return found()
    if section is None:
        raise InputError(
            f"no {what} is given; use --config with a {what} section, or --{what} "
            "package.module:name."
        )
    if not isinstance(section, Mapping) or "class_path" not in section:
        raise InputError(
            f"the {what} section of the config has no class_path; name its class with --{what} "
            "package.module:Class."
        )
    path = str(section["class_path"])
    found = _import(what, f"{path.rpartition('.')[0]}:{path.rpartition('.')[2]}")
    if not (isinstance(found, type) and issubclass(found, (nn.Module, *bases))):
        raise InputError(f"class_path {path} of the {what} section is no {bases[0].__name__}.")
    return _with_arguments(what, found, section.get("init_args") or {})


def _import(what: str, name: str) -> Any:
    """Import ``package.module:name``."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise InputError(f"--{what} is {name!r}; package.module:name is needed.")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"--{what} {name} cannot be imported ({error}); package.module:name, to be found from "
            "this folder or installed, is needed."
        ) from error


def _with_arguments(what: str, found: type, arguments: Mapping[str, Any]) -> Any:
    """Instantiate a class as LightningCLI does, with nested classes and checked types."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(found, what, fail_untyped=False)
    try:
        parsed = parser.parse_object({what: json.loads(json.dumps(arguments, default=str))})
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise InputError(f"the {what} section does not fit {found.__name__}: {line}") from error
    return parser.instantiate(parsed)[what]


def _loaders(data: Any, settings: JobSettings) -> tuple[Any, Any | None]:
    """The loaders of new and of reference data."""
    if isinstance(data, Mapping):
        if "new" not in data:
            raise InputError(f"data gave the loaders {sorted(data)}; 'new' is needed.")
        return data["new"], data.get("reference")
    stages = {"test": "test", "val": "validate"}
    if not hasattr(data, "prepare_data"):
        raise InputError(
            f"data gave a {type(data).__name__}; a LightningDataModule, or a mapping with the "
            "loaders 'new' and 'reference', is needed."
        )
    data.prepare_data()

    def loader(kind: str) -> Any:
        data.setup(stages[kind])
        found = getattr(data, f"{kind}_dataloader")()
        if isinstance(found, Mapping):
            found = list(found.values())
        if isinstance(found, list | tuple):
            if len(found) != 1:
                raise InputError(
                    f"{kind}_dataloader gave {len(found)} loaders; one is needed. Use --data with "
                    "a factory of a mapping with the loaders 'new' and 'reference'."
                )
            return found[0]
        return found

    try:
        new = loader(settings.new)
        return new, None if settings.reference == "none" else loader(settings.reference)
    except Exception as error:
        if type(error).__name__ != "MisconfigurationException":
            raise
        raise InputError(f"the data module has no such loader: {error}") from error
