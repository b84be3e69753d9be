"""All settings of a repair, checked once."""

from collections.abc import Callable
from dataclasses import dataclass, fields

from salmon.errors import InputError
from salmon.repairs.edit import KINDS

RANKINGS = ("pot", "zscore", "magnitude", "random", "all", "last_linear")


@dataclass(frozen=True, kw_only=True)  # without slots, which jsonargparse cannot read
class RepairSettings:
    """Settings of a repair; every bound of the acceptance is one.

    Attributes:
        rankings: How filters are chosen: "pot", "zscore", "magnitude", "random", "group:<name>",
            "all" (every filter) and "last_linear" (all rows of the last linear layer).
        shares: Shares of all filters that are tried, best-ranked first.
        steps: "normalised" gives every filter the same relative change, "plain" subtracts the
            gradient times the rate, "prune" sets filters to zero (a relative change of 1, which
            max_relative_change has to allow).
        rates: Learning rates of normalised steps: relative change of each touched filter.
        plain_rates: Learning rates of plain steps.
        gradient: Samples whose mean gradient is followed: "all" new ones, the right ones included,
            or "wrong", the misclassified ones only.
        keep_reference: Take out of each filter's step what points against the reference loss.
        level: Quantile level of the thresholds of the fits.
        split: Shares of repair, guard and accept.
        min_split: Fewest samples in each split of each set.
        max_samples: Most samples taken of each set, chosen at random.
        margin: Accuracy that may be lost on the reference data, 0.01 being one point.
        reference_confidence: One-sided confidence at which the loss must lie within the margin;
            0.5 judges the observed loss itself.
        alpha: Largest p-value of the exact McNemar test of fixed against broken new samples.
        class_margin: Accuracy that a single class of the reference data may lose.
        min_class: Classes with fewer reference samples in the split have no floor.
        max_broken: New samples that may turn wrong per new sample that is fixed.
        max_broken_reference: Share of the right reference samples that may turn wrong.
        max_relative_change: Largest relative change of a touched filter.
        max_ece_increase: Most by which the expected calibration error may grow on either set.
        seed: Of the splits and of every random choice.
    """

    rankings: tuple[str, ...] = RANKINGS
    shares: tuple[float, ...] = (0.005, 0.02, 0.07)
    steps: tuple[str, ...] = ("normalised", "plain")
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    plain_rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    gradient: str = "all"
    keep_reference: bool = True
    level: float = 0.90
    split: tuple[float, float, float] = (0.4, 0.3, 0.3)
    min_split: int = 30
    max_samples: int = 5000
    margin: float = 0.01
    reference_confidence: float = 0.5
    alpha: float = 0.05
    class_margin: float = 0.1
    min_class: int = 10
    max_broken: float = 0.5
    max_broken_reference: float = 0.03
    max_relative_change: float = 0.5
    max_ece_increase: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        for field in fields(self):  # lists come from YAML and JSON
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        self._check_choices()
        self._check_numbers()

    def rates_of(self, step: str) -> tuple[float, ...]:
        """Rates to try.

        Returns:
            Those of the step; a single 0 for "prune".
        """
        return {"normalised": self.rates, "plain": self.plain_rates, "prune": (0.0,)}[step]

    def _check_choices(self) -> None:
        """Refuse unknown names."""
        for name in ("rankings", "steps", "shares"):
            if not getattr(self, name) or isinstance(getattr(self, name), str):
                raise InputError(f"{name} is {getattr(self, name)!r}; a list of some is needed.")
        unknown = [r for r in self.rankings if r not in RANKINGS and not r.startswith("group:")]
        if unknown:
            raise InputError(
                f"rankings holds {unknown}; some of {', '.join(RANKINGS)} or group:<name> are "
                "needed."
            )
        if set(self.steps) - set(KINDS):
            raise InputError(f"steps is {self.steps}; some of {', '.join(KINDS)} are needed.")
        if self.gradient not in ("wrong", "all"):
            raise InputError(f"gradient is {self.gradient!r}; 'wrong' or 'all' is needed.")

    def _check_numbers(self) -> None:
        """Refuse numbers out of range."""
        if len(self.split) != 3 or min(self.split) <= 0 or abs(sum(self.split) - 1) > 1e-9:
            raise InputError(
                f"split is {self.split}; three shares above 0 that add up to 1 are needed (40 % is "
                "0.4)."
            )
        for name in ("shares", "rates", "plain_rates"):
            values = getattr(self, name)
            if min(values, default=1) <= 0 or (name == "shares" and max(values) > 1):
                raise InputError(
                    f"{name} is {values}; numbers above 0 are needed (shares: to 1; 5 % is 0.05)."
                )
        for name, (holds, wanted) in _RANGES.items():
            if not holds(getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)!r}; {wanted} is needed.")


_INSIDE = (lambda x: 0 < x < 1, "a number in (0, 1) (5 % is 0.05)")
_SHARE = (lambda x: 0 <= x <= 1, "a share in [0, 1] (5 % is 0.05)")
_COUNT = (lambda x: x >= 1, "at least 1")
_POSITIVE = (lambda x: x >= 0, "at least 0")
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "level": _INSIDE,
    "alpha": _INSIDE,
    "reference_confidence": (lambda x: 0.5 <= x < 1, "a number in [0.5, 1) (95 % is 0.95)"),
    "margin": _SHARE,
    "class_margin": _SHARE,
    "max_broken_reference": _SHARE,
    "max_ece_increase": _SHARE,
    "max_broken": _POSITIVE,
    "max_relative_change": _POSITIVE,
    "min_split": _COUNT,
    "max_samples": _COUNT,
    "min_class": _COUNT,
}
