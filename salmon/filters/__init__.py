"""Filters of a network: which weights, in which layer, group and depth."""

from salmon.filters.discover import UNITS, discover
from salmon.filters.index import (
    SHORTCUTS,
    FilterIndex,
    FilterLayer,
    Fingerprint,
    checked_fingerprint,
)
from salmon.filters.names import clean_name
from salmon.filters.rows import filter_rows, weight_of_rows

__all__ = [
    "SHORTCUTS",
    "UNITS",
    "FilterIndex",
    "FilterLayer",
    "Fingerprint",
    "checked_fingerprint",
    "clean_name",
    "discover",
    "filter_rows",
    "weight_of_rows",
]
