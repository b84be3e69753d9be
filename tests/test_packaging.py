"""The package as it is published: one version, files that machines read, a wheel that works."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import salmon
from tests import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROGRAMS = Path(sys.executable).parent


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """What a command prints; it must succeed, and finds no package by the path of this process."""
    plain = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    plain["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, cwd=cwd, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pins(path: Path) -> dict[str, str]:
    """Exact versions in a file of requirements, by name."""
    wanted = [Requirement(line) for line in path.read_text().splitlines() if line[:1] != "#"]
    assert all([spec.operator for spec in each.specifier] == ["=="] for each in wanted)
    return {each.name: next(iter(each.specifier)).version for each in wanted}


def test_the_version_is_one_number() -> None:
    assert PROJECT["dynamic"] == ["version"]  # taken from the package
    (newest, *_) = re.findall(r"^## (.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {newest, citation["version"]} == {salmon.__version__}


def test_the_pythons_it_claims_are_those_of_ci() -> None:
    prefix = "Programming Language :: Python :: "
    claimed = {c.removeprefix(prefix) for c in PROJECT["classifiers"] if c.startswith(prefix)}
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert claimed == {row["python"] for row in jobs["tests"]["strategy"]["matrix"]["include"]}
    lowest = min(claimed, key=lambda text: tuple(map(int, text.split("."))))
    assert PROJECT["requires-python"] == f">={lowest}"


def test_the_pins_of_the_example_are_versions_that_are_allowed_and_tested() -> None:
    pinned = pins(ROOT / "examples/ci/requirements.txt")
    assert pinned.pop("salmon-saliency") == salmon.__version__
    allowed = {each.name: each for each in map(Requirement, PROJECT["dependencies"])}
    for name, version in pinned.items():
        assert allowed[name].specifier.contains(version), name
    assert pinned.items() >= pins(ROOT / ".ci/constraints.txt").items()


def test_workflows_are_valid() -> None:
    folders = (ROOT / "examples/ci", ROOT / ".github/workflows")
    run(PROGRAMS / "actionlint", *(path for folder in folders for path in folder.glob("*.yml")))


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("citation-file-format", "CITATION.cff"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
    ],
)
def test_files_for_machines_have_the_form_that_these_read(schema: str, files: str) -> None:
    check = (PROGRAMS / "check-jsonschema", "--builtin-schema", f"vendor.{schema}")
    run(*check, *ROOT.glob(files))


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that is built from it."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("salmon", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", built, source)
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(dist: Path) -> None:
    run(PROGRAMS / "twine", "check", "--strict", *dist.iterdir())
    (wheel,) = dist.glob(f"salmon_saliency-{salmon.__version__}-*.whl")
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "salmon").rglob("*.*")}
    expected = {name for name in package if "__pycache__" not in name}
    assert {"salmon/py.typed", "salmon/views/report/page.html"} <= expected
    held = zipfile.ZipFile(wheel).namelist()
    assert {name for name in held if ".dist-info/" not in name} == expected


@pytest.mark.slow
def test_an_environment_with_the_wheel_alone_runs_the_demo(dist: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    venv.create(fresh, with_pip=True)
    python, command = fresh / "bin/python", fresh / "bin/salmon"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # Its dependencies are those of this environment, without the links to salmon in there.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (pin,) = re.findall("^salmon.*", (ROOT / "examples/ci/requirements.txt").read_text(), re.M)
    run(
        python, "-m", "pip", "install", "--ignore-installed", "--no-deps",
        "--no-index", "--find-links", dist, pin,
    )  # fmt: skip
    where = run(python, "-c", "import salmon; print(salmon.__file__)", cwd=tmp_path)
    assert Path(where.strip()) == site / "salmon/__init__.py"
    assert run(command, "--version", cwd=tmp_path) == f"salmon {salmon.__version__}\n"
    short = ("--images", "100", "--epochs", "1", "--quiet", "--out", "demo")
    assert "Done in" in run(command, "demo", *short, cwd=tmp_path)
    run(command, "report", "demo", "-o", "page.html", cwd=tmp_path)
    assert "<table" in (tmp_path / "page.html").read_text()
