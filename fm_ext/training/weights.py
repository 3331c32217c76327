"""Weights as safetensors, which anybody can read."""

import os
from pathlib import Path

import safetensors.torch
from safetensors import safe_open
from torch import nn

from fm_ext.training.checkpoint import latest_checkpoint

MODEL = "model.safetensors"
EMA = "ema.safetensors"


def bare(model: nn.Module) -> nn.Module:
    """The network inside `torch.compile`'s wrapper, so that parameter names do not depend on it."""
    return getattr(model, "_orig_mod", model)


def load_weights(path: str | os.PathLike[str], model: nn.Module, *, ema: bool = True) -> None:
    """Loads the weights of a training run into a network, without a trainer.

    Args:
        path: a `.safetensors` file, a checkpoint, or a run's `output_dir`, for its newest checkpoint.
        model: a network like the trained one, compiled or not; it is changed in place, on its own device.
        ema: of a checkpoint, take the averaged weights, else those of the last step.

    Raises:
        FileNotFoundError: if there are no such weights.
        ValueError: if names or shapes differ; the model is then unchanged.
    """
    file = Path(path)
    if file.is_dir():
        name = EMA if ema else MODEL
        file = file if (file / MODEL).exists() else latest_checkpoint(file) or file
        file = file / name
    if not file.is_file():
        raise FileNotFoundError(
            f"`path` holds no weights: {file} does not exist. Give a .safetensors file, a checkpoint or the output_dir "
            "of a run; of a run without an average (ema_decay=None), load with ema=False."
        )
    model = bare(model)
    with safe_open(file, framework="pt") as stored:
        theirs = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}
        shared = set(stored.metadata() or ())
    mine = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    faults = [f"{name} is missing in the file" for name in mine.keys() - theirs.keys() - shared]
    faults += [f"{name} is not in `model`" for name in theirs.keys() - mine.keys()]
    faults += [
        f"{name} has shape {theirs[name]} in the file and {mine[name]} in `model`"
        for name in theirs.keys() & mine.keys()
        if theirs[name] != mine[name]
    ]
    if faults:
        listed = "; ".join(sorted(faults)[:5]) + ("; ..." if len(faults) > 5 else "")
        raise ValueError(
            f"`model` must be built like the network that was trained; against {file}, {len(faults)} tensors differ: "
            f"{listed}."
        )
    safetensors.torch.load_model(model, file)
