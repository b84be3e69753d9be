"""Tests, in folders like those of the package; tools for developers are in ``tools``."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""Of the repository."""
