"""The accelerator uses the hardware of the machine, and the user's word comes first."""

import os

import pytest
import torch

from fm_ext.training import accelerator, auto_accelerator


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
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
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
    assert auto_accelerator(**settings).mixed_precision == expected


@pytest.mark.parametrize(("processes", "threads"), [(None, 3), ("1", 3), ("2", 1), ("4", 1)])
def test_processes_of_a_machine_share_the_cores_that_are_free(
    monkeypatch, machine, processes, threads
):
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    auto_accelerator()
    assert machine == [threads]


def test_cores_where_the_system_does_not_tell_which_are_free(monkeypatch, machine):
    monkeypatch.delattr(os, "sched_getaffinity")
    auto_accelerator()
    assert machine == [8]


@pytest.mark.parametrize("launcher", [None, "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"])
def test_threads_that_the_user_chose_stay_and_those_of_a_launcher_do_not(
    monkeypatch, machine, launcher
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if launcher:
        monkeypatch.setenv(launcher, "no")
    auto_accelerator()
    assert machine == ([3] if launcher else [])


def test_settings_are_accelerates(forget_accelerate):
    assert auto_accelerator(gradient_accumulation_steps=3).gradient_accumulation_steps == 3
    forget_accelerate()
    with pytest.raises(TypeError, match="steps_of_accumulation"):
        auto_accelerator(steps_of_accumulation=3)


LEAVE = """
import json, sys, time
import torch
from fm_ext.training import auto_accelerator, leave_to_main

accelerator = auto_accelerator()
model = accelerator.prepare(torch.nn.Linear(2, 2))
model(torch.ones(1, 2)).sum().backward()
path = f"{sys.argv[1]}/{accelerator.process_index}.json"
json.dump("before", open(path, "w"))
total = accelerator.gather(torch.full((1,), accelerator.process_index)).sum().item()
print("seen by", accelerator.process_index)
leave_to_main(accelerator)
time.sleep(0.5)  # nobody waits
json.dump(["after", total], open(path, "w"))
"""


def test_the_main_process_goes_on_alone(two_processes):
    first, second = two_processes(LEAVE)
    assert (first, second) == ('["after", 1]', '"before"')
