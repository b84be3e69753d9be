"""From labelled samples to a diagnosis: the mistakes, and the filters that they blame."""

from salmon.diagnosis.blame import Blame, confusions, most_blamed
from salmon.diagnosis.diagnosis import (
    Confusion,
    Diagnosis,
    Finding,
    Findings,
    Mistakes,
    mistakes_text,
)
from salmon.diagnosis.evidence import Evidence, Step
from salmon.diagnosis.findings import FEWEST, among, find
from salmon.diagnosis.flags import SCHEMA, batch_flags, flat_rows, sample_flags
from salmon.diagnosis.passes import Pass, PassSettings, check_whole
from salmon.diagnosis.worst import ShownSample, WorstSamples, find_images, image_position

__all__ = [
    "FEWEST",
    "SCHEMA",
    "Blame",
    "Confusion",
    "Diagnosis",
    "Evidence",
    "Finding",
    "Findings",
    "Mistakes",
    "Pass",
    "PassSettings",
    "ShownSample",
    "Step",
    "WorstSamples",
    "among",
    "batch_flags",
    "check_whole",
    "confusions",
    "find",
    "find_images",
    "flat_rows",
    "image_position",
    "mistakes_text",
    "most_blamed",
    "sample_flags",
]
