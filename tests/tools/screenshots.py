"""Pictures for the docs.

``salmon demo && python -m tests.tools.screenshots salmon-demo docs/images``

Opens TensorBoard and the report of a run of the demo in headless Chromium.
"""

import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

from PIL import Image

from salmon.views import gather, gather_outcomes, write_report
from tests.browser import Server, browser, deep_text, tensorboard

PANELS = {  # page, filter of tags, text to wait for, height
    "tensorboard-overview": ("images", "overview", "salmon/0_overview", 900),
    "tensorboard-charts": ("images", "shares|heatmap", "salmon/heatmap/pot", 900),
    "tensorboard-flagged": ("images", "flagged|responses", "salmon/responses", 900),
    "tensorboard-fits": ("images", "fit_quality", "salmon/fit_quality", 620),
    "tensorboard-histograms": ("histograms", "depth|xi", "salmon/depth/pot", 820),
    "tensorboard-text": ("text", "salmon/(0_overview|filters)", "median p", 900),
}
RUN = "mnist"
SHIFTED = "optical-digits"  # where filters stand out
WIDTH = 1400


def main(demo: Path, out: Path) -> None:
    """Take all pictures."""
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        report = Path(folder) / "report.html"
        write_report(report, gather(demo), "salmon: demo", gather_outcomes(demo))
        with tensorboard(demo) as server, browser(profile) as page:
            _wait_until_read(server)
            for name, (panel, tags, text, height) in PANELS.items():
                page.set_window_size(WIDTH, height + 140)
                choice = f"&tagFilter={urllib.parse.quote(tags)}" if tags else ""
                page.get("about:blank")
                run = SHIFTED if "responses" in tags else RUN
                runs = "" if "overview" in tags and panel == "images" else f"&runFilter={run}"
                page.get(f"{server.address}/#{panel}{choice}{runs}")
                while text not in deep_text(page):
                    time.sleep(0.5)
                time.sleep(2)  # charts are drawn after their names
                _take(page.get_screenshot_as_png(), out / f"{name}.png")
            page.set_window_size(WIDTH, 1500)
            for name, place in {"report": "", "report-findings": "#section-1"}.items():
                page.get("about:blank")
                page.get(f"{report.as_uri()}{place}")
                _take(page.get_screenshot_as_png(), out / f"{name}.png")


def _wait_until_read(server: Server) -> None:
    """TensorBoard reads in the background."""
    for _ in range(120):
        if "salmon/trend/zscore" in server.json("images/tags").get(RUN, {}):
            return
        time.sleep(0.5)
    raise SystemExit("the run has no views of the monitor")


def _take(data: bytes, path: Path) -> None:
    """Store a picture in few bytes."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        image = Image.open(file).convert("RGB")
        image.quantize(200, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
