"""How a command tells its verdict: to people, and to the step of a CI job."""

import os
from collections.abc import Iterable
from pathlib import Path

from salmon.repairs.judge import Rule


def print_rules(rules: Iterable[Rule], *, quiet: bool) -> None:
    """Print how each went; quietly, those that failed."""
    for rule in [rule for rule in rules if not (quiet and rule.passed)]:
        print(f"  {'passed' if rule.passed else 'FAILED'}  {rule.name}: {rule.text}")


def tell_github(status: str, rules: Iterable[Rule]) -> None:
    """Annotate a step of GitHub Actions, if this is one, and set its output ``status``."""
    for rule in rules if os.environ.get("GITHUB_ACTIONS") == "true" else ():
        if not rule.passed:
            text = rule.text.replace("%", "%25").replace("\n", "%0A")
            print(f"::error title=salmon%3A {rule.name}::{text}")
    place = os.environ.get("GITHUB_OUTPUT")
    if place:
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(f"status={status}\n")
