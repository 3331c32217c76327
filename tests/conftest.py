"""Fixtures for every test: seeded, and a way to see the errors that users see."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import jaxtyping
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

hypothesis.settings.register_profile("few", max_examples=25)
hypothesis.settings.register_profile("thousand", max_examples=1000)  # run by hand
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))


def pytest_configure() -> None:
    """Tests run side by side, and share the cores."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def forget_accelerate() -> Iterator[Callable[[], None]]:
    """Resets the singletons that accelerate keeps its state in: after each test, and when called."""

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    yield forget
    forget()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def untyped() -> Iterator[None]:
    """Switches the run-time type checks off, which exist in the tests only, to reach our own messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def two_processes(tmp_path: Path) -> Callable[[str], list[str]]:
    """Runs a script on two processes; returns what each wrote to `sys.argv[1]`/<rank>.json."""

    def run(script: str) -> list[str]:
        (tmp_path / "script.py").write_text(script)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launch += ["--nproc_per_node=2", tmp_path / "script.py", tmp_path]
        env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "huggingface"),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        done = subprocess.run(launch, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return [(tmp_path / f"{rank}.json").read_text() for rank in range(2)]

    return run
