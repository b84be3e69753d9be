"""Rankings of filters for samples and batches, and their spread over the network."""

from salmon.ranking.blame import Blame, Confusion, confusions, most_blamed
from salmon.ranking.diagnosis import Diagnosis
from salmon.ranking.flags import NO_CLASS, SCHEMA, Mistakes, batch_flags, sample_flags
from salmon.ranking.methods import (
    LOG_P_FLOOR,
    METHODS,
    log_tail_probability,
    rank_filters,
    sum_over_samples,
    tail_score,
    top_filters,
    z_score,
)
from salmon.ranking.record import Ranking
from salmon.ranking.reservoir import Reservoir, priorities
from salmon.ranking.shares import filter_shares, group_shares, layer_counts

__all__ = [
    "LOG_P_FLOOR",
    "METHODS",
    "NO_CLASS",
    "SCHEMA",
    "Blame",
    "Confusion",
    "Diagnosis",
    "Mistakes",
    "Ranking",
    "Reservoir",
    "batch_flags",
    "confusions",
    "filter_shares",
    "group_shares",
    "layer_counts",
    "log_tail_probability",
    "most_blamed",
    "priorities",
    "rank_filters",
    "sample_flags",
    "sum_over_samples",
    "tail_score",
    "top_filters",
    "z_score",
]
