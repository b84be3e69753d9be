"""All settings of a repair, checked once."""

import sys
from dataclasses import dataclass, fields

from salmon.errors import InputError
from salmon.repairs.orders import ORDERS, check_order

REMEDIES = ("step", "curvature", "batchnorm", "head", "tune")
PREFERENCES = ("targeted", "step", "any")
TARGETED = ("step", "curvature", "tune")
"""Remedies that change only filters which the order puts first."""


@dataclass(frozen=True, kw_only=True)  # without slots, which jsonargparse cannot read
class RepairSettings:
    """Settings of a repair; every bound of the acceptance is one.

    Attributes:
        remedies: What is tried: "step" (one gradient step on the first filters of the order),
            "curvature" (one step away from what the reference data excite), "batchnorm"
            (statistics of the new data), "head" (the last linear layer fitted anew) and "tune"
            (several steps with replay, on the first filters of the order and on all weights).
        prefer: What may win: "targeted" remedies, which change only filters that the order puts
            first; the one "step" alone, and nothing else is tried; or "any" of them.
        order: Which filters come first: "pot", "pot-ml", "zscore", "magnitude", "gradient",
            "random", "random:<number>", "group" (the last one) or "group:<name>"; with "spread:"
            before it, the same share of every layer.
        shares: Shares of all filters that are tried, the first ones of the order.
        epochs: Most epochs of a tuning.
        rivals: Whether the report compares the winner's remedy under other orders, too.
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
        max_ece_increase: Most by which the expected calibration error may grow on either set.
        max_loss_increase: Share by which the mean loss may grow on either set, where the task has
            no confidence that could be calibrated.
        seed: Of the splits and of every random choice.
    """

    remedies: tuple[str, ...] = REMEDIES
    prefer: str = "targeted"
    order: str = "pot"
    shares: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05)
    epochs: int = 5
    rivals: bool = False
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
    max_ece_increase: float = 0.05
    max_loss_increase: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        for field in fields(self):  # lists come from YAML and JSON
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        self._check_choices()
        for name, (low, high, wanted) in _BOUNDS.items():
            found = getattr(self, name)
            values = found if isinstance(found, tuple) else (found,)
            if not all(_within(value, low, high) for value in values):
                self._refuse(name, wanted)
        if len(self.split) != 3 or abs(sum(self.split) - 1) > 1e-9:
            self._refuse("split", _SPLIT)
        for name in ("seed", "epochs", "min_split", "max_samples", "min_class"):
            if not isinstance(getattr(self, name), int):
                self._refuse(name, "a whole number")

    def lets_win(self, remedy: str, order: str) -> bool:
        """Whether a remedy, or a mixture such as "tune + head", may win with an order."""
        targeted = order == self.order and set(remedy.split(" + ")) <= set(TARGETED)
        return targeted or self.prefer == "any"

    def _check_choices(self) -> None:
        for name in ("remedies", "shares", "split"):
            if not isinstance(getattr(self, name), tuple) or not getattr(self, name):
                self._refuse(name, "a list of some")
        if set(self.remedies) - set(REMEDIES):
            self._refuse("remedies", f"some of {', '.join(REMEDIES)}")
        if self.prefer not in PREFERENCES:
            self._refuse("prefer", f"one of {', '.join(PREFERENCES)}")
        if self.prefer == "step" and "step" not in self.remedies:
            self._refuse("remedies", "some with step, which prefer='step' takes")
        if not isinstance(self.order, str) or not check_order(self.order):
            self._refuse("order", f"one of {', '.join(ORDERS)}, or group:<name>, or spread:<one>")

    def _refuse(self, name: str, wanted: str) -> None:
        raise InputError(f"{name} is {getattr(self, name)!r}; needed: {wanted}.")


def _within(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and low <= value <= high


_LARGEST = sys.float_info.max
_TINY = 5e-324  # the smallest float above 0
_BELOW_1 = 1 - 2**-53  # the largest one below 1
_SHARE = (0, 1, "a share in [0, 1] (5 % is 0.05)")
_INSIDE = (_TINY, _BELOW_1, "a number in (0, 1) (5 % is 0.05)")
_AT_LEAST_0 = (0, _LARGEST, "a finite number, at least 0")
_AT_LEAST_1 = (1, _LARGEST, "at least 1")
_SPLIT = "three shares above 0 that add up to 1 (40 % is 0.4)"
_BOUNDS: dict[str, tuple[float, float, str]] = {
    "shares": (_TINY, 1, "shares in (0, 1] (5 % is 0.05)"),
    "split": (_TINY, 1, _SPLIT),
    "level": _INSIDE,
    "alpha": _INSIDE,
    "reference_confidence": (0.5, _BELOW_1, "a number in [0.5, 1) (95 % is 0.95)"),
    "margin": _SHARE,
    "class_margin": _SHARE,
    "max_broken_reference": _SHARE,
    "max_ece_increase": _SHARE,
    "max_broken": _AT_LEAST_0,
    "max_loss_increase": _AT_LEAST_0,
    "epochs": _AT_LEAST_1,
    "min_split": _AT_LEAST_1,
    "max_samples": _AT_LEAST_1,
    "min_class": _AT_LEAST_1,
}
