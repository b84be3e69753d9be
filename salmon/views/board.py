"""Loggers by what they can do: TensorBoard's writer, or methods for images and tables.

Nothing is asked of a logger's class, since there are several of each name.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from salmon.markdown import markdown_table
from salmon.views.pictures import Pixels, encoded


class Board:
    """Where views are put up; what the logger has no method for is left out."""

    def __init__(self, logger: Any) -> None:
        """Look at a logger."""
        self._logger = logger
        self.name = type(logger).__name__

    @cached_property
    def experiment(self) -> Any:
        """What the logger writes with, such as TensorBoard's ``SummaryWriter``."""
        # Only asked for when needed: opening it may fail, and other boards go on.
        return getattr(self._logger, "experiment", None)

    @property
    def takes_images(self) -> bool:
        """Whether images are shown anywhere."""
        return hasattr(self.experiment, "add_image") or hasattr(self._logger, "log_image")

    def image(self, tag: str, pixels: Pixels, step: int, *, photo: bool = False) -> None:
        """Show an image.

        Args:
            pixels: ``[H, W, 3]``.
        """
        if hasattr(self.experiment, "add_image"):
            write = getattr(getattr(self.experiment, "file_writer", None), "add_summary", None)
            if write is None:
                self.experiment.add_image(tag, pixels, step, dataformats="HWC")
            else:  # add_image would store every shade and take three times as long
                write(_summary(tag, pixels, "photo" if photo else "chart"), step)
        elif hasattr(self._logger, "log_image"):
            self._logger.log_image(key=tag, images=[pixels], step=step)

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Show a text."""
        if hasattr(self.experiment, "add_text"):
            self.experiment.add_text(tag, markdown, global_step=step)

    def table(
        self,
        tag: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        step: int,
        *,
        markdown: str | None = None,
    ) -> None:
        """Show a table.

        Args:
            markdown: What to show where tables are texts; None lays the cells out.
        """
        if hasattr(self.experiment, "add_text"):
            self.text(tag, markdown or markdown_table(columns, rows), step)
        elif hasattr(self._logger, "log_table"):
            data = [list(row) for row in rows]
            self._logger.log_table(key=tag, columns=list(columns), data=data, step=step)

    def histogram(self, tag: str, edges: Sequence[float], counts: Sequence[int], step: int) -> None:
        """Show a histogram with bins of our choice; nothing is shown where all are empty.

        Args:
            edges: ``[B + 1]``.
            counts: ``[B]``.
        """
        total = sum(counts)
        if total == 0 or not hasattr(self.experiment, "add_histogram_raw"):
            return
        numbers, left = np.asarray(counts), np.asarray(edges[:-1])
        filled = numbers.nonzero()[0]
        self.experiment.add_histogram_raw(
            tag=tag,
            # TensorBoard's slow loader drops empty bins at the ends, and stretches the outermost
            # of the others to these two.
            min=float(edges[filled[0]]),
            max=float(edges[filled[-1] + 1]),
            num=total,
            sum=float((numbers * left).sum()),
            sum_squares=float((numbers * left**2).sum()),
            bucket_limits=[float(edge) for edge in edges[1:]],
            bucket_counts=list(counts),
            global_step=step,
        )


def _summary(tag: str, pixels: Pixels, how: str) -> Any:
    """A summary with an image in few bytes."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    image = Summary.Image(
        height=pixels.shape[0],
        width=pixels.shape[1],
        colorspace=3,
        encoded_image_string=encoded(pixels, how)[1],
    )
    return Summary(value=[Summary.Value(tag=tag, image=image)])
