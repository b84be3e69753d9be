"""Filters of a network: which weights, in which layer, group and depth."""

from salmon.filters.discover import (
    CONVOLUTIONS,
    TRANSPOSED,
    UNITS,
    FilterLayer,
    by_clean_name,
    clean_name,
    discover,
    parameters_by_name,
)
from salmon.filters.index import (
    SHORTCUTS,
    FilterIndex,
    Fingerprint,
    check_units,
    filter_rows,
    weight_of_rows,
)

__all__ = [
    "CONVOLUTIONS",
    "SHORTCUTS",
    "TRANSPOSED",
    "UNITS",
    "FilterIndex",
    "FilterLayer",
    "Fingerprint",
    "by_clean_name",
    "check_units",
    "clean_name",
    "discover",
    "filter_rows",
    "parameters_by_name",
    "weight_of_rows",
]
