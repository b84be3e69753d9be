"""What people look at: scalars and TensorBoard histograms."""

from salmon.views.scalars import fit_metrics, share_metrics
from salmon.views.tensorboard import TEXT_ROWS, write_depth_histograms, write_text

__all__ = [
    "TEXT_ROWS",
    "fit_metrics",
    "share_metrics",
    "write_depth_histograms",
    "write_text",
]
