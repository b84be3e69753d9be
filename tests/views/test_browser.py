"""What a person sees: the panels of a real TensorBoard, and the report, in a real browser."""

import io
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from salmon import SaliencyMonitor, ViewSettings
from salmon.cli.demo import run_demo
from salmon.cli.options import DemoOptions
from salmon.views import History, PassRecord, gather, gather_outcomes, write_report
from salmon.views.charts import fit_page, heat_map, share_bars, share_lines
from salmon.views.figures import Chart, pixels
from tests.browser import Server, browser, deep_text, drawn, shot, tensorboard
from tests.trainers import Module, digits, loader, trainer

pytestmark = [
    pytest.mark.slow,
    # sklearn, mlxtend and Lightning are the demo's; so are its warnings.
    pytest.mark.filterwarnings("ignore"),
]

RUN = "mnist"
GROUPS = ["conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the demo."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    run_demo(DemoOptions(out=folder, epochs=3, images=150, quiet=True))
    return folder


@pytest.fixture(scope="module")
def server(demo: Path) -> Iterator[Server]:
    with tensorboard(demo) as started:
        for _ in range(60):  # it reads in the background
            if (
                RUN in started.json("images/tags")
                and "salmon/flagged" in (started.json("images/tags")[RUN])
            ):
                break
            time.sleep(0.5)
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with browser(tmp_path_factory.mktemp("profile"), "--window-size=1500,1100") as opened:
        yield opened


def test_scalars_have_a_line_per_group_and_ranking(server: Server) -> None:
    tags = server.json("scalars/tags")[RUN]
    for method in ("pot", "zscore", "difference"):
        for group in GROUPS:
            rows = server.json(
                "scalars/scalars", run=RUN, tag=f"salmon_details/share/{method}/{group}"
            )
            assert len(rows) == 3
    watched = {"mistakes", "findings", "trust", "depth", "cost/share"}
    assert {tag.removeprefix("salmon/") for tag in tags if tag.startswith("salmon/")} == {
        *watched, *(f"share/{group}" for group in GROUPS)
    }  # fmt: skip
    for name in ("fits/ok", "doubtful", "cost/seconds", "cost/views_seconds"):
        assert f"salmon_details/{name}" in tags
    shares = [
        server.json("scalars/scalars", run=RUN, tag=f"salmon_details/share/pot/{group}")[-1][2]
        for group in GROUPS
    ]
    assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_histograms_have_a_bin_per_layer_and_the_shape_of_every_group(
    server: Server, demo: Path
) -> None:
    tags = server.json("histograms/tags")[RUN]
    assert {"salmon/depth/pot", "salmon/depth/zscore"} <= set(tags)
    assert {f"salmon/xi/{group}" for group in GROUPS} <= set(tags)
    rows = server.json("histograms/histograms", run=RUN, tag="salmon/depth/pot")
    assert len(rows) == 3
    (section,) = [each for each in gather(demo) if each.name.startswith(RUN)]
    counts = section.record.counts["pot"]
    filled = [layer for layer, count in enumerate(counts) if count]
    _, _, bins = rows[-1]
    # TensorBoard cuts the range into 30 bins of its own; ours are whole layers.
    assert bins[0][0] == filled[0]
    assert bins[-1][1] == filled[-1] + 1
    assert sum(count for _, _, count in bins) == pytest.approx(sum(counts))


def picture(server: Server, tag: str) -> Any:
    """The last image of a tag, as the page loads it."""
    rows = server.json("images/images", run=RUN, tag=tag, sample=0)
    query = dict(urllib.parse.parse_qsl(rows[-1]["query"]))
    data = server.bytes("plugin/images/individualImage", **query)
    return rows, Image.open(io.BytesIO(data)).convert("RGB")


def test_flagged_images_are_served_with_something_on_them(server: Server) -> None:
    rows, image = picture(server, "salmon/flagged")
    assert len(rows) == 3
    assert image.size[0] == 900
    for left in (10, 310, 610):
        shades = np.asarray(image.crop((left, 10, left + 112, 122)).convert("L"), dtype=float)
        assert shades.std() > 5  # a digit, not a white page


@pytest.mark.parametrize(
    ("name", "chart"),
    [
        ("shares", lambda record, _: share_bars(record)),
        ("fit_quality", lambda record, _: fit_page(record)),
        ("heatmap/pot", lambda _, history: heat_map(history, "pot")),
        ("heatmap/zscore", lambda _, history: heat_map(history, "zscore")),
        ("trend/pot", lambda _, history: share_lines(history, "pot")),
        ("trend/zscore", lambda _, history: share_lines(history, "zscore")),
        ("trend/difference", lambda _, history: share_lines(history, "difference")),
    ],
)
def test_charts_are_served_as_they_are_drawn_from_the_files(
    server: Server, demo: Path, name: str, chart: Callable[[PassRecord, History], Chart]
) -> None:
    rows, image = picture(server, f"salmon/{name}")
    assert len(rows) == (2 if name.startswith("trend") else 3)  # one pass is no trend
    (section,) = [each for each in gather(demo) if each.name.startswith(RUN)]
    expected = pixels(chart(section.record, section.history)).astype(float)
    seen = np.asarray(image, dtype=float)
    assert seen.shape == expected.shape
    far = np.abs(seen - expected).max(2) > 16  # fewer shades are stored
    assert far.mean() < 0.01


def test_texts_are_tables_and_sentences(server: Server) -> None:
    tags = server.json("text/tags")[RUN]
    for name in ("coverage", "0_overview", "filters", "confusions"):
        assert any(tag.startswith(f"salmon/{name}") for tag in tags)
    texts = {
        name: server.json("text/text", run=RUN, tag=f"salmon/{name}/text_summary")[-1]["text"]
        for name in ("0_overview", "filters", "confusions")
    }
    assert "<li>" in texts["0_overview"]
    assert "samples are misclassified" in texts["0_overview"]
    assert texts["filters"].count("<td>net.") == 50
    assert "<th>median p</th>" in texts["filters"]
    assert "<th>predicted</th>" in texts["confusions"]


def waited(page: Chrome, condition: Callable[[str], bool]) -> str:
    """The text of a page, once it says what is waited for."""
    text = ""

    def ready(_: Chrome) -> bool:
        nonlocal text
        text = deep_text(page)
        return condition(text)

    WebDriverWait(page, 60).until(ready)
    return text


@pytest.mark.parametrize(
    ("panel", "tags", "shown", "least"),
    [
        (
            "scalars",
            "salmon.*share",
            ["salmon_details/share/difference/conv1", "salmon_details/share/pot/conv5_x"],
            15,
        ),
        ("images", "heatmap|shares|trend", ["salmon/heatmap/pot", "salmon/trend/difference"], 6),
        ("images", "flagged", ["salmon/flagged"], 1),
        ("images", "fit_quality", ["salmon/fit_quality"], 1),
        ("histograms", "salmon", ["salmon/depth/pot", "salmon/xi/conv1"], 20),
        ("text", "salmon", ["samples are misclassified", "median p", "predicted"], 300),
    ],
)
def test_the_panels_of_tensorboard_show_what_was_written(
    server: Server, page: Chrome, panel: str, tags: str, shown: list[str], least: int
) -> None:
    page.get("about:blank")
    choice = f"&tagFilter={urllib.parse.quote(tags)}&runFilter={RUN}" if tags else ""
    page.get(f"{server.address}/#{panel}{choice}")
    text = waited(page, lambda text: all(word in text for word in shown))
    assert "No dashboards are active" not in text
    time.sleep(1)  # charts are drawn after their names
    kind = {"images": "images", "text": "cells"}.get(panel, "lines")
    assert drawn(page)[kind] >= least
    shot(page, f"tensorboard-{panel}-{tags.split('|')[0].split('/')[-1]}".rstrip("-"))


@pytest.fixture(scope="module")
def report(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, gather(demo), "salmon: demo", gather_outcomes(demo))
    assert path.stat().st_size < 1_600_000  # of two runs and a repair
    return path.as_uri()


def errors(page: Chrome) -> list[str]:
    """What the browser complained of."""
    log: Any = page.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in log if entry["level"] == "SEVERE"]


def test_the_report_shows_its_sections_charts_and_tables(report: str, page: Chrome) -> None:
    errors(page)
    page.get(report)
    assert [h.text for h in page.find_elements(By.TAG_NAME, "h2")] == [
        "mnist: validation", "optical-digits: validation", "Repair",
    ]  # fmt: skip
    graphics = page.find_elements(By.TAG_NAME, "svg")
    assert len(graphics) == 18
    assert all(graphic.size["height"] > 100 for graphic in graphics)
    images = page.find_elements(By.CSS_SELECTOR, ".pictures img")
    assert images
    assert all(image.get_property("naturalWidth") for image in images)
    assert errors(page) == []
    shot(page, "report")


def cells(page: Chrome, column: int) -> list[str]:
    """A column of the first table of flagged samples, as far as its rows are shown."""
    texts: list[str] = page.execute_script(
        """
        const rows = [...document.querySelectorAll("#section-0-flags tbody tr")];
        const shown = rows.filter((row) => row.getClientRects().length > 0);
        return shown.map((row) => row.cells[arguments[0]].textContent.trim());
        """,
        column,
    )
    return texts


def test_the_table_of_the_report_is_sorted_and_filtered(report: str, page: Chrome) -> None:
    page.get(report)
    losses = [float(text) for text in cells(page, 6)]
    assert losses == sorted(losses, reverse=True)
    heading = page.find_element(By.CSS_SELECTOR, "#section-0-flags th:nth-child(7)")
    heading.find_element(By.TAG_NAME, "button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in cells(page, 6)] == sorted(losses)
    heading.find_element(By.TAG_NAME, "button").click()
    assert [float(text) for text in cells(page, 6)] == losses
    field = page.find_element(By.CSS_SELECTOR, "input[data-table=section-0-flags]")
    field.send_keys("conv5_x nothing has this name")
    assert cells(page, 1) == []
    field.clear()
    field.send_keys("layer4.1")
    some = cells(page, 8)
    assert 0 < len(some) <= len(losses)
    assert all("layer4.1" in text for text in some)
    output = page.find_element(
        By.CSS_SELECTOR, ".controls:has([data-table=section-0-flags]) output"
    )
    assert output.text == f"{len(some)} of {len(losses)}"


def test_a_search_finds_a_class_and_a_filter_and_nothing_that_only_looks_like_them(
    report: str, page: Chrome
) -> None:
    page.get(report)
    rows = list(zip(cells(page, 2), cells(page, 3), cells(page, 8), strict=True))
    field = page.find_element(By.CSS_SELECTOR, "input[data-table=section-0-flags]")
    field.send_keys("class 3")
    shown = list(zip(cells(page, 2), cells(page, 3), strict=True))
    assert shown == [(true, taken) for true, taken, _ in rows if "3" in (true, taken)]
    last = rows[0][2].split()[-9:]  # the last filter of all 25, which a click would unfold
    label = next(word for word in last if word.endswith("]"))
    field.clear()
    field.send_keys(label)
    assert len(cells(page, 8)) == sum(f" {label} " in f" {text} " for _, _, text in rows) > 0


def test_clicks_lead_from_classes_and_filters_to_their_samples_and_back(
    report: str, page: Chrome
) -> None:
    page.get(report)
    all_of_them = len(cells(page, 1))
    cell = page.find_element(By.CSS_SELECTOR, "#section-0-matrix td a")
    page.execute_script("arguments[0].click()", cell)
    assert len(cells(page, 1)) == int(cell.text)
    assert len({*zip(cells(page, 2), cells(page, 3), strict=True)}) == 1
    assert "is=" in page.current_url
    link = page.find_element(By.CSS_SELECTOR, "#section-0-filters tbody a")
    label, mistakes = link.text, page.find_element(
        By.CSS_SELECTOR, "#section-0-filters tbody td:nth-child(3)"
    ).text  # fmt: skip
    page.execute_script("arguments[0].click()", link)
    assert len(cells(page, 1)) == int(mistakes)
    assert all(label in text for text in cells(page, 8))
    assert page.switch_to.active_element.get_attribute("aria-label") == "Flagged samples"
    page.back()
    assert len({*zip(cells(page, 2), cells(page, 3), strict=True)}) == 1
    page.get("about:blank")
    page.get(f"{report}#section-0-flags?q=&sort=6")
    losses = [float(text) for text in cells(page, 6)]
    assert losses == sorted(losses)
    assert len(losses) == all_of_them


def test_links_show_what_they_name_to_the_letter(tmp_path: Path, page: Chrome) -> None:
    names = ["cat", "wild cat", "Cat", "a ? b # <i>"]
    monitor = SaliencyMonitor(level=0.7, strict=True, views=ViewSettings(class_names=names))
    trainer(tmp_path, monitor).validate(Module(), loader(digits(120)), verbose=False)
    write_report(tmp_path / "report.html", gather(tmp_path), "a run")
    address = (tmp_path / "report.html").as_uri()
    page.get(address)
    every = list(zip(cells(page, 2), cells(page, 3), cells(page, 8), strict=True))
    for name in names:
        own = [true for true, _, _ in every if true == name]
        query = urllib.parse.quote(f"true class {name}")
        page.get("about:blank")
        page.get(f"{address}#section-0-flags?is={query}")
        assert cells(page, 2) == own
    links = page.find_elements(By.CSS_SELECTOR, "#section-0-flags td.filters a")
    for label in {link.get_property("textContent") for link in links}:
        page.get("about:blank")
        page.get(f"{address}#section-0-flags?is={urllib.parse.quote(str(label))}")
        assert len(cells(page, 8)) == sum(f"{label} p " in text for _, _, text in every)
    page.get("about:blank")
    page.get(address)
    page.execute_script("location.hash = '#section-0-flags?is=true%20class%20cat&sort=6'")
    page.back()
    WebDriverWait(page, 10).until(lambda _: len(cells(page, 2)) == len(every))
    assert list(zip(cells(page, 2), cells(page, 3), cells(page, 8), strict=True)) == every


def test_an_image_opens_in_large_by_click_and_by_key(report: str, page: Chrome) -> None:
    page.get(report)
    image = page.find_element(By.CSS_SELECTOR, ".pictures img")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
    image.click()
    dialog = page.find_element(By.TAG_NAME, "dialog")
    large = dialog.find_element(By.TAG_NAME, "img")
    assert large.get_attribute("src") == image.get_attribute("src")
    assert large.size["height"] > 2 * image.size["height"]
    dialog.find_element(By.TAG_NAME, "button").click()
    assert not dialog.is_displayed()
    image.send_keys(Keys.ENTER)
    assert dialog.is_displayed()
    page.find_element(By.TAG_NAME, "dialog").find_element(By.TAG_NAME, "button").send_keys(
        Keys.ESCAPE
    )
    assert not dialog.is_displayed()


def test_a_repair_is_on_the_page_with_its_rules_and_samples(
    demo: Path, report: str, page: Chrome
) -> None:
    page.get(report)
    (heading,) = [h for h in page.find_elements(By.TAG_NAME, "h2") if "Repair" in h.text]
    section = heading.find_element(By.XPATH, "..")
    assert section.find_element(By.CSS_SELECTOR, ".status").text in ("accepted.", "rejected.")
    text = section.text
    for words in ("Rules, on samples", "What was changed", "Classes of the new data",
                  "Beside other remedies"):  # fmt: skip
        assert words in text
    (found,) = gather_outcomes(demo)
    for table in found.tables:  # which samples depends on the machine
        assert (table.heading in text) == bool(table.rows)
    (table,) = [table for table in found.tables if table.name == "samples-new"]
    images = section.find_elements(By.CSS_SELECTOR, "[id$=table-samples-new] td img")
    assert len(images) == len(table.rows)


def background(page: Chrome) -> str:
    colour: str = page.execute_script(
        "return getComputedStyle(document.documentElement).backgroundColor"
    )
    return colour


def test_the_report_is_light_or_dark_as_the_reader_likes(report: str, page: Chrome) -> None:
    page.get(report)
    colours = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        ink: str = page.execute_script(
            "return getComputedStyle(document.querySelector('svg text')).fill"
        )
        colours[scheme] = (background(page), ink)
        shot(page, f"report-{scheme}")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert colours["light"] == ("rgb(255, 255, 255)", "rgb(26, 26, 26)")
    assert colours["dark"] == ("rgb(24, 26, 29)", "rgb(235, 235, 235)")


def test_the_report_fits_a_phone(report: str, page: Chrome) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        page.get(report)
        width: Any = page.execute_script(
            "return [document.documentElement.scrollWidth, innerWidth]"
        )
        assert width[0] <= width[1] == 390
        shot(page, "report-phone")
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_report_tells_a_screen_reader_what_its_pictures_show(report: str, page: Chrome) -> None:
    page.get(report)
    tree: Any = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})
    kinds = ("img", "image", "button")  # pictures open in large
    images = [n for n in tree["nodes"] if n.get("role", {}).get("value") in kinds]
    named = [n["name"]["value"] for n in images if n.get("name", {}).get("value")]
    assert any(name.startswith("Share of each group among the top 25 filters") for name in named)
    assert any(name.startswith("Saliency map of sample") for name in named)
    headings = [n for n in tree["nodes"] if n.get("role", {}).get("value") == "heading"]
    assert len(headings) >= 10


def test_the_report_can_be_printed(report: str, page: Chrome) -> None:
    page.get(report)
    printed: Any = page.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert len(printed["data"]) > 50_000
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not page.find_element(By.CSS_SELECTOR, ".controls").is_displayed()
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_class_named_like_a_script_shows_as_text(tmp_path: Path, page: Chrome) -> None:
    name = "<script>document.title = 'taken over'</script>"
    views = ViewSettings(class_names=[name, "<img src=x onerror=document.title='taken'>", "c", "d"])
    monitor = SaliencyMonitor(level=0.7, strict=True, views=views)
    trainer(tmp_path, monitor).validate(Module(), loader(), verbose=False)
    write_report(tmp_path / "report.html", gather(tmp_path), "a run")
    page.get((tmp_path / "report.html").as_uri())
    assert page.title == "a run"
    assert name in page.find_element(By.TAG_NAME, "main").text
