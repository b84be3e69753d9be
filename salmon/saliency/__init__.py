"""Per-sample, per-filter saliency of a network on a batch."""

from salmon.saliency.profile import (
    Loss,
    Measurement,
    check_eval_mode,
    check_labels,
    filter_saliency,
    logits_of,
    measure,
)
from salmon.saliency.trace import eval_mode, keep_rng

__all__ = [
    "Loss",
    "Measurement",
    "check_eval_mode",
    "check_labels",
    "eval_mode",
    "filter_saliency",
    "keep_rng",
    "logits_of",
    "measure",
]
