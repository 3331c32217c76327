"""Sampling by the exponential step: DDIM, for any prediction and any schedule; with fresh noise, DDPM's own."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from flow_matching.solver.solver import Solver
from jaxtyping import Float
from torch import Tensor

from fm_ext.models.prediction import PredictionVelocityModel
from fm_ext.solver.field import TimePrecision, check_keywords, check_state
from fm_ext.solver.grids import check_grid, check_number, equal_steps
from fm_ext.utils.inputs import check_extras, entry_mask, randn_like


class ExponentialSolver(Solver):
    r"""Holds both expected ends over a step, and takes the step along the path between them.

    $$x_s = \alpha_s \hat x_1 + \sigma_s \hat x_0 = \frac{\sigma_s}{\sigma_t} x_t
    + \Big(\alpha_s - \alpha_t \frac{\sigma_s}{\sigma_t}\Big) \hat x_1,
    \qquad \hat x_0, \hat x_1 \text{ at } (x_t, t)$$

    This is DDIM with eta = 0 (Song et al., arXiv 2010.02502, equation 12), DPM-Solver-1 (arXiv 2206.00927, section
    4.1), and Euler's method in the coordinates of the straight path; for the straight path it is Euler's method. The
    schedule enters by its values alone, and nothing vanishes where the step arrives: at $t = 1$ the result is
    $\hat x_1$.

    With `eta` above 0 a part of the expected source is exchanged for fresh noise in each step,

    $$x_s = \alpha_s \hat x_1 + \sqrt{\sigma_s^2 - r^2}\, \hat x_0 + r\, z, \qquad
    r = \eta\, \sigma_s \sqrt{1 - \Big(\frac{\alpha_t \sigma_s}{\alpha_s \sigma_t}\Big)^2}$$

    (DDIM, equations 12 and 16). At eta = 1 this is DDPM's ancestral sampler, which draws $x_s$ from
    $q(x_s \mid x_t, \hat x_1)$. It leaves the law of an exact model as it is where steps are small, and forgets the
    errors of a trained one, which the ODE carries to the end. The source must be $N(0, I)$, independent of the data.

    Where a `mask` of the state's entries is among the extras (bool, True = missing), known entries stay as they are in
    `x_init`, bit for bit: the solver needs no `MaskedVelocityModel`. Start from `torch.where(mask, noise, image)`.

    Args:
        model: the network, its prediction and its schedule.

    Raises:
        TypeError: for any other model.
    """

    def __init__(self, model: PredictionVelocityModel):
        super().__init__()
        if not isinstance(model, PredictionVelocityModel):
            raise TypeError(
                f"`model` must be a PredictionVelocityModel, which knows both ends of the path; got "
                f"{type(model).__name__}. {_advice(model)}"
            )
        self.model = model

    def sample(  # pyright: ignore[reportIncompatibleMethodOverride]  # upstream's ODESolver differs too
        self,
        x_init: Float[Tensor, " batch *dim"],
        step_size: float | None,
        time_grid: Float[Tensor, " times"] | Sequence[float] | None = None,
        return_intermediates: bool = False,
        enable_grad: bool = False,
        *,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        **model_extras: object,
    ) -> Float[Tensor, "..."]:
        """Takes `x_init` from the first time of the grid to its last.

        Args:
            x_init: state at the first time, `(batch, ...)`.
            step_size: each interval of the grid is cut into equal steps of at most this length; None to step on the
                grid itself.
            time_grid: at least two times in [0, 1], up or down; [0, 1] if None.
            return_intermediates: whether to return the states at all times of the grid, or the last alone.
            enable_grad: whether to compute gradients.
            eta: DDIM's, in [0, 1], the factor of the fresh noise's standard deviation: 0 is the ODE, 1 is DDPM's
                ancestral sampler. Above 0 the source must be N(0, I), independent of the data.
            generator: of the fresh noise, drawn on its device and moved; the global one of `x_init`'s if None.
            **model_extras: handed to the network.

        Returns:
            `(batch, ...)`, or `(times, batch, ...)` with the intermediates, in the dtype of `x_init`. In half precision
            the network gets that dtype, and the state between steps and the time are float32.

        Raises:
            TypeError: for a keyword that nothing takes, or a misspelt one, and an `x_init` that is not floating point.
            ValueError: for a `step_size` that is not positive, a `time_grid` that leaves [0, 1] or goes neither up nor
                down, an `eta` outside [0, 1] or above 0 on a grid that goes down, and extras of another length than the
                batch.
        """
        check_keywords(self.model, model_extras, self, "sample")
        if step_size is not None and not (step_size := check_number("step_size", step_size)) > 0:
            raise ValueError(f"`step_size` must be positive or None; got {step_size}.")
        check_state("x_init", x_init)
        grid = check_grid(time_grid, (0.0, 1.0))
        if min(grid) < 0 or max(grid) > 1:  # where the schedule has no values
            raise ValueError(f"`time_grid` must lie in [0, 1]; got {grid[0]:g} to {grid[-1]:g}.")
        if not 0 <= (eta := check_number("eta", eta)) <= 1:
            raise ValueError(f"`eta` must lie in [0, 1]; got {eta:g}.")
        if eta > 0 and grid[-1] < grid[0]:
            raise ValueError(
                f"`eta` must be 0 on a `time_grid` that goes down, where no noise is left to renew; got {eta:g}."
            )
        extras = check_extras(model_extras, x_init)
        mask, dtype = entry_mask(extras, x_init), x_init.dtype
        in_time = TimePrecision(dtype)
        start = x = x_init.to(torch.promote_types(dtype, torch.float32))
        states = [x_init]
        with torch.set_grad_enabled(enable_grad):
            for first, last in pairwise(grid):
                for t, s in equal_steps(first, last, step_size):
                    x_0, x_1 = in_time(
                        lambda time, x=x: self.model.ends(x, time, dtype=dtype, **extras),
                        torch.tensor(t, dtype=x.dtype, device=x.device),
                    )
                    alpha, sigma, renewed = self._weights(t, s, eta)
                    x = alpha * x_1 + sigma * x_0
                    if renewed > 0:
                        x = x + renewed * randn_like(x, generator)
                    x = x if mask is None else torch.where(mask, x, start)
                if return_intermediates:
                    states.append(x.to(dtype))
        return torch.stack(states) if return_intermediates else x.to(dtype)

    def _weights(self, t: float, s: float, eta: float) -> tuple[float, float, float]:
        """Of the expected data, the expected source and fresh noise at `s`, after a step from `t`."""
        at = self.model.path.scheduler(torch.tensor([t, s], dtype=torch.float64))
        (alpha_t, alpha), (sigma_t, sigma) = (
            value.expand(2).tolist() for value in (at.alpha_t, at.sigma_t)
        )
        if eta == 0 or sigma == 0:
            return alpha, sigma, 0.0
        # Of the noise, at eta = 1; all of it where there is no data yet.
        kept = alpha_t * sigma / (alpha * sigma_t) if alpha > 0 else 1.0
        renewed = eta * sigma * math.sqrt(max(0.0, 1 - kept**2))
        return alpha, math.sqrt(sigma**2 - renewed**2), renewed


def _advice(model: object) -> str:
    """How to write what was meant."""
    inner = getattr(model, "model", None)
    if not isinstance(inner, PredictionVelocityModel):
        return "Write PredictionVelocityModel(model, scheduler, prediction=...)."
    name = type(model).__name__
    if "mask" in getattr(model, "own", ()):
        return f"Write ExponentialSolver(model.model), without {name}: with `mask=` it holds known entries itself."
    return f"Write PredictionVelocityModel({name}(network, ...), scheduler, prediction=...), with {name} inside."
