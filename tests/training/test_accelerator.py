"""What a machine has is used, and what the user says comes first."""

import os

import pytest
import torch
from accelerate.state import AcceleratorState

from fm_ext.training import accelerator, default_accelerator


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Eight cores, of which three are free to this process, that compute in bfloat16."""
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 2, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(accelerator, "_computes_in_bf16", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return threads


@pytest.mark.parametrize(
    ("bf16", "launched", "asked", "expected"),
    [
        (True, None, None, "bf16"),
        (False, None, None, "no"),
        (True, "no", None, "bf16"),  # what `accelerate launch` sets by default
        (False, "bf16", None, "bf16"),
        (True, "bf16", "no", "no"),
        (True, None, "no", "no"),
    ],
)
def test_precision(monkeypatch, bf16, launched, asked, expected):
    monkeypatch.setattr(accelerator, "_computes_in_bf16", lambda: bf16)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    settings = {} if asked is None else {"mixed_precision": asked}
    assert default_accelerator(**settings).mixed_precision == expected


@pytest.mark.parametrize(("processes", "threads"), [(None, 3), ("1", 3), ("2", 1), ("4", 1)])
def test_processes_of_a_machine_share_the_cores_that_are_free(
    monkeypatch, machine, processes, threads
):
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    default_accelerator()
    assert machine == [threads]


def test_cores_where_the_system_does_not_tell_which_are_free(monkeypatch, machine):
    monkeypatch.delattr(os, "sched_getaffinity")
    default_accelerator()
    assert machine == [8]


def test_settings_are_accelerates():
    assert default_accelerator(gradient_accumulation_steps=3).gradient_accumulation_steps == 3
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(TypeError, match="steps_of_accumulation"):
        default_accelerator(steps_of_accumulation=3)
