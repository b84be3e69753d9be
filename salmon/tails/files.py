"""Fitted tails on disk: the fits of one network, with the filters they belong to."""

import pickle
from pathlib import Path
from typing import Any

import torch

from salmon.archives import UNREADABLE, load_archive
from salmon.errors import StateError
from salmon.files import write_atomically
from salmon.filters import FilterIndex, checked_fingerprint
from salmon.gpd import TailFit
from salmon.plain import shown

FORMAT = "salmon.fit/2"
MOST_BYTES = 1 << 30
"""A larger file is not read; a million filters take a tenth of it."""


def save_fit(path: str | Path, fit: TailFit, index: FilterIndex) -> None:
    """Write fits to a file, whole or not at all.

    Args:
        path: The file; missing folders are made, an old file is replaced.
        fit: The fits.
        index: The filters they belong to.

    Raises:
        OSError: If the file cannot be written.
    """
    write_atomically(Path(path), lambda file: torch.save(fit_state(fit, index), file))


def load_fit(path: str | Path, index: FilterIndex) -> TailFit:
    """Read fits back, for the same filters. Nothing in the file is executed.

    Args:
        path: A file that :func:`save_fit` wrote.
        index: The filters of the network to be diagnosed.

    Returns:
        The fits.

    Raises:
        StateError: If the file is missing, no saved fit, damaged, or belongs to other filters.
    """
    try:
        state = load_archive(Path(path), most=MOST_BYTES)
    except (*UNREADABLE, pickle.UnpicklingError) as error:
        line = str(error).partition("\n")[0][:200]
        raise StateError(
            f"{path} cannot be read as a saved fit ({type(error).__name__}: {line}); a file "
            "written by save_fit, or the monitor's fit-*.pt, is needed."
        ) from error
    return fit_from_state(state, index, source=str(path))


def fit_state(fit: TailFit, index: FilterIndex) -> dict[str, Any]:
    """Hand out fits and the filters they belong to as plain values and tensors.

    Args:
        fit: The fits.
        index: Their filters.

    Returns:
        A dictionary that ``torch.load(weights_only=True)`` reads back.
    """
    return {"format": FORMAT, "filters": index.fingerprint(), "fit": fit.state_dict()}


def fit_from_state(state: Any, index: FilterIndex, *, source: str) -> TailFit:
    """Check and rebuild fits.

    Args:
        state: What :func:`fit_state` gave.
        index: The filters of the network they are wanted for.
        source: Where they come from, for messages.

    Returns:
        The fits.

    Raises:
        StateError: If the state is another version, damaged, or belongs to other filters.
    """
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise StateError(
            f"{source} holds {shown(found)} but {FORMAT!r} is needed. Make the fit anew."
        )
    index.check_fingerprint(checked_fingerprint(state.get("filters"), source=source), source=source)
    fit = TailFit.from_state_dict(state.get("fit", {}))
    if fit.threshold.numel() != len(index):
        raise StateError(
            f"{source} fits {fit.threshold.numel()} filters but names {len(index)}; the file is "
            "damaged. Make the fit anew."
        )
    return fit
