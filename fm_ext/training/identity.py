"""What makes a resumed run the same run."""

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import accelerate
import safetensors
import torch
from accelerate import Accelerator

import fm_ext
from fm_ext.training.config import TrainerConfig

# Settings that may differ when a run is resumed; all others decide on its weights.
_CHANGEABLE = {"steps", "log_every", "save_every", "keep", "output_dir", "resume"}


def describe_run(
    config: TrainerConfig, accelerator: Accelerator, batches_per_epoch: int | None
) -> dict[str, Any]:
    """A run's settings, as they stand in `trainer.json`: every value is what JSON gives back."""
    described = {
        "config": asdict(config),
        "run": {
            "processes": accelerator.num_processes,
            "gradient_accumulation_steps": accelerator.gradient_accumulation_steps,
            "mixed_precision": accelerator.mixed_precision,
            "batches_per_epoch": batches_per_epoch,
        },
        "versions": {
            "python": platform.python_version(),
            **{m.__name__: m.__version__ for m in (torch, accelerate, safetensors, fm_ext)},
        },
    }
    return json.loads(json.dumps(described, default=os.fspath))


def check_same_run(checkpoint: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuses to mix two runs.

    Args:
        checkpoint: for the error.
        old: its manifest.
        new: `describe_run` of the run that wants to go on from it.

    Raises:
        ValueError: naming the first setting that differs, and what to do.
    """
    for name, now in (new["config"] | new["run"]).items():
        before = (old["config"] | old["run"]).get(name, now)
        if name in _CHANGEABLE or before == now:
            continue
        advice = {
            "processes": f"Start it on {before} (accelerate launch --num_processes {before}).",
            "batches_per_epoch": "Give it the same data in batches of the same size.",
        }.get(name, "Set it back.")
        raise ValueError(
            f"`{name}` is {now}, but {checkpoint} was trained with {before}, and a resumed run must be the same run. "
            f"{advice} To start a new run from these weights, call fm_ext.training.load_weights on the model and "
            "choose another `output_dir`."
        )
    if new["config"]["steps"] < old["step"]:
        raise ValueError(
            f"`steps` must be at least the {old['step']} steps that {checkpoint} has; got {new['config']['steps']}."
        )
