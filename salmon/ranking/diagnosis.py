"""What one pass over the samples of a loader found: the record that views and files are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from salmon.filters import FilterIndex
from salmon.gpd import TailFit
from salmon.ranking.flags import Mistakes
from salmon.ranking.record import Ranking


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Diagnosis:
    """What one pass found. Tensors are on the CPU."""

    index: FilterIndex
    fit: TailFit  # from these samples, or the given reference
    samples: int  # measured
    dropped: int  # of these, without a finite profile
    unlabelled: int  # left out, since their label is ignored or no class of the network
    misclassified: int
    mistakes: Mistakes  # the misclassified samples whose profiles were kept, by position
    ids: list[int | str]  # [M] of them
    id_source: str  # "function", "batch", "sampler" (index in the dataset) or "position"
    profile: Tensor  # [M, F] their saliency
    rankings: dict[str, Ranking]  # by method, of the kept mistakes
    excesses: Mapping[int, Tensor] = field(default_factory=dict)
    """Sorted excesses of a few filters, those with the best, median and worst fit; none where the
    fit is a given one."""
    doubts: tuple[str, ...] = ()
    """Why the numbers may be about another function than the user validates, with what to do."""
    as_loaded: bool = True
    """Whether the network was measured on the inputs that batches hold; else on those that the
    user's step made of them."""

    @property
    def trusted(self) -> bool:
        """Whether nothing was found that speaks against the numbers."""
        return not self.doubts
