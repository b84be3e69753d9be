"""The command line."""

from salmon.cli.main import main

__all__ = ["main"]
