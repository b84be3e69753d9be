"""TensorBoard views that scalars cannot give: the spread of blamed filters over depth."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from salmon.filters import FilterIndex
from salmon.ranking import Ranking, layer_counts

TEXT_ROWS = 50
"""TensorBoard shows all texts of a tag at once, so tables stay short."""


def write_text(experiment: Any, tag: str, markdown: str, step: int) -> bool:
    """Write a text where the experiment takes texts.

    Args:
        experiment: What a logger calls its experiment.
        tag: Such as ``salmon/coverage``.
        markdown: The text.
        step: Of the trainer.

    Returns:
        Whether the experiment could take texts.
    """
    write = getattr(experiment, "add_text", None)
    if write is None:
        return False
    write(tag, markdown, global_step=step)
    return True


def write_depth_histograms(
    experiment: Any, scope: str, rankings: Mapping[str, Ranking], index: FilterIndex, step: int
) -> bool:
    """Write one histogram per method with one bin per layer, in network order.

    Args:
        experiment: What a logger calls its experiment; anything without ``add_histogram_raw`` is
            left alone.
        scope: First part of the tag, such as ``salmon``.
        rankings: By method.
        index: The filters.
        step: Of the trainer.

    Returns:
        Whether the experiment could take histograms.
    """
    write = getattr(experiment, "add_histogram_raw", None)
    if write is None:
        return False
    for method, ranking in rankings.items():
        counts = layer_counts(ranking, index).numpy()
        total = int(counts.sum())
        if total == 0:
            continue
        depth = np.arange(len(counts))
        write(
            tag=f"{scope}/depth/{method}",
            min=0.0,
            max=float(len(counts)),
            num=total,
            sum=float((counts * depth).sum()),
            sum_squares=float((counts * depth**2).sum()),
            # Integer edges: bin i, from i to i + 1, is layer i and nothing else.
            bucket_limits=(depth + 1.0).tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )
    return True
