"""Per-sample, per-filter saliency of a network on a batch."""

from salmon.saliency.backward import Layouts
from salmon.saliency.coverage import Coverage, coverage, coverage_of
from salmon.saliency.halves import take_rows
from salmon.saliency.input_map import input_saliency, map_of_image
from salmon.saliency.losses import Loss, check_labels, check_samples, cross_entropy, logits_of
from salmon.saliency.profile import (
    Measurement,
    call_network,
    check_eval_mode,
    filter_saliency,
    measure,
)
from salmon.saliency.trace import eval_mode, gradients_on, keep_rng
from salmon.saliency.verify import VerificationError, verify

__all__ = [
    "Coverage",
    "Layouts",
    "Loss",
    "Measurement",
    "VerificationError",
    "call_network",
    "check_eval_mode",
    "check_labels",
    "check_samples",
    "coverage",
    "coverage_of",
    "cross_entropy",
    "eval_mode",
    "filter_saliency",
    "gradients_on",
    "input_saliency",
    "keep_rng",
    "logits_of",
    "map_of_image",
    "measure",
    "take_rows",
    "verify",
]
