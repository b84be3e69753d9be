"""What people look at: scalars and TensorBoard histograms."""

from salmon.views.scalars import fit_metrics, share_metrics
from salmon.views.tensorboard import write_depth_histograms

__all__ = ["fit_metrics", "share_metrics", "write_depth_histograms"]
