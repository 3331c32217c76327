"""torch.compile does not see through the run-time types of this suite: its laws have a process without them."""

import subprocess
import sys
from pathlib import Path


def test_compiled_steps():
    plain = ["--import-mode=importlib", "--confcutdir", Path(__file__).parent]
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-o",
            "addopts=",
            *plain,
            Path(__file__).with_name("compiled.py"),
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
