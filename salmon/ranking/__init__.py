"""Rankings of filters for samples, and their spread over the network."""

from salmon.ranking.bootstrap import bootstrap_interval
from salmon.ranking.held_out import BAND, Calibration, calibration
from salmon.ranking.methods import (
    ALPHA,
    LOG_P_FLOOR,
    METHODS,
    log_tail_probability,
    rank_filters,
    sum_over_samples,
    tail_score,
    top_filters,
    z_score,
)
from salmon.ranking.ranking import Ranking, Strength
from salmon.ranking.shares import filter_shares, group_shares, layer_counts, share_intervals

__all__ = [
    "ALPHA",
    "BAND",
    "LOG_P_FLOOR",
    "METHODS",
    "Calibration",
    "Ranking",
    "Strength",
    "bootstrap_interval",
    "calibration",
    "filter_shares",
    "group_shares",
    "layer_counts",
    "log_tail_probability",
    "rank_filters",
    "share_intervals",
    "sum_over_samples",
    "tail_score",
    "top_filters",
    "z_score",
]
