"""The notebooks: every cell runs, and each is what its script says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "notebooks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.stem != "make")


@pytest.fixture(scope="module")
def smoked(tmp_path_factory):
    """A folder of the notebooks, executed at smoke size in one kernel."""
    folder = tmp_path_factory.mktemp("notebooks")
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "ACCELERATE_USE_CPU": "true",
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    run = subprocess.run(
        [sys.executable, FOLDER / "make.py", "--smoke", "--output", folder],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-5000:]
    return folder


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_cell_runs_and_pictures_come_out(script, smoked):
    notebook = nbformat.read(smoked / f"{script.stem}.ipynb", as_version=4)
    nbformat.validate(notebook)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert sum("image/png" in out.get("data", {}) for out in outputs) >= 2


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_is_its_script_with_outputs(script):
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    expected = jupytext.read(script)
    for cell, other in zip(notebook.cells, expected.cells, strict=True):
        assert cell.cell_type == other.cell_type
        assert cell.source == other.source, "run examples/notebooks/make.py"
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert script.with_suffix(".ipynb").stat().st_size < 500_000


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_first_cell_installs_the_extras_that_the_notebook_needs(script):
    source = script.read_text()
    extras = re.search(r"fm_ext\[([a-z,]+)\]", source)[1].split(",")
    rooms = {"data": "train", "training": "train", "hub": "hub", "metrics": "eval"}
    for room, extra in rooms.items():
        assert extra in extras or f"from fm_ext.{room} " not in source
    assert "matplotlib" not in source or "examples" in extras


def test_links_between_notebooks_lead_somewhere():
    for script in SCRIPTS:
        for link in re.findall(r"\]\(([^):]+)\)", script.read_text()):
            assert (FOLDER / link).exists(), f"{script.name} links {link}"
