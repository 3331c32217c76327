"""Every example and every benchmark runs, at the size that the environment variable FM_EXT_SMOKE makes small."""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def scripts(folder: str) -> list[Path]:
    """Those whose docstring says how they are started; the others are modules that they import."""
    found = sorted((ROOT / folder).glob("*.py"))
    return [
        path
        for path in found
        if f"{folder}/{path.name}" in (ast.get_docstring(ast.parse(path.read_text())) or "")
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a script in a folder, with arguments; returns its exit status and what it wrote."""
    environment = os.environ | {
        "FM_EXT_SMOKE": "1",
        "MPLBACKEND": "agg",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests/fork_server.py"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def start(script: Path, folder: Path, *arguments: str) -> tuple[int, str]:
        log = folder / "log.txt"
        paths = {"script": str(script), "folder": str(folder), "log": str(log)}
        server.stdin.write(json.dumps({**paths, "arguments": arguments}) + "\n")
        server.stdin.flush()
        return int(server.stdout.readline()), log.read_text()

    yield start
    server.stdin.close()
    server.stdout.close()
    server.wait()


@pytest.mark.parametrize("script", scripts("examples"), ids=lambda path: path.stem)
def test_example(script, run, tmp_path):
    status, output = run(script, tmp_path)
    assert status == 0, output
    assert re.search(r"\d", output), "an example ends by printing the numbers that matter"
    assert list(tmp_path.glob("outputs/**/*.png")), "an example saves a picture"


DIGITS, WEIGHTS = ROOT / "examples/data/mnist", ROOT / "fm_ext/hub/weights"
ARGUMENTS = {
    "classifiers": ["mnist", str(DIGITS)],
    "filling": ["--only", "lean, base"],
    "ship": ["mnist", str(WEIGHTS / "mnist"), "--output", "outputs"],
}


@pytest.mark.parametrize("script", scripts("examples/benchmarks"), ids=lambda path: path.stem)
def test_benchmark(script, run, tmp_path):
    status, output = run(script, tmp_path, *ARGUMENTS.get(script.stem, ()))
    assert status == 0, output
    assert re.search(r"\d", output), "a benchmark prints what it measures"


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
    script, arguments, message, run, tmp_path
):
    status, output = run(ROOT / "examples" / f"{script}.py", tmp_path, *arguments)
    assert status != 0 and message in output
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_ngram_model_fills_by_the_exact_posterior(order):
    """Against all fills of three holes among seven symbols of an alphabet of four."""
    generator = np.random.default_rng(0)
    code = runpy.run_path(str(ROOT / "examples" / "benchmarks" / "ngram.py"))
    model = code["NGramModel"](generator.integers(0, 4, 300), order, 4)
    text = generator.integers(0, 4, (1, 7))
    missing = np.array([[0, 1, 0, 1, 1, 0, 0]], dtype=bool)
    fills = np.array(list(product(range(4), repeat=3)))
    weights = []
    for fill in fills:
        text[missing] = fill
        weights.append(2 ** (-7 * model.bits(text, 0)))
    posterior = np.array(weights) / sum(weights)
    means = [np.bincount(fills[:, place], posterior).argmax() for place in range(3)]
    best, _ = model.fill(text[0], missing[0], 0, generator)
    assert best[missing[0]].tolist() == means
    drawn = [model.fill(text[0], missing[0], 0, generator)[1][missing[0]] for _ in range(1500)]
    counts = np.bincount(np.array(drawn) @ [16, 4, 1], minlength=64)
    assert np.abs(counts / 1500 - posterior).max() < 5 * (posterior.max() / 1500) ** 0.5
    np.testing.assert_allclose(model.next(text[:, :5]).sum(), 1)


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("README.md"))))
def test_readme_code_runs(number, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    exec(compile(blocks("README.md")[number], f"README.md block {number}", "exec"), {})
