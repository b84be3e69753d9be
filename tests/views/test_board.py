"""Views on boards: real event files, and loggers with methods of their own."""

import inspect
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.wandb import WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray

from salmon.diagnosis import Confusion
from salmon.markdown import cell, literal, markdown_table
from salmon.views import Board, History, Kind, Picture, publish
from salmon.views.record import FilterRow, FindingRow
from salmon.views.tables import (
    Blamed,
    filter_rows,
    filter_table,
    finding_rows,
    finding_table,
    p_text,
    pair_table,
)
from tests import ROOT
from tests.records import hand_record

RECORD = hand_record(
    1,
    filters=[
        FilterRow(
            label="net.a.0[1]",
            group="early",
            mistakes=9,
            expected=1.25,
            p=0.004,
            significant=2,
            median_p=1e-3,
        ),
        FilterRow(
            label="net.b.0[2]",
            group="late",
            mistakes=4,
            expected=math.nan,
            p=math.nan,
            significant=0,
            median_p=None,
        ),
    ],
    pairs=[Confusion(target=1, predicted=0, mistakes=7)],
    beyond=1,
    findings=[
        FindingRow(
            label="net.a.0[1]", mistakes=9, expected=1.25, p=0.004, target=None, predicted=None
        ),
        FindingRow(label="net.b.0[3]", mistakes=5, expected=0.0, p=0.01, target=1, predicted=0),
    ],
    classes=["<script>alert(1)</script>", "![x](http://y)|z"],
)
HISTORY = History.of([hand_record(0), RECORD])
BEFORE = Blamed(20, {"net.a.0[1]": 19})


def events(folder: Path) -> EventAccumulator:
    kinds = ("scalars", "images", "histograms", "tensors")
    return EventAccumulator(str(folder), size_guidance=dict.fromkeys(kinds, 0)).Reload()


def board(folder: Path) -> Board:
    return Board(TensorBoardLogger(folder, name="", version=""))


def image(kind: Kind = "flagged") -> Picture:
    pixels = np.zeros((8, 8, 3), np.uint8)
    heat = torch.ones(8, 8)
    return Picture(kind=kind, sample=1, pixels=pixels, heat=heat, filter="net.a.0[1]")


def test_every_view_is_written_under_its_tag(tmp_path: Path) -> None:
    one = board(tmp_path)
    publish([one], "salmon", RECORD, HISTORY, before=BEFORE, pictures=[image(), image("right")])
    one.experiment.flush()
    found = events(tmp_path)
    tags = found.Tags()
    assert set(tags["images"]) == {
        "salmon/0_overview", "salmon/shares", "salmon/fit_quality", "salmon/heatmap/pot",
        "salmon/heatmap/zscore",
        "salmon/trend/pot", "salmon/trend/zscore", "salmon/trend/difference", "salmon/flagged",
        "salmon/responses",
    }  # fmt: skip
    assert set(tags["histograms"]) == {
        "salmon/depth/pot", "salmon/depth/zscore", "salmon/xi/early", "salmon/xi/late",
    }  # fmt: skip
    histogram = found.Histograms("salmon/depth/pot")[0]
    assert histogram.step == RECORD.step
    assert list(histogram.histogram_value.bucket_limit) == [1, 2, 3]
    assert list(histogram.histogram_value.bucket) == [10, 30, 60]
    text = text_of(found, "salmon/filters")
    assert r"| net.a.0\[1\] | early | 9 | 1.25 | 0.004 | 2 | -10 | 0.001 | 0.02 |" in text
    assert r"| net.b.0\[2\] | late | 4 |  |  | 0 |  |  |  |" in text
    assert "new: not among the 50 filters in the table then" in text
    text = text_of(found, "salmon/findings")
    assert r"| all | net.a.0\[1\] | 9 | 1.25 | 7.2 | 0.004 |" in text
    assert r"| net.b.0\[3\] | 5 | 0 |  | 0.01 |" in text
    assert r"| 7 | net.b.0\[3\] |" in text_of(found, "salmon/confusions")
    assert "20 of 200 samples are misclassified" in text_of(found, "salmon/0_overview")


@pytest.mark.parametrize(
    ("counts", "bins"),
    [
        ([10, 30, 60], [(0, 1, 10), (1, 2, 30), (2, 3, 60)]),
        ([0, 0, 7, 0, 5, 0], [(2, 3, 7), (3, 4, 0), (4, 5, 5)]),
        ([0, 4, 0], [(1, 2, 4)]),
    ],
)
def test_the_slow_loader_of_tensorboard_keeps_every_bin_where_it_is(
    tmp_path: Path, counts: list[int], bins: list[tuple[float, ...]]
) -> None:
    one = board(tmp_path)
    one.histogram("depth", range(len(counts) + 1), counts, 1)
    one.experiment.close()
    (path,) = tmp_path.glob("*tfevents*")
    values = [v for event in EventFileLoader(str(path)).Load() for v in event.summary.value]
    assert [tuple(row) for row in make_ndarray(values[-1].tensor)] == bins


def test_names_in_the_table_of_filters_are_literal() -> None:
    name = "net.__init__*[1]*"
    row = FilterRow(
        label=name, group="<i>g</i>", mistakes=1, expected=0.0, p=1.0, significant=0, median_p=None
    )
    pair = Confusion(target=0, predicted=1, mistakes=1)
    found = FindingRow(label=name, mistakes=1, expected=0.0, p=0.01, target=0, predicted=1)
    record = hand_record(filters=[row], pairs=[pair], findings=[found])
    for text in (filter_table(record, None), pair_table(record), finding_table(record)):
        assert literal(name) in text
        assert "<i>" not in text


def changes(mistakes: int, before: Blamed) -> str:
    """What the column of changes says of a filter with so many of 20 mistakes."""
    row = replace(RECORD.filters[0], mistakes=mistakes)
    return filter_rows(hand_record(filters=[row]), before)[0][6]


def test_only_a_change_beyond_chance_is_called_one() -> None:
    label = RECORD.filters[0].label
    assert changes(12, Blamed(20, {label: 10})) == ""
    assert changes(18, Blamed(20, {label: 2})) == "+16"
    assert changes(18, Blamed(20, {"other": 20})) == "new"
    assert changes(3, Blamed(20, {"other": 20})) == ""
    # Shares are compared, not counts: 20 of 200 were ranked then.
    assert changes(18, Blamed(200, {label: 180})) == ""
    full = {f"other[{i}]": 15 for i in range(50)}
    assert changes(18, Blamed(20, full)) == ""  # may have had up to 15 then


def test_a_long_list_of_findings_is_cut_and_says_so() -> None:
    many = [replace(RECORD.findings[0], label=f"net.a.0[{i}]") for i in range(60)]
    record = hand_record(findings=many, beyond=60)
    assert len(finding_rows(record)) == 50
    assert "10 more are in the file of the pass" in finding_table(record)


def text_of(found: EventAccumulator, tag: str) -> str:
    """The last text of a tag."""
    decoded: str = found.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()
    return decoded


def test_names_of_classes_are_literal_in_tables(tmp_path: Path) -> None:
    one = board(tmp_path)
    publish([one], "salmon", RECORD, HISTORY, before=None, figures=False)
    one.experiment.flush()
    text = text_of(events(tmp_path), "salmon/confusions")
    assert "<script" not in text
    assert "![x](" not in text
    assert text.splitlines()[2].count("|") == 5  # bars of four cells


def test_the_same_table_is_not_written_twice(tmp_path: Path) -> None:
    one, shown = board(tmp_path), dict[str, str]()
    for step in (1, 2, 3):
        record = hand_record(step, filters=RECORD.filters, pairs=RECORD.pairs if step < 3 else [])
        publish([one], "salmon", record, HISTORY, before=None, figures=False, shown=shown)
    one.experiment.flush()
    found = events(tmp_path)
    assert len(found.Tensors("salmon/confusions/text_summary")) == 1
    assert len(found.Tensors("salmon/filters/text_summary")) == 1
    assert found.Tags()["images"] == []


class Collector:
    """A logger with the methods that Weights & Biases' has, and a folder of what it got."""

    experiment = object()

    def __init__(self) -> None:
        self.images: dict[str, Any] = {}
        self.tables: dict[str, Any] = {}

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.images[key] = (images, step)

    def log_table(
        self, key: str, columns: list[str] | None = None, data: list[list[Any]] | None = None,
        dataframe: Any = None, step: int | None = None,
    ) -> None:  # fmt: skip
        self.tables[key] = (columns, data, step)


def test_a_logger_with_methods_for_images_and_tables_gets_both() -> None:
    logger = Collector()
    publish([Board(logger)], "salmon", RECORD, HISTORY, before=None, pictures=[image()])
    images, step = logger.images["salmon/flagged"]
    assert step == RECORD.step
    assert images[0].dtype == np.uint8
    assert len(logger.images) == 9
    columns, data, step = logger.tables["salmon/filters_table"]
    assert columns == [
        "filter", "group", "mistakes", "expected", "adjusted p", "significant", "change",
        "median p", "E",
    ]  # fmt: skip
    assert data[0] == ["net.a.0[1]", "early", "9", "1.25", "0.004", "2", "", "0.001", "0.02"]
    assert logger.tables["salmon/findings_table"][1][0][1] == "net.a.0[1]"
    # To a table names go as they are: a table shows text.
    assert logger.tables["salmon/confusions_table"][1][0][1] == "<script>alert(1)</script>"


@pytest.mark.parametrize("name", ["log_image", "log_table"])
def test_the_methods_are_called_as_the_logger_of_lightning_takes_them(name: str) -> None:
    theirs = inspect.signature(getattr(WandbLogger, name)).parameters
    for parameter in inspect.signature(getattr(Collector, name)).parameters:
        assert parameter in theirs


def test_the_package_of_a_logger_is_only_loaded_for_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger\n"
        "from salmon.views import Board\n"
        "for logger in CSVLogger('x'), TensorBoardLogger('x'): Board(logger).takes_images\n"
        "sys.exit(', '.join({'comet_ml', 'mlflow', 'wandb'} & set(sys.modules)) or 0)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


def test_other_loggers_are_left_alone(tmp_path: Path) -> None:
    for logger in (CSVLogger(tmp_path), object()):
        one = Board(logger)
        assert not one.takes_images
        publish([one], "salmon", RECORD, HISTORY, before=None, pictures=[image()])
    assert not list(tmp_path.rglob("*.png"))


def test_markdown_cells_cannot_break_their_table() -> None:
    table = markdown_table(["a", "b"], [["x|y\nz", "<img>"], [1, "*"]])
    assert table.splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| x\\|y z | &lt;img> |",
        "| 1 | * |",
    ]
    assert cell(3.5) == "3.5"
    assert literal("a_b [c](d) `e` <f> & |") == (
        "a\\_b \\[c\\]\\(d\\) \\`e\\` &lt;f&gt; &amp; &#124;"
    )


def test_probabilities_are_written_in_two_digits() -> None:
    assert [p_text(p) for p in (0.123, 1e-7, 1e-304, 0.0, None, float("nan"))] == [
        "0.12", "1e-07", "< 1e-300", "< 1e-300", "", "",
    ]  # fmt: skip
