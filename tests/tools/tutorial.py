"""Runs the tutorial anew: ``python -m tests.tools.tutorial`` writes its outputs into it."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from tests import ROOT

TUTORIAL = ROOT / "docs" / "tutorial.ipynb"


def executed(folder: Path) -> Any:
    """The notebook with the outputs of a run in a folder, without logs and warnings."""
    notebook: Any = nbformat.read(TUTORIAL, as_version=4)  # type: ignore[no-untyped-call]
    commands = Path(sys.executable).parent  # those of this environment come first
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    client.execute(env=os.environ | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    return notebook


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        nbformat.write(executed(Path(place)), TUTORIAL)  # type: ignore[no-untyped-call]
