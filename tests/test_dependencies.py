"""The dependency rules of the house, proved in fresh interpreters."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FRAMEWORKS = {"accelerate", "datasets", "torchvision", "torchmetrics", "matplotlib", "diffusers"}
ALLOWED = {  # the rooms that importing a room imports, itself left out
    "utils": set(),
    "mask": {"utils"},
    "coupling": {"mask", "utils"},
    "path.scheduler": {
        "path",
        "coupling",
        "mask",
        "utils",
    },  # Python imports the package `path` first
    "path": {"coupling", "mask", "utils"},
    "loss": {"path", "coupling", "mask", "utils"},
    "models": {"path", "coupling", "mask", "utils"},
    "solver": {"models", "path", "coupling", "mask", "utils"},
    "metrics": {"mask", "utils"},
    "sampling": set(),
    "data": set(),
    "training": {"utils"},
    "app": set(),  # the server; what it serves is the next
    "app.page": {
        "hub",
        "models",
        "path",
        "coupling",
        "solver",
        "mask",
        "utils",
        "sampling",
        "data",
    },
    "hub": {"models", "path", "coupling", "solver", "mask", "utils", "sampling", "data"},
}
HEAVY = {
    "metrics": {"torchmetrics"},
    "data": {"datasets", "torchvision"},
    "training": {"accelerate"},
}


def imported(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def rooms(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("fm_ext.")}


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_the_rooms_below_it_and_no_framework(room):
    names = imported(f"import fm_ext.{room}")
    found = rooms(names) - {room.split(".")[0]}
    assert found <= ALLOWED[room], found - ALLOWED[room]
    foreign = names.intersection(FRAMEWORKS)
    if room not in HEAVY:  # what a framework imports where it is installed is its own affair
        assert not foreign, foreign


def test_drawing_samples_imports_accelerate_and_data_when_it_is_asked_for():
    names = imported("from fm_ext.sampling import draw_samples, Samples")
    assert "accelerate" in names and rooms(names) == {"sampling", "data"}


def test_the_source_of_schedulers_names_no_other_room_than_utils(request):
    folder = request.config.rootpath / "fm_ext" / "path" / "scheduler"
    for file in folder.glob("*.py"):
        named = set(
            re.findall(r"^from fm_ext\.(\w+(?:\.scheduler)?)", file.read_text(), re.MULTILINE)
        )
        assert named <= {"utils", "path.scheduler"}, file.name


def test_nothing_imports_the_examples_or_the_app_and_upstream_is_used_by_its_public_names(request):
    root: Path = request.config.rootpath
    for file in (root / "fm_ext").rglob("*.py"):
        source = file.read_text()
        assert not re.search(r"^(from|import) examples", source, re.MULTILINE), file
        app = re.search(r"^(from|import) fm_ext\.app", source, re.MULTILINE)
        assert not app or file.parent.name == "app", file
        assert not re.search(r"from flow_matching\S* import \(?\s*_", source), file
