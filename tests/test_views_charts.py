"""Drawings: what their shapes say, and both ways to show them."""

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from salmon.views import History
from salmon.views.charts import depth_bars, heat_map, layer_names, share_bars, share_lines
from salmon.views.drawing import (
    Box,
    Dot,
    Drawing,
    Frame,
    Grid,
    Line,
    Words,
    clipped,
    series,
    ticks,
)
from salmon.views.findings import findings
from salmon.views.fit_charts import fit_page, xi_chart
from salmon.views.palette import DARK, LIGHT
from salmon.views.raster import pixels
from salmon.views.record import LayerRow
from salmon.views.svg import svg
from tests.records import LAYERS, hand_record, real_record

THREE = History.of(
    [
        hand_record(0),
        hand_record(1, counts={"pot": [80, 10, 10], "zscore": [0, 0, 0]}),
        hand_record(2),
    ]
)


def boxes(drawing: Drawing) -> dict[str, Box]:
    """Boxes that can be pointed at, by what they say."""
    return {s.title: s for s in drawing.shapes if isinstance(s, Box) and s.title}


def words(drawing: Drawing) -> list[str]:
    return [shape.text for shape in drawing.shapes if isinstance(shape, Words)]


def grid(drawing: Drawing) -> Grid:
    (found,) = (shape for shape in drawing.shapes if isinstance(shape, Grid))
    return found


def test_cells_of_the_heat_map_are_as_dark_as_their_share() -> None:
    cells = grid(heat_map(THREE, "pot"))
    assert cells.rows[0] == pytest.approx((0.125, 1, 0.125))  # of the largest, 80 %
    assert cells.rows[2] == pytest.approx((0.75, 0.125, 0.75))
    assert cells.titles[0] == "net.a.0: 10.0 % in validation 2; most in 1: 80.0 %"


def test_a_validation_without_ranked_filters_leaves_its_column_empty() -> None:
    cells = grid(heat_map(THREE, "zscore"))
    assert [[math.isnan(value) for value in row] for row in cells.rows] == 3 * [
        [False, True, False]
    ]
    nothing = History.start(hand_record(counts={"pot": [0] * 3, "zscore": [0] * 3}))
    assert grid(heat_map(nothing, "pot")).titles[0] == "net.a.0: not known"


def test_neighbours_are_averaged_where_validations_are_many() -> None:
    records = [
        hand_record(n, counts={"pot": [n % 2, 1 - n % 2, 0], "zscore": [1, 1, 1]})
        for n in range(240)
    ]
    cells = grid(heat_map(History.of(records), "pot"))
    assert cells.rows == (120 * (1.0,), 120 * (1.0,), 120 * (0.0,))  # 50 % each is the most
    assert cells.titles[0].startswith("net.a.0: 50.0 % in validation 238 to 239; most in ")


@pytest.mark.parametrize("passes", [1, 50, 400])
def test_a_heat_map_of_a_deep_network_stays_small(passes: int) -> None:
    torch.manual_seed(0)
    layers = [
        LayerRow(layer=f"net.layer{i}.conv", group=f"g{i // 50}", filters=9) for i in range(200)
    ]
    counts = torch.poisson(torch.rand(passes, 200).pow(3) * 40).long().tolist()
    records = [
        hand_record(n, layers=layers, counts={"pot": row, "zscore": row})
        for n, row in enumerate(counts)
    ]
    assert len(svg(heat_map(History.of(records), "pot"), "a")) < 350_000


def test_bars_are_as_long_as_their_numbers() -> None:
    found = boxes(share_bars(hand_record()))
    assert set(found) == {
        "early: 40.0", "late: 60.0", "early: 10.0", "late: 90.0", "early: 50.0", "late: 50.0",
    }  # fmt: skip
    assert found["late: 60.0"].width / found["late: 90.0"].width == pytest.approx(60 / 90)
    assert found["late: 60.0"].paint != found["late: 90.0"].paint
    layers = boxes(depth_bars(hand_record()))
    assert layers["a.1: 30.0"].width / layers["b.0: 90.0"].width == pytest.approx(30 / 90)


def test_every_group_has_a_line_through_its_shares() -> None:
    drawing = share_lines(THREE, "pot")
    lines = [s for s in drawing.shapes if isinstance(s, Line) and s.width == 2]
    assert len(lines) == 2
    early, late = (line.points for line in lines)
    for (_, above), (_, below) in zip(early, late, strict=True):
        assert above + below == pytest.approx(early[0][1] + late[0][1])  # shares add up to 1
    assert early[1][1] < early[0][1]  # 90 % is higher up than 40 %
    assert {"early", "late"} <= set(words(drawing))


def test_the_difference_reaches_below_zero_and_skips_what_is_not_known() -> None:
    drawing = share_lines(THREE, "difference")
    dots = [shape.title for shape in drawing.shapes if isinstance(shape, Dot)]
    assert dots == ["early: 30.0", "early: 30.0", "late: -30.0", "late: -30.0"]


def test_a_single_validation_is_a_dot() -> None:
    drawing = share_lines(History.start(hand_record(7)), "pot")
    assert not [s for s in drawing.shapes if isinstance(s, Line) and s.width == 2]
    assert len([s for s in drawing.shapes if isinstance(s, Dot)]) == 2
    assert "Last validation: early 40.0, late 60.0." in drawing.description


def test_the_fit_page_shows_every_status_and_three_fits() -> None:
    drawing = fit_page(real_record())
    shown = " ".join(words(drawing))
    for text in ("best fit", "median fit", "worst fit", "values tie", "too few excesses"):
        assert text in shown
    assert "best fit" not in " ".join(words(fit_page(hand_record(examples=[]))))
    (example,) = real_record().examples[:1]
    assert "only fit: p =" in " ".join(
        words(fit_page(hand_record(examples=[replace(example, kind="only")])))
    )
    assert "75.0 %" in words(fit_page(hand_record()))
    assert "Doubtful (Anderson-Darling p < 0.05): 10.0 %" in fit_page(hand_record()).description
    assert "No fit could be tested." in words(fit_page(hand_record(doubtful=None)))


def test_the_shape_chart_has_a_row_per_group_with_its_mean() -> None:
    drawing = xi_chart(hand_record())
    assert "early: 0.01; late: 0.25" in drawing.description
    assert "late, xi from 0.2 to 0.3: 10" in boxes(drawing)
    empty = hand_record(xi={"early": [0] * 30, "late": [0] * 30})
    assert "early: none fitted" in xi_chart(empty).description


def test_names_of_layers_leave_out_what_all_share() -> None:
    assert layer_names(LAYERS) == ["a.0", "a.1", "b.0"]
    one = [LayerRow(layer="net.conv", group="g", filters=1)]
    assert layer_names(one) == ["conv"]
    assert layer_names([*one, LayerRow(layer="net", group="g", filters=1)]) == ["net.conv", "net"]


def test_findings_name_the_place_the_time_and_the_trust() -> None:
    text = " ".join(findings(hand_record(2), THREE))
    assert "20 of 200 samples are misclassified (10.0 %)" in text
    assert "at 75.0 % of its depth, the filters at 66.7 %" in text
    assert "later than" in text
    assert "late is blamed most: 60.0 % of the top filters, 50.0 % of all filters" in text
    assert "early from 40.0 % to 90.0 % of the top filters, at validation 1" in text
    assert "83.3 % of the filters have a fitted tail" in text
    silent = hand_record(counts={"pot": [0, 0, 0], "zscore": [0, 0, 0]})
    assert "No filter could be ranked" in " ".join(findings(silent, History.start(silent)))


ALL = Drawing(
    120, 80, "Title & <b>", "Says <what> it shows",
    [
        Box(10, 10, 40, 30, series(0), 0.5, title="half </svg>"),
        Box(60, 10, 0, 30, series(1)),
        Line(((0, 70), (120, 70)), series(2), 3),
        Line(((0, 5), (120, 5)), series(3), 2, dash=1),
        Dot(100, 40, series(1), 8),
        Grid(80, 50, 10, 8, series(4), ((1.0, 0.0, math.nan, 0.5),), ("a row & <more>",)),
        Words(60, 60, "<script>alert(1)</script>", "middle"),
        Words(8, 60, "upright", "middle", upright=True),
    ],
)  # fmt: skip


def test_a_vector_graphic_is_valid_and_tells_what_it_shows() -> None:
    text = svg(ALL, "one")
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text == "Title & <b>"  # type: ignore[union-attr]
    assert root.find(f"{space}desc").text == "Says <what> it shows"  # type: ignore[union-attr]
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-labelledby"] == "one-title one-text"
    assert "<script" not in text
    assert next(e.text for e in root.iter(f"{space}text")) == "<script>alert(1)</script>"
    for paint in re.findall(r"var\(--(\w+),", text):
        assert paint in LIGHT
        assert paint in DARK


def test_pixels_have_the_colours_of_the_shapes() -> None:
    image = pixels(ALL, scale=2)
    assert image.shape == (160, 240, 3)
    half = np.mean([LIGHT["series0"], LIGHT["paper"]], axis=0).round()
    assert np.abs(image[50, 60].astype(int) - half).max() <= 1
    assert tuple(image[80, 200]) == LIGHT["series1"]
    assert tuple(image[140, 120]) == LIGHT["series2"]
    assert tuple(image[2, 2]) == LIGHT["paper"]
    paper, full = np.asarray(LIGHT["paper"]), np.asarray(LIGHT["series4"])
    row = [image[106, x].astype(int) for x in (170, 190, 210, 230)]
    for seen, wanted in zip(row, (full, paper, paper, (paper + full) / 2), strict=True):
        assert np.abs(seen - wanted).max() <= 1
    row = (image[10] == LIGHT["series3"]).all(1)
    assert 0.3 < row.mean() < 0.8  # dashes
    ink = np.asarray((image < 120).all(2))
    assert ink[90:125, 60:180].any()  # words
    assert ink[60:160, 0:20].sum() > ink[60:160, 20:40].sum()  # upright ones along the edge


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 100), (-3.2, 7.9), (0, 1e-7), (99, 1e6)])
def test_ticks_are_few_round_numbers_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 * high <= value <= high * (1 + 1e-9) for value in found)
    step = found[1] - found[0]
    assert f"{step:.0e}"[0] in "125"
    assert all(value == round(value) for value in ticks(0, 3, whole=True))


def test_a_frame_turns_the_vertical_axis_around() -> None:
    frame = Frame(10, 20, 100, 50, (0, 2), (0, 10))
    assert (frame.x(0), frame.x(2), frame.y(0), frame.y(10)) == (10, 110, 70, 20)


def test_long_names_lose_their_middle() -> None:
    assert clipped("short", 10) == "short"
    assert clipped("layer1.0.downsample.conv", 11) == "layer\u2026.conv"


def test_more_lines_than_colours_differ_by_their_dashes() -> None:
    groups = [f"block{i}" for i in range(20)]
    layers = [LayerRow(layer=f"net.{group}", group=group, filters=4) for group in groups]
    counts = {"pot": list(range(20)), "zscore": list(range(20))}
    records = [hand_record(n, layers=layers, counts=counts) for n in (0, 1)]
    drawing = share_lines(History.of(records), "pot")
    lines = [s for s in drawing.shapes if isinstance(s, Line) and s.width == 2]
    keys = [s for s in drawing.shapes if isinstance(s, Line) and s.width == 3]
    looks = [(line.paint, line.dash) for line in lines]
    assert len(set(looks)) == 20
    assert [(key.paint, key.dash) for key in keys] == looks
    assert len(set(re.findall(r'stroke-dasharray="([^"]+)"', svg(drawing, "a")))) == 2
    # The largest is 19 of 190: the axis ends not far above it.
    top = min(y for line in lines for _, y in line.points)
    assert top < 34 + 0.3 * 210


def test_numbers_that_are_not_known_draw_nothing() -> None:
    nothing = replace(hand_record(), counts={"pot": [0, 0, 0], "zscore": [0, 0, 0]})
    bars = share_bars(nothing)
    assert words(bars).count("none ranked") == 4
    assert set(boxes(bars)) == {"early: 50.0", "late: 50.0"}  # of all filters
    assert "early: POT none ranked, z-score none ranked, all filters 50.0" in bars.description
    assert "early none ranked" in share_lines(History.start(nothing), "pot").description
    for chart in (
        share_bars(nothing), depth_bars(nothing), heat_map(History.start(nothing), "pot"),
        share_lines(History.start(nothing), "pot"),
        share_lines(History.start(nothing), "difference"),
    ):  # fmt: skip
        assert pixels(chart).std() > 0  # titles and axes
        assert not any(
            math.isnan(v) for s in chart.shapes if isinstance(s, Box) for v in (s.x, s.width)
        )
