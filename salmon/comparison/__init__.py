"""Two versions of a network side by side: what got worse, where, and by which change."""

from salmon.comparison.engine import ModelComparison, compare
from salmon.comparison.report import headline, write_comparison
from salmon.comparison.settings import CompareSettings, Gates

__all__ = ["CompareSettings", "Gates", "ModelComparison", "compare", "headline", "write_comparison"]
