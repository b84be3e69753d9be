"""The project keeps its own rules: layers, public names, lean imports."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import salmon
from tests import ROOT


def test_imports_point_down_the_layers() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_public_names_are_there() -> None:
    expected = {
        "FilterIndex", "SaliencyMonitor", "TailFit", "Tails", "filter_saliency", "fit_tails",
        "gpd", "rank_filters", "repair", "Patch", "RepairSettings",
    }  # fmt: skip
    assert expected <= set(salmon.__all__)
    for name in salmon.__all__:
        assert getattr(salmon, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trout'"):
        _ = salmon.trout


def test_what_lies_below_the_monitor_runs_without_lightning() -> None:
    code = (
        "import sys, salmon.views, salmon.repairs, salmon.diagnosis; "
        "sys.exit(any('lightning' in name for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_help_is_there_without_what_only_some_commands_need() -> None:
    code = (
        "import sys; from salmon.cli import main\n"
        "try: main(['repair', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'pytorch_lightning', 'scipy.stats', 'matplotlib', 'tensorboard', 'torchvision'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_every_dependency_has_a_lowest_version_and_no_highest() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    for line in [*project["dependencies"], *extras]:
        wanted = Requirement(line)
        own = wanted.name == "salmon-saliency"  # an extra that holds others
        assert [spec.operator for spec in wanted.specifier] == ([] if own else [">="]), line
