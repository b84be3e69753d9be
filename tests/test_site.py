"""The documentation: its links lead somewhere, the site builds, the tutorial runs."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import salmon
from tests import ROOT
from tests.tools.tutorial import executed

PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not urlsplit(target).scheme:
            assert (page.parent / target).exists(), target


class Targets(HTMLParser):
    """What a page links to, and where it can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name == "id" and value:
                self.ids.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", ROOT / "docs", out / "html",
         "-d", out / "cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out / "html"


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_its_links_lead_somewhere(site: Path) -> None:
    found = {path: Targets(path) for path in site.glob("*.html")}
    assert {page.stem for page in PAGES if page.parent != ROOT} <= {path.stem for path in found}
    for path, page in found.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), (path.name, link)
            if parts.fragment and target in found:
                assert unquote(parts.fragment) in found[target].ids, (path.name, link)


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site: Path) -> None:
    ids = Targets(site / "api.html").ids
    missing = [name for name in salmon.__all__ if f"salmon.{name}" not in ids]
    assert set(missing) <= {"gpd"}  # a module, whose functions are there
    assert "salmon.gpd.fit" in ids


@pytest.mark.slow
def test_the_tutorial_runs_and_finds_repairs_and_compares(tmp_path: Path) -> None:
    cells = [cell for cell in executed(tmp_path).cells if cell.cell_type == "code"]
    told = "\n".join(
        output.get("text", "") for cell in cells for output in cell.outputs
    )  # fmt: skip
    assert re.search(r"net\.\d+\[\d+\] +all mistakes +\d+ mistakes", told)  # a finding
    assert "accepted\n" in told
    assert re.search(r"passed: \d+ fixed, \d+ broken", told)
    assert (tmp_path / "tutorial" / "report.html").stat().st_size > 100_000
