"""Remedies, from the least to the most intrusive: each proposes edits, and hears how they fared.

A new one is a generator of :data:`~salmon.repairs.trial.Proposals` in a file of its own, a line in
one of the tables below, and a name in :mod:`salmon.repairs.settings`.
"""

from collections.abc import Callable, Sequence

from salmon.repairs.evidence import Evidence
from salmon.repairs.remedies.batchnorm import batchnorm
from salmon.repairs.remedies.combine import combine
from salmon.repairs.remedies.curvature import curvature
from salmon.repairs.remedies.head import head
from salmon.repairs.remedies.step import step
from salmon.repairs.remedies.tune import ALL, tune
from salmon.repairs.trial import Proposals

ON_FIRST_FILTERS: dict[str, Callable[[Evidence, str, Sequence[float]], Proposals]] = {
    "step": step, "curvature": curvature, "tune": tune,
}  # fmt: skip
"""Those that change only what an order puts first; they take the order and shares of filters."""

ON_MORE: dict[str, Callable[[Evidence], Proposals]] = {
    "batchnorm": lambda evidence: batchnorm(evidence, evidence.settings.order),
    "head": head,
}
"""Those that change more."""

__all__ = [
    "ALL",
    "ON_FIRST_FILTERS",
    "ON_MORE",
    "batchnorm",
    "combine",
    "curvature",
    "head",
    "step",
    "tune",
]
