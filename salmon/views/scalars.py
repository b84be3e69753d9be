"""The numbers of a diagnosis under their names: ``salmon/<view>/<method>/<group>``."""

from collections.abc import Mapping

from salmon.filters import FilterIndex
from salmon.gpd import TailFit
from salmon.ranking import Ranking, group_shares


def share_metrics(rankings: Mapping[str, Ranking], index: FilterIndex) -> dict[str, float]:
    """Share of every group among the top filters, per method.

    Args:
        rankings: By method.
        index: The filters.

    Returns:
        ``share/<method>/<group>`` in ``[0, 1]``; nothing for a method that ranked no filter.
    """
    return {
        f"share/{method}/{group}": share
        for method, ranking in rankings.items()
        if bool((ranking.filters >= 0).any())
        for group, share in group_shares(ranking, index).items()
    }


def fit_metrics(fit: TailFit) -> dict[str, float]:
    """Number of filters per fit status.

    Args:
        fit: The fits.

    Returns:
        ``fits/<status>``.
    """
    return {f"fits/{status.label}": float(count) for status, count in fit.counts().items()}
