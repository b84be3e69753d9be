"""All settings of a comparison: the gates, and what it may cost."""

from dataclasses import dataclass

from salmon.errors import InputError


@dataclass(frozen=True, kw_only=True)  # without slots, which jsonargparse cannot read
class Gates:
    """What a new network must keep; a gate that is None is open.

    Attributes:
        max_lost: Most accuracy that may be lost, 0.01 being one point.
        confidence: One-sided confidence at which the loss must lie within ``max_lost``; 0.5 judges
            the observed loss itself, 0.95 asks for non-inferiority.
        max_broken: Most samples that may turn wrong, as a share of those that were right.
        max_loss_increase: Most by which the mean loss may grow, as a share of it.
        max_group_lost: Most accuracy that a class or slice of ``min_group`` samples may lose.
        min_group: Groups with fewer samples are shown, and not judged.

    Raises:
        InputError: If one is out of range.
    """

    max_lost: float | None = None
    confidence: float = 0.5
    max_broken: float | None = None
    max_loss_increase: float | None = None
    max_group_lost: float | None = None
    min_group: int = 10

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("max_lost", "max_broken", "max_group_lost"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} is {value!r}; a share in [0, 1] (1 % is 0.01) is needed.")
        grown = self.max_loss_increase
        if grown is not None and not grown >= 0:
            raise InputError(f"max_loss_increase is {grown!r}; at least 0 is needed.")
        if not 0.5 <= self.confidence < 1:
            raise InputError(
                f"confidence is {self.confidence!r}; a number in [0.5, 1) (95 % is 0.95) is needed."
            )
        _check_counts(self, "min_group")


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """How much is measured and tried.

    Attributes:
        level: Quantile level of the thresholds of the old network's tails, in (0, 1).
        top_k: Filters that are counted for each sample; at most a tenth of all.
        fitted: Most samples that the tails are fitted to.
        tried: Most samples, broken ones and others each, on which changes are taken back.
        layers: Most changed layers that are taken back, those with the largest change first.
        filters: Most filters that are taken back one by one, those behind most of the loss first.
        seed: Of random choices.

    Raises:
        InputError: If one is out of range.
    """

    level: float = 0.90
    top_k: int = 25
    fitted: int = 1000
    tried: int = 200
    layers: int = 64
    filters: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 < self.level < 1:
            raise InputError(f"level is {self.level!r}; a number in (0, 1) is needed.")
        _check_counts(self, "top_k", "fitted", "tried", "layers", "filters")


def _check_counts(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; a whole number >= 1 is needed.")
