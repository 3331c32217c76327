"""The precision that a schedule is computed in, and its values outside [0, 1]."""

import torch
from flow_matching.path.scheduler import SchedulerOutput
from torch import Tensor


def single(value: Tensor) -> Tensor:
    """`value`, in float32 if it is in half precision: no formula of a schedule survives 8 or 11 bits.

    Raises:
        TypeError: for integers, on which a schedule is always a mistake.
    """
    if not value.is_floating_point():
        raise TypeError(
            f"`t` (or `snr`) must be a floating point tensor; got {value.dtype}. Write `t.float()`; "
            "a DDPM index k of T is the time t = 1 - k / (T - 1)."
        )
    return value.to(torch.promote_types(value.dtype, torch.float32))


def double(value: Tensor) -> Tensor:
    """`value` in float64, in float32 on the one backend (mps) that has no float64."""
    return value.to(torch.float32 if value.device.type == "mps" else torch.float64)


def hold(t: Tensor) -> Tensor:
    """`t` in [0, 1], and the nearer end outside; unlike `clamp`, it has slope 1 at the ends too."""
    return t.masked_fill(t < 0, 0.0).masked_fill(t > 1, 1.0)


def outside(t: Tensor) -> Tensor:
    """Where `hold` holds, and derivatives are 0."""
    return (t < 0) | (t > 1)


def cast(output: SchedulerOutput, dtype: torch.dtype) -> SchedulerOutput:
    """`output` with its four values in `dtype`."""
    if output.alpha_t.dtype == dtype:
        return output
    return SchedulerOutput(
        alpha_t=output.alpha_t.to(dtype),
        sigma_t=output.sigma_t.to(dtype),
        d_alpha_t=output.d_alpha_t.to(dtype),
        d_sigma_t=output.d_sigma_t.to(dtype),
    )
