"""Laws of a run on two processes, all from one launch of `processes.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from fm_ext.training import TrainerConfig, latest_checkpoint

SCRIPT = Path(__file__).with_name("processes.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*launch, SCRIPT, folder], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def results(folder) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_processes_agree(results) -> None:
    """On the weights, their average and the optimiser, though the networks began differently."""
    for what in (
        "model",
        "ema",
        "optimizer",
    ):  # the statistics of batch norm are each process's own
        assert results[0]["whole"][what] == results[1]["whole"][what]


@pytest.mark.parametrize("step", range(1, 8))
def test_resumed_is_uninterrupted(results, step) -> None:
    for result in results:
        assert result["resumed"][str(step)] == result["whole"]


def test_steps_are_those_of_the_optimiser(results) -> None:
    """The schedule advances once a step, not once a step and process."""
    config = TrainerConfig(steps=8, warmup=2)
    assert results[0]["rates"] == pytest.approx([0.01 * config.lr_factor(k) for k in range(8)])


def test_processes_draw_different_noise(results) -> None:
    first, second = (result["noises"] for result in results)
    assert not set(first) & set(second)
    assert len(set(first)) == len(first) == 12


def test_an_epoch_shows_each_sample(results) -> None:
    """3 batches of 4 on each of two processes: 22 samples, 2 of them twice."""
    for epoch in range(2):
        seen = [i for r in results for rows in r["rows"][3 * epoch : 3 * epoch + 3] for i in rows]
        assert len(seen) == 24
        assert set(seen) == set(range(22))
    assert results[0]["rows"][:3] != results[0]["rows"][3:6]


def test_the_files_are_those_of_a_bare_network(folder) -> None:
    checkpoint = latest_checkpoint(folder / "whole")
    assert checkpoint
    for name in ("model.safetensors", "ema.safetensors"):
        with safe_open(checkpoint / name, framework="pt") as file:
            assert "0.weight" in file.keys()


def test_a_loss_that_is_not_finite_on_one_stops_all(results) -> None:
    for result in results:
        assert result["error"].startswith("the loss is nan at step 3 on process 1;")
        assert "step_00000002" in result["error"]


def test_a_save_that_fails_on_one_is_told_to_all(results) -> None:
    for result in results:
        assert "process 1: OSError: [Errno 28] No space left" in result["failed_save"]
        assert "the last good checkpoint is" in result["failed_save"]
        assert result["left"] == ["step_00000002"]


def test_a_folder_that_the_main_process_cannot_write_to_is_told_to_all(results) -> None:
    for result in results:
        assert "process 0: FileExistsError" in result["blocked"]


def test_other_data_are_refused_on_all(results) -> None:
    for result in results:
        assert "`loader` must yield the data" in result["other_data"]


def test_sigterm_to_one_stops_all_at_the_same_step(folder, results) -> None:
    for result in results:
        assert (result["stopped_at"], result["exit_status"]) == (5, 143)
    newest = latest_checkpoint(folder / "stopped")
    assert newest and newest.name == "step_00000005"


def test_rows_that_fill_a_batch_of_one_process_only(results) -> None:
    """The advice has been followed by then: both cures have trained."""
    for result in results:
        assert (
            "got 5 rows in batches of 4 for 2. Fix: batches of at most 2, or" in result["no_batch"]
        )
