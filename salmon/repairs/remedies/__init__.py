"""Remedies, from the least to the most intrusive: each proposes edits, and hears how they fared.

A new one is a generator of :data:`~salmon.repairs.trial.Proposals` in a file of its own, a line in
:mod:`salmon.repairs.engine`, and a name in :mod:`salmon.repairs.settings`.
"""

from salmon.repairs.remedies.batchnorm import batchnorm
from salmon.repairs.remedies.combine import combine
from salmon.repairs.remedies.curvature import curvature
from salmon.repairs.remedies.head import head
from salmon.repairs.remedies.step import step
from salmon.repairs.remedies.tune import ALL, tune

__all__ = ["ALL", "batchnorm", "combine", "curvature", "head", "step", "tune"]
