"""The dependency rules of the house, proved in fresh interpreters."""

import subprocess
import sys

HEAVY = (
    "accelerate",
    "datasets",
    "torchvision",
    "torchmetrics",
    "matplotlib",
    "diffusers",
    "streamlit",
)
CORE = (
    "fm_ext",
    "fm_ext.coupling",
    "fm_ext.loss",
    "fm_ext.mask",
    "fm_ext.models",
    "fm_ext.path",
    "fm_ext.solver",
)


ROOMS = ("data", "loss", "mask", "metrics", "models", "path", "sampling", "solver", "training")


def imported(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_core_imports_no_framework() -> None:
    names = imported("; ".join(f"import {name}" for name in CORE))
    assert names.isdisjoint(HEAVY), names.intersection(HEAVY)


def test_metrics_import_torchmetrics_and_masks() -> None:
    """And no other room. What torchmetrics imports where it is installed (matplotlib, torchvision) is its affair."""
    names = imported("import fm_ext.metrics")
    assert names.isdisjoint({"accelerate", "datasets", "diffusers", "streamlit"})
    assert not rooms(names) - {"metrics", "mask"}


def test_sampling_knows_frameworks_and_no_science() -> None:
    """It draws on processes and saves, so it imports accelerate and datasets; what it draws from is the caller's."""
    assert rooms(imported("import fm_ext.sampling")) == {"sampling", "data"}


def rooms(names: set[str]) -> set[str]:
    return {room for room in ROOMS if f"fm_ext.{room}" in names}
