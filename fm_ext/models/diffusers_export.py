"""Velocity models whose network is diffusers', as its folders: `to_diffusers`."""

import copy
import inspect
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fm_ext.models.diffusers import (
    DiffusersVelocityModel,
    class_name,
    config_of,
    import_diffusers,
)
from fm_ext.models.wrapper import UNetWrapper


def to_diffusers(
    model: nn.Module, folder: str | os.PathLike[str], *, shift: float | None = None
) -> None:
    r"""Writes a flow whose network is diffusers' as a folder of diffusers, whose own loop gives our samples.

    The folder holds the network and a `FlowMatchEulerDiscreteScheduler`: a whole `DDPMPipeline` for a `UNet2DModel`,
    else the two subfolders. diffusers asks the network for noise minus data at $1000 (1 - t)$. A network that was
    trained by `UNetWrapper` with another sign or direction of time is stored with weights that make up for it exactly:
    the last layer's sign is turned, and the first layer of the time embedding takes the sines and cosines of
    $c \pm k$ for those of $k$.

    Args:
        model: what `from_diffusers` made, or a `UNetWrapper` around a network of diffusers, `trainer.ema_model` for
            one; trained on the straight path to answer with a velocity.
        folder: where to.
        shift: of the scheduler, which decides where the pipeline steps; None for that of `from_diffusers`, else 1.

    Raises:
        TypeError: for a model that is neither, or a network of another library.
        ValueError: for extra channels (`concat`), a time that is no linear function with a whole slope, or weights that
            cannot make up for it.
        ImportError: without diffusers.
    """
    diffusers = import_diffusers("to_diffusers")
    if isinstance(model, DiffusersVelocityModel):
        if model.table is not None:
            raise ValueError(
                "`model` must be a flow; this one is a DDPM, whose own `save_pretrained` keeps its table."
            )
        kind, network = diffusers.FlowMatchEulerDiscreteScheduler, model.network
        changed = {} if shift is None else {"shift": shift}
        scheduler = kind(**(_known(kind, config_of(model.scheduler)) | changed))
    elif isinstance(model, UNetWrapper):
        network, levels = _folded(model)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
            levels, shift=1.0 if shift is None else shift
        )
    else:
        raise TypeError(
            f"`model` must be what from_diffusers made, or a UNetWrapper around a network of diffusers; got "
            f"{type(model).__name__}. Other wrappers, masked or guided, belong to sampling: give what is inside."
        )
    network = getattr(network, "_orig_mod", network)
    if not hasattr(network, "save_pretrained"):
        raise TypeError(
            f"`model` must hold a network of diffusers; got {type(network).__name__}. fm_ext.models.UNet has no "
            "counterpart there: train a diffusers.UNet2DModel."
        )
    folder = Path(folder).expanduser()
    if isinstance(network, diffusers.UNet2DModel):
        diffusers.DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(folder)
        return
    kind = "unet" if "UNet" in class_name(network) else "transformer"
    save: Any = network.save_pretrained
    save(folder / kind)
    scheduler.save_pretrained(folder / "scheduler")


def _folded(wrapper: UNetWrapper) -> tuple[nn.Module, int]:
    """A copy of the network that answers with noise minus data at `levels * (1 - t)`, and `levels`."""
    if wrapper.concat:
        raise ValueError(
            f"`model` must take no further channels, which diffusers' loop has not; got concat={wrapper.concat}."
        )
    probe = torch.linspace(0, 1, 5, dtype=torch.float64)
    scale = wrapper.time_scale
    times = scale(probe) if callable(scale) else scale * probe
    first, slope = float(times[0]), float(times[-1] - times[0])
    levels = round(abs(slope))
    if (
        levels < 2
        or not torch.allclose(times, first + slope * probe, atol=1e-6)
        or abs(abs(slope) - levels) > 1e-6
    ):
        raise ValueError(
            "`time_scale` must be linear in t with a whole slope of at least 2, such as 1000, to be a number of "
            f"diffusers' timesteps; got {times.tolist()} at t = {probe.tolist()}."
        )
    if wrapper.output_scale not in (1, -1):
        raise ValueError(f"`output_scale` must be 1 or -1; got {wrapper.output_scale}.")
    network = copy.deepcopy(getattr(wrapper.model, "_orig_mod", wrapper.model)).requires_grad_(True)
    # The network is asked for k = levels * (1 - t) and wants first + slope * t.
    direction, offset = (-1 if slope > 0 else 1), first + slope
    with torch.no_grad():
        if direction != 1 or offset != 0:
            _reverse_time(network, direction, offset)
        if wrapper.output_scale == 1:
            _turn_sign(network)
    return network, levels


def _reverse_time(network: nn.Module, direction: int, offset: float) -> None:
    """Makes the time embedding of `direction * k + offset` from that of k, in its first linear layer."""
    found = False
    for module in network.modules():
        project: Any = getattr(module, "time_proj", None)
        embed = getattr(module, "time_embedding", getattr(module, "timestep_embedder", None))
        frequencies = ("num_channels", "flip_sin_to_cos", "downscale_freq_shift")
        if embed is None or not all(hasattr(project, name) for name in frequencies):
            continue
        found, half = True, project.num_channels // 2
        exponent = torch.arange(half, dtype=torch.float64) / (half - project.downscale_freq_shift)
        rate = torch.exp(-math.log(10000) * exponent) * getattr(project, "scale", 1)
        sin, cos = torch.sin(rate * offset), torch.cos(rate * offset)
        weight = embed.linear_1.weight
        columns = weight.double().split([half, half, weight.shape[1] - 2 * half], 1)
        of_sin, of_cos = columns[:2] if not project.flip_sin_to_cos else columns[1::-1]
        sin, cos = sin.to(weight.device), cos.to(weight.device)
        new_sin = direction * (of_sin * cos - of_cos * sin)
        new_cos = of_sin * sin + of_cos * cos
        both = (new_sin, new_cos) if not project.flip_sin_to_cos else (new_cos, new_sin)
        weight.copy_(torch.cat([*both, columns[2]], 1))
    if not found:
        raise ValueError(
            f"`time_scale` must be lambda t: 1000 * (1 - t) for a {class_name(network)}, whose time embedding is not "
            "of sines and cosines. Train it so, with output_scale=-1, or by "
            "from_diffusers(network, scheduler=FlowMatchEulerDiscreteScheduler())."
        )


def _turn_sign(network: nn.Module) -> None:
    """Makes the network answer with the other sign."""
    layers = [getattr(network, name, None) for name in ("conv_out", "proj_out_2", "proj_out")]
    last = next(
        (layer for layer in layers if isinstance(getattr(layer, "weight", None), Tensor)), None
    )
    if last is None:
        raise ValueError(
            f"`output_scale` must be -1 for a {class_name(network)}, whose last layer is not known here. Train it by "
            "from_diffusers(network, scheduler=FlowMatchEulerDiscreteScheduler())."
        )
    for parameter in last.parameters():
        parameter.neg_()


def _known(kind: type, config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in inspect.signature(kind).parameters if name in config}
