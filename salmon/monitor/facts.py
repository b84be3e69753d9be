"""What a data set tells about itself, such as names of its classes; and what a pass was made of."""

import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from torch import Tensor, nn

from salmon.files import versions
from salmon.monitor.settings import Settings
from salmon.views import Normalisation, ViewSettings, clipped

_LETTERS = 500  # of a text on what a pass was made of
_SECRET = re.compile(r"(?i)(\S*(?:key|token|secret|passw)[^\s=]*[\s=]+)\S+")
_DEEP = 6  # data sets inside data sets, transforms inside transforms


def origin(trainer: Trainer, model: nn.Module, loader: Any, settings: Settings) -> dict[str, str]:
    """What a pass was made of, by name, for those who see only its report."""
    data, size, usual = getattr(loader, "dataset", None), "", Settings()
    with suppress(Exception):  # of the user's own class
        size = f", {len(data)} samples"  # type: ignore[arg-type]
    texts = {
        field.name: [_plain(getattr(one, field.name)) for one in (settings, usual)]
        for field in fields(Settings)
    }
    changed = [f"{name}={new}" for name, (new, old) in texts.items() if new != old]
    found = {
        "network": f"{type(model).__name__}, {sum(p.numel() for p in model.parameters())} weights",
        "checkpoint": str(trainer.ckpt_path or ""),
        "data": "" if data is None else f"{type(data).__name__}{size}",
        "settings": ", ".join(changed),
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "command": _SECRET.sub(r"\1***", shlex.join(sys.orig_argv)),
    }
    return {name: clipped(text, _LETTERS) for name, text in found.items() if text}


def _plain(value: Any) -> str:
    """A setting in a few letters."""
    if isinstance(value, ViewSettings):
        parts = [f"{f.name}={_plain(getattr(value, f.name))}" for f in fields(value)]
        return f"({', '.join(parts)})"
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, list):  # of YAML
        value = tuple(value)
    if value is None or isinstance(value, str | int | float | tuple):
        return clipped(repr(value), _LETTERS // 5)
    return str(getattr(value, "__name__", type(value).__name__))


def class_names(loader: Any, settings: ViewSettings) -> list[str] | None:
    """Find the names of the classes.

    Args:
        loader: Such as a ``DataLoader``.

    Returns:
        By class number; None where nobody knows them.
    """
    if settings.class_names is not None:
        return [str(name) for name in settings.class_names]
    for data in _datasets(loader):
        names = getattr(data, "classes", None)
        if isinstance(names, list | tuple) and names:
            synonyms = [_synonyms(name) for name in names]
            if all(synonyms):
                # torchvision's ImageNet has several names for a class; two classes are "crane".
                first = Counter(words[0] for words in synonyms)
                return [w[0] if first[w[0]] == 1 else ", ".join(w) for w in synonyms]
    return None


def _synonyms(name: Any) -> list[str]:
    """Names of one class; none where it is named by something else."""
    words = list(name) if isinstance(name, list | tuple) else [name]
    return words if all(isinstance(word, str) for word in words) else []


def normalisation(loader: Any, settings: ViewSettings) -> Normalisation | None:
    """Find how images were normalised.

    Args:
        loader: Such as a ``DataLoader``.

    Returns:
        The normalisation; None where it has to be guessed from the images.
    """
    if settings.mean is not None and settings.std is not None:
        return Normalisation(mean=settings.mean, std=settings.std)
    for data in _datasets(loader):
        for name in ("transform", "transforms"):
            for step in _steps(getattr(data, name, None), _DEEP):
                mean, std = _numbers(step, "mean"), _numbers(step, "std")
                if type(step).__name__ == "Normalize" and mean and std and len(mean) == len(std):
                    return Normalisation(mean=mean, std=std)
    return None


def _datasets(loader: Any) -> Iterator[Any]:
    """The data set of a loader, and those it is made of."""
    waiting = [getattr(loader, "dataset", None)]
    for _ in range(_DEEP):
        data = waiting.pop(0) if waiting else None
        if data is None:
            continue
        yield data
        inner = getattr(data, "datasets", None)  # of a ConcatDataset
        waiting += list(inner) if isinstance(inner, list | tuple) else []
        waiting.append(getattr(data, "dataset", None))  # of a Subset


def _steps(transform: Any, deep: int) -> Iterator[Any]:
    """A transform and those it is made of."""
    if transform is None or isinstance(transform, str) or deep == 0:
        return
    yield transform
    if isinstance(transform, Mapping):
        inner = list(transform.values())
    elif isinstance(transform, list | tuple | nn.Sequential):
        inner = list(transform)
    else:
        inner = [getattr(transform, name, None) for name in ("transforms", "transform")]
    for each in inner:
        yield from _steps(each, deep - 1)


def _numbers(step: Any, name: str) -> list[float]:
    """Mean or std of a step, one or three numbers; else nothing."""
    value: Any = getattr(step, name, None)
    if isinstance(value, Tensor):
        value = value.flatten().tolist()
    if isinstance(value, int | float):
        value = [value]
    good = isinstance(value, Sequence) and len(value) in (1, 3)
    if not good or not all(isinstance(each, int | float) for each in value):
        return []
    return [float(each) for each in value]
