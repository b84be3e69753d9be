"""A real browser and a real TensorBoard for the tests of what a person sees."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from tests import ROOT

SCREENSHOTS = ROOT / "build" / "screenshots"

_ALONE = (  # a browser that keeps to the pages it is given
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip

# Web components keep their content in trees of their own.
_DEEP = """
const found = [];
const walk = (node) => {
  if (node.nodeType === Node.TEXT_NODE) { found.push(node.textContent); return; }
  if (["SCRIPT", "STYLE"].includes(node.nodeName)) return;
  if (node.shadowRoot) walk(node.shadowRoot);
  node.childNodes.forEach(walk);
};
walk(document.body);
return found.join(" ").replace(/\\s+/g, " ");
"""

# Loaded pictures, lines with points and filled cells, in the same trees.
_DRAWN = """
let images = 0, lines = 0, cells = 0;
const walk = (node) => {
  if (node.nodeType !== Node.ELEMENT_NODE && node !== document.body && !node.host) return;
  const box = node.getBoundingClientRect ? node.getBoundingClientRect() : {width: 0, height: 0};
  const seen = box.width > 20 && box.height > 0;
  const name = (node.nodeName || "").toLowerCase();
  if (name === "img" && node.naturalWidth > 100 && seen) images += 1;
  if (name === "path" && (node.getAttribute("d") || "").length > 20 && seen) lines += 1;
  if (name === "td" && node.textContent.trim() && seen) cells += 1;
  if (node.shadowRoot) node.shadowRoot.childNodes.forEach(walk);
  node.childNodes.forEach(walk);
};
walk(document.body);
return {images, lines, cells};
"""


def find_programs() -> tuple[str, str]:
    """Chromium and its driver; without them tests are skipped, but not in CI."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        advice = "install Debian's packages chromium and chromium-driver"
        if os.environ.get("CI"):
            pytest.fail(f"no browser: {advice}")
        pytest.skip(f"no browser: {advice}")
    return chromium, driver


@contextmanager
def browser(profile: Path, *options: str) -> Iterator[Chrome]:
    """A browser of its own, closed at the end."""
    chromium, driver = find_programs()
    chosen = ChromeOptions()
    chosen.binary_location = chromium
    for option in (*_ALONE, f"--user-data-dir={profile}", *options):
        chosen.add_argument(option)
    chosen.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = Chrome(chosen, Service(driver))
    try:
        yield opened
    finally:
        opened.quit()


def shot(page: Chrome, name: str) -> None:
    """Keep a screenshot as build output."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    assert page.save_screenshot(str(SCREENSHOTS / f"{name}.png"))


def deep_text(page: Chrome) -> str:
    """All text of a page, that of its components too."""
    text: str = page.execute_script(_DEEP)
    return text


def drawn(page: Chrome) -> dict[str, int]:
    """What is to be seen on a page beside its words."""
    found: dict[str, int] = page.execute_script(_DRAWN)
    return found


class Server:
    """TensorBoard's, asked over HTTP."""

    def __init__(self, address: str) -> None:
        self.address = address

    def bytes(self, path: str, **arguments: Any) -> bytes:
        query = urllib.parse.urlencode(arguments)
        with urllib.request.urlopen(f"{self.address}/data/{path}?{query}", timeout=30) as answer:
            data: bytes = answer.read()
            return data

    def json(self, path: str, **arguments: Any) -> Any:
        return json.loads(self.bytes(f"plugin/{path}", **arguments))


@contextmanager
def tensorboard(folder: Path) -> Iterator[Server]:
    """The server as a person starts it, on a free port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            match = re.search(r"at (http://\S+?)/? ", line)
            if match:
                yield Server(match[1])
                return
        pytest.fail("TensorBoard did not start: " + "".join(lines))
    finally:
        process.terminate()
        process.wait(timeout=30)
