"""The ranked filters of samples, and what is known of each."""

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking:
    """Top filters of N samples, best first; ``[N, K]`` unless said otherwise.

    A row with fewer than K ranked filters ends in places with filter -1 and NaN.
    """

    method: str
    filters: Tensor  # int64 filter numbers
    score: Tensor  # float64, higher is ranked earlier
    saliency: Tensor  # float64
    log_p: Tensor  # float64 natural log of the POT tail probability; NaN below the threshold
    z: Tensor  # float64 z-score
    ranked: Tensor  # [N] int64, how many filters of the sample could be ranked at all

    @property
    def p(self) -> Tensor:
        """Tail probability, in (0, rate]; NaN below the threshold."""
        return self.log_p.exp()

    def take(self, rows: Tensor) -> "Ranking":
        """Select some samples.

        Args:
            rows: ``[M]`` row numbers.

        Returns:
            The ranking of these samples, in the order of ``rows``.
        """
        tensors = ("filters", "score", "saliency", "log_p", "z", "ranked")
        return replace(self, **{name: getattr(self, name)[rows] for name in tensors})
