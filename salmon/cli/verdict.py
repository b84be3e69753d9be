"""How a command tells its verdict: to people, and to the step of a CI job."""

import os
from collections.abc import Iterable
from pathlib import Path

from salmon.repairs.judge import Rule


def print_rules(rules: Iterable[Rule]) -> None:
    """Print how each went."""
    for rule in rules:
        print(f"  {'passed' if rule.passed else 'FAILED'}  {rule.name}: {rule.text}")


def tell_github(status: str) -> None:
    """Set the output ``status`` of a step of GitHub Actions, if this is one."""
    place = os.environ.get("GITHUB_OUTPUT")
    if place:
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(f"status={status}\n")
