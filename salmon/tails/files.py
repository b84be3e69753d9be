"""Fitted tails on disk, as safetensors: the fits of one network and the filters they belong to."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from salmon.errors import StateError
from salmon.files import write_atomically
from salmon.filters import FilterIndex
from salmon.gpd import TailFit
from salmon.records import parsed, record_of

FORMAT = "salmon.fit/4"


def save_fit(path: str | Path, fit: TailFit, index: FilterIndex) -> None:
    """Write fits to a file, whole or not at all; missing folders are made.

    Raises:
        OSError: If it cannot be written.
    """
    state = fit.state_dict()
    tensors = {n: value.contiguous() for n, value in state.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in state.items() if name not in tensors}
    header = {"schema": FORMAT, "filters": index.fingerprint(), "fit": plain}
    data = save(tensors, {"salmon": json.dumps(header)})
    write_atomically(Path(path), lambda file: file.write(data))


def load_fit(path: str | Path, index: FilterIndex) -> TailFit:
    """Read back what :func:`save_fit` wrote.

    Raises:
        StateError: If the file cannot be read, is something else, or holds fits of other filters
            than those of ``index``.
    """
    try:
        with safe_open(Path(path), framework="pt") as file:
            text = (file.metadata() or {}).get("salmon", "null")
            tensors = {n: file.get_tensor(n).clone() for n in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StateError(
            f"{path} cannot be read as saved fits ({type(error).__name__}: {error}); a file of "
            "save_fit, or the monitor's fit-*.safetensors, is needed. Fits of version 0.1, in "
            "fit-*.pt, have to be made anew."
        ) from error
    header = parsed(text, FORMAT, str(path))
    plain = record_of(dict[str, Any], header.get("fit"), str(path))
    state = {"filters": header.get("filters"), "fit": plain | tensors}
    return fit_from_state(state, index, source=str(path))


def fit_state(fit: TailFit, index: FilterIndex) -> dict[str, Any]:
    """Plain values and tensors that ``torch.load(weights_only=True)`` reads back."""
    return {"filters": index.fingerprint(), "fit": fit.state_dict()}


def fit_from_state(state: dict[str, Any], index: FilterIndex, *, source: str) -> TailFit:
    """Check and rebuild fits."""
    index.check_fingerprint(state.get("filters"), source=source)
    fit = TailFit.from_state_dict(state.get("fit", {}))
    if fit.threshold.numel() != len(index):
        raise StateError(
            f"{source} fits {fit.threshold.numel()} filters but names {len(index)}; it is damaged. "
            "Make the fit anew."
        )
    return fit
