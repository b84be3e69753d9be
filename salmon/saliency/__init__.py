"""Per-sample, per-filter saliency of a network on a batch."""

from salmon.saliency.backward import Layouts
from salmon.saliency.coverage import Coverage, coverage, coverage_of
from salmon.saliency.halves import take_rows
from salmon.saliency.input_map import input_saliency, map_of_image
from salmon.saliency.losses import (
    Loss,
    are_probabilities,
    check_labels,
    check_samples,
    class_numbers,
    cross_entropy,
    labels_of,
    logits_of,
    nan_where_unlabelled,
    sample_losses,
)
from salmon.saliency.profile import (
    Measurement,
    check_eval_mode,
    filter_saliency,
    measure,
)
from salmon.saliency.verify import VerificationError, verify

__all__ = [
    "Coverage",
    "Layouts",
    "Loss",
    "Measurement",
    "VerificationError",
    "are_probabilities",
    "check_eval_mode",
    "check_labels",
    "check_samples",
    "class_numbers",
    "coverage",
    "coverage_of",
    "cross_entropy",
    "filter_saliency",
    "input_saliency",
    "labels_of",
    "logits_of",
    "map_of_image",
    "measure",
    "nan_where_unlabelled",
    "sample_losses",
    "take_rows",
    "verify",
]
