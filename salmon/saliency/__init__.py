"""Per-sample, per-filter saliency of a network on a batch."""

from salmon.saliency.catch import Catcher, Use
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
    prediction_of,
    sample_losses,
    take_rows,
)
from salmon.saliency.profile import Measurement, filter_saliency, indexed_weights, measure
from salmon.saliency.reduce import Geometry
from salmon.saliency.responses import filter_responses

__all__ = [
    "Catcher",
    "Coverage",
    "Geometry",
    "Loss",
    "Measurement",
    "Use",
    "VerificationError",
    "are_probabilities",
    "check_labels",
    "check_samples",
    "class_numbers",
    "coverage",
    "coverage_of",
    "filter_responses",
    "filter_saliency",
    "indexed_weights",
    "input_saliency",
    "labels_of",
    "logits_of",
    "map_of_image",
    "measure",
    "prediction_of",
    "sample_losses",
    "take_rows",
    "verify",
]
