"""Loggers by what they can do: those of TensorBoard, Weights & Biases, MLflow, Comet, and others.

Nothing is asked of a logger's class, since there are several of each name.
"""

import io
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from salmon.markdown import markdown_table
from salmon.views.pictures import Pixels, encoded


class Board:
    """Where views are put up; what the logger has no type for is left out."""

    def __init__(self, logger: Any) -> None:
        """Look at a logger."""
        self._logger = logger
        self.name = type(logger).__name__

    @cached_property
    def experiment(self) -> Any:
        """What the logger writes with, such as TensorBoard's ``SummaryWriter``."""
        # Only asked for when needed: opening it may fail, and other boards go on.
        return getattr(self._logger, "experiment", None)

    @cached_property
    def _kind(self) -> Literal["tensorboard", "mlflow", "comet", "wandb", "methods"]:
        """Whose types the logger has; "methods" are those of W&B's logger, perhaps not all."""
        if hasattr(self.experiment, "add_image"):
            return "tensorboard"
        if hasattr(self.experiment, "log_image") and hasattr(self._logger, "run_id"):
            return "mlflow"
        if hasattr(self.experiment, "log_histogram_3d"):
            return "comet"
        of_wandb = type(self.experiment).__module__.partition(".")[0] == "wandb"
        return "wandb" if of_wandb else "methods"

    @property
    def takes_images(self) -> bool:
        """Whether images are shown anywhere."""
        own = self._kind in ("tensorboard", "mlflow", "comet")
        return own or hasattr(self._logger, "log_image")

    @property
    def takes_files(self) -> bool:
        """Whether files are kept with the run."""
        return self._kind in ("mlflow", "comet")

    def image(self, tag: str, pixels: Pixels, step: int, *, photo: bool = False) -> None:
        """Show an image.

        Args:
            pixels: ``[H, W, 3]``.
        """
        to = self.experiment
        match self._kind:
            case "tensorboard":
                write = getattr(getattr(to, "file_writer", None), "add_summary", None)
                if write is None:
                    to.add_image(tag, pixels, step, dataformats="HWC")
                else:  # add_image would store every shade and take three times as long
                    write(_summary(tag, pixels, "sheet" if photo else "chart"), step)
            case "mlflow":
                to.log_image(self._logger.run_id, pixels, key=_plain(tag), step=step)
            case "comet":  # which would stretch an array to the full range of colours
                to.log_image(Image.fromarray(pixels), name=tag, step=step)
            case _ if self.takes_images:
                self._logger.log_image(key=tag, images=[pixels], step=step)

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Show a text."""
        match self._kind:
            case "tensorboard":
                self.experiment.add_text(tag, markdown, global_step=step)
            case "mlflow":  # whose pages show the markdown; the last text stays
                self.experiment.log_text(self._logger.run_id, markdown, f"{_plain(tag)}.md")
            case "comet":
                self.experiment.log_text(markdown, step=step, metadata={"tag": tag})
            case "wandb":  # which has no type for markdown
                import wandb
                from tensorboard.plugin_util import markdown_to_safe_html

                shown = wandb.Html(markdown_to_safe_html(markdown))
                self._logger.log_metrics({f"{tag}_text": shown}, step)  # not the image's name

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
        match self._kind:
            case "tensorboard":
                self.text(tag, markdown or markdown_table(columns, rows), step)
            case "mlflow":
                self._table_file(f"{_plain(tag)}.json", columns, rows, step)
            case "comet":
                self.experiment.set_step(step)  # log_table takes none
                self.experiment.log_table(f"{tag}.csv", tabular_data=rows, headers=list(columns))
            case _ if hasattr(self._logger, "log_table"):
                data = [list(row) for row in rows]
                # There is a number salmon/findings; W&B keeps the last value of a name.
                key = f"{tag}_table"
                self._logger.log_table(key=key, columns=list(columns), data=data, step=step)

    def file(self, path: Path, folder: str) -> None:
        """Keep a file, where :attr:`takes_files`."""
        match self._kind:
            case "mlflow":
                self.experiment.log_artifact(self._logger.run_id, str(path), folder)
            case "comet":  # which reads it later
                data = io.StringIO(path.read_text(encoding="utf-8"))
                self.experiment.log_asset(data, f"{folder}/{path.name}")

    def _table_file(
        self, path: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int
    ) -> None:
        """Write a table of MLflow in place of that of an earlier step."""
        to, run = self.experiment, self._logger.run_id
        names, data = ["step", *columns], [[step, *row] for row in rows]
        if path in [file.path for file in to.list_artifacts(run, path.rpartition("/")[0] or None)]:
            # log_table would add to the rows that are there.
            to.log_dict(run, {"columns": names, "data": data}, path)
        else:
            to.log_table(run, dict(zip(names, zip(*data, strict=True), strict=True)), path)

    def histogram(self, tag: str, edges: Sequence[float], counts: Sequence[int], step: int) -> None:
        """Show a histogram with bins of our choice; nothing is shown where all are empty.

        Args:
            edges: ``[B + 1]``.
            counts: ``[B]``.
        """
        if not any(counts):
            return
        numbers, limits = np.asarray(counts), np.asarray(edges)
        match self._kind:
            case "tensorboard":
                left, filled = limits[:-1], numbers.nonzero()[0]
                self.experiment.add_histogram_raw(
                    tag=tag,
                    # TensorBoard's slow loader drops empty bins at the ends, and stretches the
                    # outermost of the others to these two.
                    min=float(edges[filled[0]]),
                    max=float(edges[filled[-1] + 1]),
                    num=sum(counts),
                    sum=float((numbers * left).sum()),
                    sum_squares=float((numbers * left**2).sum()),
                    bucket_limits=[float(edge) for edge in edges[1:]],
                    bucket_counts=list(counts),
                    global_step=step,
                )
            case "comet":  # whose bins are its own
                values = ((limits[:-1] + limits[1:]) / 2).repeat(numbers)
                self.experiment.log_histogram_3d(values, name=tag, step=step)
            case "wandb":
                import wandb

                start = np.arange(0, len(counts), -(-len(counts) // wandb.Histogram.MAX_LENGTH))
                bins = np.add.reduceat(numbers, start), limits[[*start, -1]]
                self._logger.log_metrics({tag: wandb.Histogram(np_histogram=bins)}, step)


def _plain(tag: str) -> str:
    """A tag without the letters that Lightning's logger of MLflow drops from names of numbers."""
    return re.sub("[^a-zA-Z0-9_/. -]+", "", tag)


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
