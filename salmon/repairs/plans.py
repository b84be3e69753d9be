"""Plans: which filters to touch first, by every ranking through one interface.

A ranking orders the filters of each misclassified sample; a plan combines them over all of these
samples: POT by the sum of ``-log p`` over the samples above the threshold (eq. 5 under
independence), z-score and magnitude by the mean over the samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salmon.errors import InputError
from salmon.filters import FilterIndex
from salmon.gpd import TailFit
from salmon.ranking import sum_over_samples, tail_score, z_score

LAST_LINEAR = "last_linear"


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """An order of filters."""

    ranking: str
    index: FilterIndex
    order: Tensor  # [n] int64 filter numbers, first ones first, without those not ranked

    def first(self, share: float) -> Tensor:
        """The first filters.

        Returns:
            ``[m]`` filter numbers, at least one if there are any.
        """
        return self.order[: max(1, round(share * len(self.index)))]


def make_plan(
    ranking: str,
    index: FilterIndex,
    profile: Tensor,
    fit: TailFit,
    *,
    seed: int,
) -> Plan:
    """Order the filters by what misclassified samples say of them.

    Args:
        ranking: ``"pot"``, ``"zscore"``, ``"magnitude"``, ``"random"``, ``"all"`` or
            ``"group:<name>"``.
        profile: ``[M, F]`` saliency of misclassified samples.
        seed: Of ``"random"``.
    """
    kind, _, name = ranking.partition(":")
    clean = profile.double().cpu()
    clean = clean[torch.isfinite(clean).all(1)]
    scores: dict[str, Callable[[], Tensor]] = {
        "pot": lambda: sum_over_samples(tail_score(clean, fit)),
        "zscore": lambda: z_score(clean, fit).mean(0),
        "magnitude": lambda: clean.mean(0),
        "random": lambda: torch.rand(len(index), generator=torch.Generator().manual_seed(seed)),
        "all": lambda: torch.zeros(len(index)),
        "group": lambda: clean.mean(0).where(_members(index, name), torch.nan),
    }
    if kind not in scores:
        raise InputError(f"ranking is {ranking!r}; one of {', '.join(scores)} is needed.")
    score = scores[kind]()
    order = score.nan_to_num(nan=-torch.inf).sort(descending=True, stable=True).indices
    return Plan(ranking, index, order[~torch.isnan(score[order])])


def _members(index: FilterIndex, group: str) -> Tensor:
    """``[F]`` bool: filters of a group."""
    if group not in index.groups:
        raise InputError(
            f"ranking 'group:{group}' names no group of this network; it has "
            f"{', '.join(index.groups)}."
        )
    return index.group_of == index.groups.index(group)


def last_linear_index(model: nn.Module) -> FilterIndex | None:
    """The rows of the last linear layer, as filters.

    Returns:
        Their index; None where there is no linear layer.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        return None
    clean = names[-1].replace("_orig_mod.", "")
    try:
        return FilterIndex.from_model(model, units=("linear",), include=[clean])
    except InputError:  # such as the output projection of an attention
        return None


def prefixes(plan: Plan, shares: Sequence[float]) -> list[Tensor]:
    """The prefixes of a plan that are worth a try, each once.

    Returns:
        Ascending filter sets; of ``"all"`` and ``"last_linear"`` the whole only.
    """
    if not len(plan.order):
        return []
    if plan.ranking in ("all", LAST_LINEAR):
        return [plan.order]
    sets = {len(plan.first(share)): plan.first(share) for share in sorted(shares)}
    return list(sets.values())
