"""Charts: what is drawn of a record, as pixels and as vector graphics."""

import re
from dataclasses import replace
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch
from matplotlib.text import Text
from packaging.version import Version
from PIL import Image

from salmon.diagnosis import Confusion
from salmon.views import History, PassRecord
from salmon.views.charts import (
    calibration_chart,
    depth_bars,
    fit_page,
    heat_map,
    layer_names,
    overview_card,
    share_bars,
    share_lines,
    xi_chart,
)
from salmon.views.figures import DARK, LIGHT, Chart, blank, pixels, styled, svg
from salmon.views.figures import words as words_at
from salmon.views.record import STATUSES, CalibrationRow, FindingRow, LayerRow
from salmon.views.summary import overview
from salmon.views.wording import clipped
from tests.records import LAYERS, hand_record, real_record

THREE = History.of(
    [
        hand_record(0),
        hand_record(1, counts={"pot": [80, 10, 10], "zscore": [0, 0, 0]}),
        hand_record(2),
    ]
)
REAL = real_record()
CALIBRATION = [
    CalibrationRow(
        p=p, ratio=ratio, low=0.8 * ratio, high=1.2 * ratio,
        rivals={"plug-in": 1.0, "ml": 1.5, "normal": 100.0},
    )
    for p, ratio in ((0.05, 1.0), (0.01, 0.9), (0.001, 0.5), (0.0001, 0.0))
]  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"


def words(chart: Chart) -> list[str]:
    return [text.get_text() for text in chart.figure.findobj(Text) if text.get_text()]


def cells(chart: Chart) -> npt.NDArray[np.uint8]:
    """Shades of the heat map, ``[L, V, 4]``."""
    (image,) = chart.figure.axes[0].images
    return np.asarray(image.get_array())


def bars(chart: Chart) -> list[list[float]]:
    """Lengths of the bars, by column."""
    return [
        [bar.get_width() for bar in each]
        for each in chart.figure.axes[0].containers
        if isinstance(each, BarContainer)
    ]


def lines(chart: Chart) -> list[Line2D]:
    return list(chart.figure.axes[0].lines)


def deep_record(number: int = 0, layers: int = 53, groups: int = 5) -> PassRecord:
    """A pass of a network of that size with long names."""
    generator = torch.Generator().manual_seed(number)
    rows = [
        LayerRow(
            layer=f"network.backbone.stage{i}.{i % 3}.downsampling.convolution",
            group=f"a_group_of_layers_{i * groups // layers}", filters=64,
        )
        for i in range(layers)
    ]  # fmt: skip
    counts = torch.poisson(40 * torch.rand(2, layers, generator=generator) ** 3, generator)
    pot, zscore = counts.long().tolist()
    names = dict.fromkeys(row.group for row in rows)
    examples = [replace(each, label=f"{rows[0].layer}[{each.kind}]") for each in REAL.examples]
    return hand_record(
        number, layers=rows, counts={"pot": pot, "zscore": zscore},
        xi={name: [0] * 9 + [4, 6] + [0] * 19 for name in names}, examples=examples,
        calibration=CALIBRATION, group_intervals=[[0.1, 0.2]] * len(names),
        layer_intervals=[[0.0, 0.1]] * layers,
    )  # fmt: skip


def every_chart(records: list[PassRecord]) -> list[Chart]:
    history, last = History.of(records), records[-1]
    image = np.zeros((8, 8, 3), np.uint8)
    return [
        overview_card(last, history, [image] * bool(last.pairs)),
        share_bars(last), depth_bars(last), fit_page(last), xi_chart(last),
        *([calibration_chart(last)] if last.calibration else []),
        *(heat_map(history, method) for method in ("pot", "zscore")),
        *(share_lines(history, name) for name in ("pot", "zscore", "difference")),
    ]  # fmt: skip


def test_cells_of_the_heat_map_are_as_dark_as_their_share() -> None:
    shades = cells(heat_map(THREE, "pot"))[:, :, 3] / 255
    assert shades[0] == pytest.approx([0.125, 1, 0.125], abs=0.002)  # of the largest, 80 %
    assert shades[2] == pytest.approx([0.75, 0.125, 0.75], abs=0.002)
    assert "strongest: 80.0 %" in " ".join(words(heat_map(THREE, "pot")))
    assert "Largest in the last one: net.b.0, 60.0 %." in heat_map(THREE, "pot").description


def test_a_validation_without_ranked_filters_has_a_grey_column() -> None:
    shades = cells(heat_map(THREE, "zscore"))
    grey = (shades[:, :, :3] == 128).all(2)
    assert grey.tolist() == 3 * [[False, True, False]]
    nothing = History.start(hand_record(counts={"pot": [0] * 3, "zscore": [0] * 3}))
    assert (cells(heat_map(nothing, "pot"))[:, :, :3] == 128).all()
    assert "No filter was ranked in the last one." in heat_map(nothing, "pot").description


def test_neighbours_are_averaged_where_validations_are_many() -> None:
    records = [
        hand_record(n, counts={"pot": [n % 2, 1 - n % 2, 0], "zscore": [1, 1, 1]})
        for n in range(240)
    ]
    chart = heat_map(History.of(records), "pot")
    assert cells(chart)[:, :, 3].tolist() == [120 * [255], 120 * [255], 120 * [0]]  # 50 % is most
    assert "a column per 2 validations; strongest: 50.0 %" in words(chart)


@pytest.mark.parametrize(
    ("layers", "passes", "most"), [(53, 50, 60_000), (200, 1, 60_000), (200, 400, 90_000)]
)
def test_a_heat_map_of_a_deep_network_stays_small(layers: int, passes: int, most: int) -> None:
    history = History.of([deep_record(n, layers) for n in range(passes)])
    chart = heat_map(history, "pot")
    assert len(svg(chart, "a")) < most
    assert pixels(chart).shape[0] < 1600


def test_bars_are_as_long_as_their_numbers() -> None:
    chart = share_bars(hand_record())
    assert bars(chart) == [pytest.approx([40, 60]), pytest.approx([10, 90]), [50, 50]]
    assert {"40.0", "60.0", "10.0", "90.0", "50.0", "POT", "z-score", "all filters"} <= set(
        words(chart)
    )
    assert bars(depth_bars(hand_record())) == [
        pytest.approx([10, 30, 60]), pytest.approx([0, 10, 90])
    ]  # fmt: skip


def test_every_group_has_a_line_through_its_shares() -> None:
    chart = share_lines(THREE, "pot")
    early, late = lines(chart)
    for line, shares in ((early, [40, 90, 40]), (late, [60, 10, 60])):
        assert np.asarray(line.get_xdata()).tolist() == [0, 1, 2]
        assert np.asarray(line.get_ydata()) == pytest.approx(shares)
    assert {"early", "late"} <= set(words(chart))
    assert chart.figure.axes[0].get_ylim()[0] == 0


def test_the_difference_reaches_below_zero_and_skips_what_is_not_known() -> None:
    chart = share_lines(THREE, "difference")
    early, late = lines(chart)
    assert np.asarray(early.get_xdata()).tolist() == [0, 2]
    assert np.asarray(early.get_ydata()) == pytest.approx([30, 30])
    assert np.asarray(late.get_ydata()) == pytest.approx([-30, -30])
    assert chart.figure.axes[0].get_ylim()[0] < -30


def test_a_single_validation_is_a_dot_and_a_long_run_has_none() -> None:
    chart = share_lines(History.start(hand_record(7)), "pot")
    assert [line.get_marker() for line in lines(chart)] == ["o", "o"]
    assert "Last validation: early 40.0, late 60.0." in chart.description
    assert "7" in words(chart)
    long = share_lines(History.of([hand_record(n) for n in range(40)]), "pot")
    assert {line.get_marker() for line in lines(long)} <= {"", "None"}


def test_the_fit_page_shows_every_status_and_three_fits() -> None:
    record = REAL
    chart = fit_page(record)
    for text in ("best fit", "median fit", "worst fit", "values tie", "too few excesses"):
        assert text in words(chart)
    total = sum(record.fits.values())
    assert bars(chart) == [pytest.approx([count / total for count in record.fits.values()])]
    for axes, example in zip(chart.figure.axes[1:], record.examples, strict=True):
        dots = axes.lines[-1]
        assert np.asarray(dots.get_xdata()).tolist() == example.fitted
        assert np.asarray(dots.get_ydata()).tolist() == example.observed
    assert len(fit_page(hand_record(examples=[])).figure.axes) == 1
    (example,) = record.examples[:1]
    assert "only fit" in words(fit_page(hand_record(examples=[replace(example, kind="only")])))
    assert "75.0 %" in words(fit_page(hand_record()))
    assert "10.0 % of the tested fits are doubtful" in fit_page(hand_record()).description
    assert "No fit could be tested." in words(fit_page(hand_record(doubtful=None)))


def test_the_shape_chart_has_a_histogram_per_group_with_its_mean() -> None:
    chart = xi_chart(hand_record())
    assert "early: 0.01; late: 0.25" in chart.description
    _, late = (each for each in chart.figure.axes[0].patches if isinstance(each, StepPatch))
    values, edges, base = late.get_data()
    (filled,) = np.flatnonzero(values != base)
    assert edges[filled : filled + 2] == pytest.approx([0.2, 0.3])
    empty = xi_chart(hand_record(xi={"early": [0] * 30, "late": [0] * 30}))
    assert "early: none fitted" in empty.description
    assert not [each for each in empty.figure.axes[0].patches if isinstance(each, StepPatch)]


def test_names_of_layers_leave_out_what_all_share() -> None:
    assert layer_names(LAYERS) == (["a.0", "a.1", "b.0"], "net")
    one = [LayerRow(layer="net.conv", group="g", filters=1)]
    assert layer_names(one) == (["conv"], "net")
    assert layer_names([*one, LayerRow(layer="net", group="g", filters=1)]) == (
        ["net.conv", "net"], "",
    )  # fmt: skip
    assert {"net.\u2026", "a.0", "a.1", "b.0"} <= set(words(heat_map(THREE, "pot")))


STRIKING = FindingRow(
    label="net.a.0[0]", mistakes=9, expected=1.25, p=0.004, target=None, predicted=None
)


def summary(**changes: Any) -> str:
    record = hand_record(2, **changes)
    parts = overview(record, History.of([hand_record(1), record]))
    return " ".join(line for lines in parts.values() for line in lines)


def test_the_summary_names_the_place_the_pass_before_and_the_trust() -> None:
    text = summary(misclassified=30)
    assert "30 of 200 samples are misclassified (15.0 %)" in text
    assert "10 more than at step 10, when 20 of 200 were (10.0 %)." in text
    assert "in layer 2.5 of 3, all filters in layer 2.3" in text
    assert "later than" in text
    assert "83.3 % of the filters have a fitted tail" in text
    assert "No filter could be ranked" in summary(counts={"pot": [0] * 3, "zscore": [0] * 3})


def test_a_group_is_named_only_where_its_interval_lies_beyond_its_size() -> None:
    assert "No group of layers has more of the top filters by POT" in summary()
    text = summary(group_intervals=[[0.3, 0.45], [0.55, 0.7]])
    beyond = "late is furthest above its size among the top 5 filters by POT (peaks over threshold)"
    assert f"{beyond}: 60.0 %" in text
    assert "(95 % interval 55.0 to 70.0), where it has 50.0 % of all filters." in text


def test_the_summary_says_what_stands_out_or_that_nothing_does() -> None:
    assert "No filter stands out: against 100 right samples ranked alike" in summary()
    assert "Nothing can stand out: of 100 right samples" in summary(beyond=None)
    few = summary(beyond=None, right=3)
    assert "right samples to compare with; at least 5 of each are needed" in few
    overall = [replace(STRIKING, label=f"net.a.0[{i}]", mistakes=9 - i) for i in range(7)]
    text = summary(beyond=7, findings=overall)
    assert "7 filters stand out beyond chance, against 100 right samples" in text
    assert "net.a.0[0]: 9 mistakes, 1.25 expected;" in text
    assert "net.a.0[4]: 5 mistakes, 1.25 expected and 2 more." in text
    part = [replace(overall[0], target=1), replace(overall[1], target=1, predicted=0)]
    assert "No filter stands out over all mistakes" in summary(findings=part)
    text = summary(beyond=1, findings=[overall[0], *part], classes=["cat", "dog"])
    assert "1 filter stands out beyond chance" in text
    assert "true class dog, net.a.0[0]: 9 mistakes" in text
    assert "true class dog taken for cat, net.a.0[1]: 8 mistakes" in text


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"doubts": ["It is another function."]}, "None"),
        ({"fits": dict.fromkeys(STATUSES, 0) | {"too_few": 24}, "doubtful": None}, "None: no fit"),
        ({"doubtful": 0.6}, "Little"),
        ({"doubtful": 0.3}, "Fair"),
        ({"doubtful": None}, "Fair: no fit could be tested"),
        ({"doubtful": 0.06}, "Good"),
    ],
)
def test_trust_is_one_word_with_its_reason(changes: dict[str, Any], word: str) -> None:
    record = hand_record(**changes)
    assert overview(record, History.start(record))["Trust"][0].startswith(word)


def test_the_summary_ends_with_what_to_do() -> None:
    assert "Look at the mistakes themselves" in summary()
    assert "look for a repair (salmon repair, or salmon.repair in Python)" in summary(
        beyond=1, findings=[STRIKING]
    )
    assert "at more samples: on these nothing was tested" in summary(beyond=None)
    guessing = summary(misclassified=150, class_samples=[80, 120], class_mistakes=[70, 80])
    assert "every time would be right as often (60.0 %)" in guessing
    assert "whether these are the trained weights" in guessing
    rare = summary(misclassified=10, class_samples=[190, 10], class_mistakes=[6, 4])
    assert "every time would be right as often" not in rare
    assert "Nothing: there are no mistakes." in summary(misclassified=0)
    doubted = overview(hand_record(doubts=["It is off."]), THREE)
    assert next(iter(doubted)) == "Not to be trusted"
    assert "Do what is said above" in doubted["Next"][0]


def test_the_overview_shows_two_images_of_the_worst_confusion() -> None:
    pair = Confusion(target=1, predicted=0, mistakes=7)
    record = hand_record(pairs=[pair], classes=["cat", "dog"])
    images = [np.full((8, 8, 3), shade, np.uint8) for shade in (10, 20, 30)]
    chart = overview_card(record, History.start(record), images)
    assert len([axes for axes in chart.figure.axes if axes.images]) == 2
    assert {"dog taken for cat", "Most often, 7 times, class dog is taken for cat."} <= set(
        words(chart)
    )


@pytest.mark.parametrize(("groups", "passes"), [(2, 1), (5, 50), (20, 130)])
def test_no_words_lie_on_others_or_leave_the_figure(groups: int, passes: int) -> None:
    records = [deep_record(n, groups=groups) for n in range(passes)]
    for chart in every_chart(records):
        with styled():
            canvas = FigureCanvasAgg(chart.figure)
            canvas.draw()
            boxes = [
                (text.get_text(), text.get_window_extent())
                for text in chart.figure.findobj(Text)
                if text.get_text()
            ]
        page = chart.figure.bbox
        for name, box in boxes:
            assert box.x0 >= 0, name
            assert box.y0 >= 0, name
            assert box.x1 <= page.x1, name
            assert box.y1 <= page.y1, name
        for (one, a), (other, b) in combinations(boxes, 2):
            wide, high = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert wide <= 1 or high <= 3, (chart.title, one, other)


ODD = "$x_1$ <script>&\n\x00\ud800 \u5c42 " + 30 * "n"


def odd_record() -> PassRecord:
    """A pass whose names try all that a name may hold."""
    layers = [
        LayerRow(layer=f"_{ODD}.{n}", group=group, filters=4)
        for n, group in enumerate(["_early", ODD])
    ]
    examples = [replace(example, label=ODD) for example in REAL.examples]
    return hand_record(
        layers=layers, counts={"pot": [1, 2], "zscore": [2, 1]}, examples=examples,
        xi={"_early": [1] * 30, ODD: [2] * 30},
        group_intervals=[[0.1, 0.5]] * 2, layer_intervals=[[0.1, 0.5]] * 2,
    )  # fmt: skip


def test_vector_graphics_are_valid_and_tell_what_they_show() -> None:
    for chart in every_chart([hand_record(), hand_record(1)]):
        root = ElementTree.fromstring(svg(chart, "one"))
        assert (root[0].tag, root[0].text) == (f"{SVG}title", chart.title)
        assert (root[1].tag, root[1].text) == (f"{SVG}desc", chart.description)
        assert len(chart.description) > 20
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-labelledby"] == "one-title one-text"


def test_names_are_shown_as_text_whatever_they_hold() -> None:
    for chart in every_chart([odd_record()]):
        assert pixels(chart).shape[1:] == (900, 3)
        clean = replace(chart, description="")
        root = ElementTree.fromstring(svg(clean, "one"))
        assert not [element for element in root.iter() if "script" in element.tag.lower()]
        shown = [element.text or "" for element in root.iter(f"{SVG}text")]
        assert sorted(shown) == sorted(words(chart))
        assert "$x_1$" in " ".join(shown) or not any("\u2026" in text for text in shown)
    assert "_early" in words(share_lines(History.start(odd_record()), "pot"))


def test_vector_graphics_of_a_page_share_no_ids_and_load_nothing() -> None:
    charts = every_chart([hand_record(), hand_record(1)])
    texts = [svg(chart, f"chart-{i}") for i, chart in enumerate([*charts, *charts])]
    ids = [each for text in texts for each in re.findall(r' id="([^"]+)"', text)]
    assert len(ids) == len(set(ids))
    for text in texts:
        assert not re.search(r"url\(|<style|<script|<!--|<!DOCTYPE", text)
        for source in re.findall(r'href="([^"]{0,30})', text):
            assert source.startswith(("#", "data:image/png;base64,"))
            assert source[0] == "d" or f'id="{source[1:]}"' in text


def test_colours_of_vector_graphics_are_those_of_the_page() -> None:
    for chart in every_chart([hand_record()]):
        text = svg(chart, "one")
        named = dict(re.findall(r"var\(--(\w+),(#\w+)\)", text))
        assert {"ink", "paper"} <= set(named)
        assert all(LIGHT[name] == colour for name, colour in named.items())
        assert not re.search("[^,]#[0-9a-f]{6}", re.sub('href="[^"]*"', "", text))
    assert set(DARK) == set(LIGHT)


def test_the_same_record_gives_the_same_bytes() -> None:
    one, other = (every_chart([hand_record(), hand_record(1)]) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert svg(a, "one") == svg(b, "one") == svg(a, "one")
        assert (pixels(a) == pixels(b)).all()


def test_pixels_are_those_that_matplotlib_draws() -> None:
    for chart in every_chart([deep_record(), deep_record(1)]):
        ours = pixels(chart)
        with styled():
            canvas = FigureCanvasAgg(chart.figure)
            canvas.draw()
        theirs = np.asarray(canvas.buffer_rgba())[:, :, :3]
        assert ours.shape == theirs.shape
        # Words stand at whole pixels, and their strokes are wider.
        rough = [np.asarray(Image.fromarray(each).reduce(20), int) for each in (ours, theirs)]
        assert np.abs(rough[0] - rough[1]).max() < 60
        assert tuple(ours[1, 1]) == (255, 255, 255)


def test_letters_stay_whole_where_a_card_of_tensorboard_leaves_pixels_out() -> None:
    with styled():
        figure = blank("", 40)
        words_at(figure, 10, 30, 20 * "l")
    whole = Image.fromarray(pixels(Chart("", "", figure)))
    image = whole.resize((350, 31), Image.Resampling.NEAREST)
    ink = np.asarray(image).min((0, 2)) < 100
    strokes = int((ink[1:] & ~ink[:-1]).sum())
    assert strokes == 20 or (strokes == 19 and Version(mpl.__version__) < Version("3.11"))


def test_the_users_own_settings_neither_change_charts_nor_are_changed() -> None:
    plain = [pixels(chart) for chart in every_chart([hand_record()])]
    theirs: Any = {"text.usetex": True, "font.size": 30, "axes.facecolor": "red", "axes.grid": True}
    with mpl.rc_context(theirs):
        before = dict(mpl.rcParams)
        charts = every_chart([hand_record()])
        found = [pixels(chart) for chart in charts]
        assert svg(charts[0], "one")
        assert dict(mpl.rcParams) == before
    for a, b in zip(plain, found, strict=True):
        assert (a == b).all()
    assert plt.get_fignums() == []


def test_long_names_lose_their_middle() -> None:
    assert clipped("short", 10) == "short"
    assert clipped("layer1.0.downsample.conv", 11) == "layer\u2026.conv"


def test_more_lines_than_colours_differ_by_their_dashes() -> None:
    groups = [f"block{i}" for i in range(20)]
    layers = [LayerRow(layer=f"net.{group}", group=group, filters=4) for group in groups]
    counts = {"pot": list(range(20)), "zscore": list(range(20))}
    records = [hand_record(n, layers=layers, counts=counts) for n in (0, 1)]
    chart = share_lines(History.of(records), "pot")

    def looks(each: list[Line2D]) -> list[tuple[object, object]]:
        return [(line.get_color(), line.get_linestyle()) for line in each]

    keys = [each for each in chart.figure.artists if isinstance(each, Line2D)]
    assert len(set(looks(lines(chart)))) == 20
    assert looks(keys) == looks(lines(chart))
    assert set(groups) <= set(words(chart))
    # The largest is 19 of 190: the axis ends not far above it.
    assert chart.figure.axes[0].get_ylim()[1] < 12


def test_numbers_that_are_not_known_draw_nothing() -> None:
    nothing = hand_record(counts={"pot": [0, 0, 0], "zscore": [0, 0, 0]})
    chart = share_bars(nothing)
    assert words(chart).count("none ranked") == 4
    assert bars(chart) == [[0, 0], [0, 0], [50, 50]]  # the last of all filters
    assert "early: POT none ranked, z-score none ranked, all filters 50.0" in chart.description
    empty = share_lines(History.start(nothing), "pot")
    assert "early none ranked" in empty.description
    assert all(len(np.asarray(line.get_xdata())) == 0 for line in lines(empty))
    for chart in every_chart([nothing]):
        assert pixels(chart).std() > 0  # titles and axes


def test_the_calibration_is_a_line_with_a_band_beside_its_rivals() -> None:
    record = deep_record()
    chart = calibration_chart(record)
    (axes,) = chart.figure.axes
    first = axes.lines[0]
    drawn = np.asarray(first.get_ydata(), dtype=np.float64)
    np.testing.assert_allclose(drawn, np.log10([1.0, 0.9, 0.5, 0.01]))
    assert {"reported", "plug-in", "ml", "normal"} <= set(words(chart))
    assert "0 times as many as predicted lie beyond p = 0.0001 (between 0 and 0)" in (
        chart.description
    )
    assert "a normal distribution, as the z-score assumes it, has 1e+02" in chart.description
    assert chart.description in overview(record, History.start(record))["Trust"]
