"""Everything that training changes, in a folder."""

from pathlib import Path

import safetensors.torch
from accelerate import Accelerator
from torch import nn

from fm_ext.training.ema import ExponentialMovingAverage
from fm_ext.training.weights import EMA, MODEL, load_weights


def save_state(
    folder: Path,
    model: nn.Module,
    average: ExponentialMovingAverage | None,
    accelerator: Accelerator,
) -> None:
    """Saves the weights as safetensors, and by accelerate the optimiser and the objects registered with it.

    The weights are not left to accelerate, which names those of a compiled model otherwise, and saves every other model
    that it has prepared too, frozen ones included.

    Args:
        folder: exists; all processes call this.
        model: out of all wrappers.
        average: its average, if one is kept.
        accelerator: has prepared model and optimiser.
    """
    if accelerator.is_main_process:
        safetensors.torch.save_model(model, str(folder / MODEL))
        if average:
            safetensors.torch.save_model(average.module, str(folder / EMA))
    hook = accelerator.register_save_state_pre_hook(lambda _, weights, __: weights.clear())
    try:
        accelerator.save_state(str(folder))
    finally:
        hook.remove()


def load_state(
    folder: Path,
    model: nn.Module,
    average: ExponentialMovingAverage | None,
    accelerator: Accelerator,
) -> None:
    """Loads what `save_state` has saved, on every process.

    Raises:
        ValueError: if the model is not like the saved one.
    """
    load_weights(folder / MODEL, model)
    if average:
        load_weights(folder / EMA, average.module)
    hook = accelerator.register_load_state_pre_hook(lambda models, _: models.clear())
    try:
        accelerator.load_state(str(folder))
    finally:
        hook.remove()
