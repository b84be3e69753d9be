"""Saved streams of saliency: what they must hold before anything is computed with them."""

from typing import Any

import torch

from salmon.errors import StateError
from salmon.plain import checked_tensor, same_whole, shown

STATE_VERSION = 1
MOST_SAMPLES = 1 << 53
"""Whole numbers up to here are exact in float64."""


def checked_state(state: Any, num_filters: int, capacity: int) -> dict[str, Any]:
    """Check a saved stream.

    Args:
        state: What ``Tails.state_dict`` gave, or anything.
        num_filters: F of the stream that wants it.
        capacity: Its C.

    Returns:
        The state.

    Raises:
        StateError: If it is of another version, shape or capacity, or inconsistent.
    """
    names = {"version", "capacity", "samples", "dropped", "largest", "mean", "m2"}
    if (
        not isinstance(state, dict)
        or set(state) != names
        or not same_whole(state["version"], STATE_VERSION)
    ):
        raise StateError(
            f"a saved stream has the fields {sorted(names)} and version {STATE_VERSION}; this one "
            "was written by another version or is not a stream. Collect the statistics anew."
        )
    samples, found = state["samples"], shown(state["capacity"])
    for name in ("samples", "dropped"):
        if type(state[name]) is not int or not 0 <= state[name] <= MOST_SAMPLES:
            raise StateError(
                f"saved stream: {shown(state[name])} {name}; a whole number >= 0 is needed."
            )
    if not same_whole(state["capacity"], capacity):
        raise StateError(
            f"the saved stream has capacity {found}; capacity {capacity} is needed. Use "
            f"max_exceedances={found}."
        )
    kept = (num_filters, min(samples, capacity))
    fresh = state | {
        "largest": checked_tensor(
            state["largest"], "saved stream: largest", kept, torch.float32, torch.float64
        )
    }
    for name in ("mean", "m2"):
        fresh[name] = checked_tensor(
            state[name], f"saved stream: {name}", (num_filters,), torch.float64
        )
    largest = fresh["largest"]
    if bool((largest.diff(dim=1) > 0).any()) or not bool(torch.isfinite(largest).all()):
        raise StateError("saved stream: the largest values are not finite and in descending order.")
    if bool((fresh["m2"] < 0).any()) or (samples < 2 and bool(fresh["m2"].any())):
        raise StateError("saved stream: a sum of squares is negative, or not 0 before two samples.")
    return fresh
