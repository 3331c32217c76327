"""Every example runs, at the size that the environment variable FM_EXT_SMOKE makes small."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example(script, tmp_path):
    environment = os.environ | {
        "FM_EXT_SMOKE": "1",
        "MPLBACKEND": "agg",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    run = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"\d", run.stdout), "an example ends by printing the numbers that matter"
    assert list(tmp_path.glob("outputs/**/*.png")), "an example saves a picture"


def test_generate_judges_on_the_first_of_two_processes(tmp_path):
    environment = os.environ | {
        "FM_EXT_SMOKE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = subprocess.run(
        [*launch, ROOT / "examples" / "generate.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "frechet" in run.stdout and "right class" in run.stdout


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        ("generate", ["--samples", "100"], "--samples must lie in 194 to"),
        ("generate", ["--samples", "1000000"], "--samples must lie in 194 to the number"),
        ("inpaint_pretrained", ["--fills", "1"], "--fills must be at least 2"),
        ("inpainting", ["--fills", "1"], "--fills must be at least 2"),
    ],
)
def test_counts_that_cannot_be_judged_are_refused_before_training(
    script, arguments, message, tmp_path
):
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{script}.py", *arguments],
        cwd=tmp_path,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0 and message in run.stderr
    assert not (tmp_path / "outputs").exists()


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("README.md"))))
def test_readme_code_runs(number, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    exec(compile(blocks("README.md")[number], f"README.md block {number}", "exec"), {})
