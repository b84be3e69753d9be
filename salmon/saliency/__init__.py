"""Per-sample, per-filter saliency of a network on a batch."""

from salmon.saliency.checks import Coverage, VerificationError, coverage, coverage_of, verify
from salmon.saliency.input_map import input_saliency, map_of_image
from salmon.saliency.losses import (
    Loss,
    are_probabilities,
    check_labels,
    check_samples,
    class_numbers,
    labels_of,
    logits_of,
    nan_where_unlabelled,
    sample_losses,
    take_rows,
)
from salmon.saliency.profile import Measurement, filter_saliency, measure

__all__ = [
    "Coverage",
    "Loss",
    "Measurement",
    "VerificationError",
    "are_probabilities",
    "check_labels",
    "check_samples",
    "class_numbers",
    "coverage",
    "coverage_of",
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
