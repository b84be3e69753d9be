"""The charts of TensorBoard's custom scalars: one per ranking, with a line per group.

A run has one layout; a second one replaces the first. So what a user wrote is read back, and ours
is put behind it.
"""

import mmap
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_TAG = "custom_scalars__config__"  # under which TensorBoard keeps layouts

_CHARTS = (
    ("Share of each group among the top filters, POT", "share/pot/"),
    ("Share of each group among the top filters, z-score", "share/zscore/"),
    ("POT minus z-score", "share/difference/"),
    ("Filters per fit status", "fits/"),
    ("Mistakes", "misclassified$"),
)


def add_layout(experiment: Any, scopes: Sequence[str]) -> str:
    """Put our charts into the layout of a run, behind those that it has.

    Args:
        experiment: TensorBoard's ``SummaryWriter``, or something else that is left alone.
        scopes: First parts of the tags, such as ``salmon``; a category each.

    Returns:
        ``"written"``; ``"joined"``, where the run had a layout of its own, which stays; or
        ``"kept"``, where nothing had to be written or the run's files cannot be looked at.
    """
    write = getattr(getattr(experiment, "file_writer", None), "add_summary", None)
    named = str(getattr(experiment, "log_dir", None) or "")
    folder = Path(named)
    if write is None or not named or not folder.is_dir():
        return "kept"
    from tensorboard.plugins.custom_scalar import layout_pb2

    experiment.flush()
    layout = _last_layout(folder)
    layout = layout or layout_pb2.Layout()
    titles = {category.title for category in layout.category}
    others = any(title.partition("/")[0] != "salmon" for title in titles)
    missing = [scope for scope in scopes if scope not in titles]
    if not missing:
        return "kept"
    for scope in missing:
        category = layout.category.add(title=scope)
        for title, tags in _CHARTS:
            chart = category.chart.add(title=title)
            chart.multiline.tag.append(re.escape(f"{scope}/") + tags)
    write(_summary(layout))
    return "joined" if others else "written"


def _summary(layout: Any) -> Any:
    """A summary that holds a layout; TensorBoard's own function for it needs TensorFlow."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.custom_scalar import metadata

    value = Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG,
        metadata=metadata.create_summary_metadata(),
        tensor=TensorProto(dtype=DT_STRING, string_val=[layout.SerializeToString()]),
    )
    return Summary(value=[value])


def _last_layout(folder: Path) -> Any | None:
    """The layout that the files of a run end with."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.custom_scalar import layout_pb2

    found = None
    for path in sorted(folder.glob("*tfevents*")):
        if not _mentions_layout(path):  # files may be long, and reading their events is slow
            continue
        for event in EventFileLoader(str(path)).Load():
            for value in _values(event):
                if value.tag == _TAG:
                    found = layout_pb2.Layout.FromString(value.tensor.string_val[0])
    return found


def _values(event: Any) -> Iterator[Any]:
    """The values of an event that has some."""
    if event.HasField("summary"):
        yield from event.summary.value


def _mentions_layout(path: Path) -> bool:
    """Whether a file holds the tag of layouts."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(_TAG.encode()) >= 0
