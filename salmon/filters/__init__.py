"""Filters of a network: which weights, in which layer, group and depth."""

from salmon.filters.discover import CONVOLUTIONS, TRANSPOSED, UNITS, discover
from salmon.filters.index import (
    SHORTCUTS,
    FilterIndex,
    FilterLayer,
    Fingerprint,
    checked_fingerprint,
)
from salmon.filters.names import by_clean_name, clean_name, parameters_by_name
from salmon.filters.rows import filter_rows, weight_of_rows

__all__ = [
    "CONVOLUTIONS",
    "SHORTCUTS",
    "TRANSPOSED",
    "UNITS",
    "FilterIndex",
    "FilterLayer",
    "Fingerprint",
    "by_clean_name",
    "checked_fingerprint",
    "clean_name",
    "discover",
    "filter_rows",
    "parameters_by_name",
    "weight_of_rows",
]
