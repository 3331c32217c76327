"""Sampling by jumps between any two times."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from flow_matching.solver.solver import Solver
from jaxtyping import Float
from torch import Tensor

from fm_ext.models.mean_flow import MeanFlowModel
from fm_ext.solver.field import TimePrecision, check_keywords, check_state
from fm_ext.solver.grids import check_grid, subdivide
from fm_ext.utils.inputs import check_extras, check_whole, map_samples


class MeanFlowSolver(Solver):
    r"""Jumps from each time of a grid to the next, $x_r = x_t + (r - t)\,u(x_t, t, r)$: one evaluation each.

    With the exact average velocity every grid gives the same result, that of the exact flow (Geng et al., arXiv
    2505.13447). A trained one was trained for jumps from noise to data, where the grid goes up.

    Where a `mask` of the state's entries is among the extras (bool, True = missing), the model's answer is 0 at known
    entries, and they stay as they are in `x_init`, bit for bit. Start from `torch.where(mask, noise, image)`.

    Args:
        model: the network of two times.

    Attributes:
        nfe: evaluations of the last call.

    Raises:
        TypeError: for any other model. A wrapper around it may change the state or the time, and know nothing of r.
    """

    def __init__(self, model: MeanFlowModel):
        super().__init__()
        if not isinstance(model, MeanFlowModel):
            raise TypeError(
                f"`model` must be a MeanFlowModel, which knows both times; got {type(model).__name__}. Write "
                "MeanFlowSolver(MeanFlowModel(network)): with `mask=` it holds known entries itself."
            )
        self.model = model
        self.nfe = 0

    def sample(  # pyright: ignore[reportIncompatibleMethodOverride]  # upstream's ODESolver differs too
        self,
        x_init: Float[Tensor, " batch *dim"],
        steps: int | None = None,
        time_grid: Float[Tensor, " times"] | Sequence[float] | None = None,
        return_intermediates: bool = False,
        enable_grad: bool = False,
        *,
        batch_size: int | None = None,
        **model_extras: object,
    ) -> Float[Tensor, "..."]:
        """Takes `x_init` from the first time of the grid to its last.

        Args:
            x_init: state at the first time, `(batch, ...)`.
            steps: the number of equal jumps, for a grid of two times; None to jump on the grid itself, from 0 to 1 by
                one evaluation.
            time_grid: at least two times, up or down; [0, 1] if None.
            return_intermediates: whether to return the states at all times of the grid, or the last alone.
            enable_grad: whether to compute gradients.
            batch_size: how many samples to take at once; extras are split with it, but `shared` ones.
            **model_extras: handed to the network: `label`, `mask`, `guidance_scale`.

        Returns:
            `(batch, ...)`, or `(times, batch, ...)` with the intermediates, in the dtype of `x_init`. In half precision
            the network gets that dtype, and the state between jumps and the times are float32.

        Raises:
            TypeError: for a keyword that nothing takes, or a misspelt one, and an `x_init` that is not floating point.
            ValueError: for `steps` below 1 or beside a longer grid, a `time_grid` that goes neither up nor down, extras
                of another length than the batch, and the second time `r`, which the solver gives.
        """
        if "r" in model_extras:
            raise ValueError("`r` is given by the solver; its times are those of `time_grid`.")
        check_keywords(self.model, model_extras, self, "sample")
        check_state("x_init", x_init)
        intervals = subdivide(check_grid(time_grid, (0.0, 1.0)), None, steps)
        extras = check_extras(model_extras, x_init)
        size = max(
            1, len(x_init) if batch_size is None else check_whole("batch_size", batch_size, 1)
        )
        self.nfe, results = 0, []
        with torch.set_grad_enabled(enable_grad):
            for first in range(0, max(1, len(x_init)), size):
                piece = slice(first, first + size)
                own = map_samples(extras, lambda extra, piece=piece: extra[piece])
                results.append(self._jumps(x_init[piece], intervals, own))
        states = torch.cat(results, dim=1)
        return states if return_intermediates else states[-1]

    def _jumps(
        self, x_init: Tensor, intervals: list[list[float]], extras: dict[str, object]
    ) -> Tensor:
        """The states at all times of the grid."""
        dtype, in_time = x_init.dtype, TimePrecision(x_init.dtype)
        x = x_init.to(torch.promote_types(dtype, torch.float32))
        states = [x_init]
        for times in intervals:
            for t, r in pairwise(torch.tensor(times, dtype=x.dtype, device=x.device)):
                average = in_time(
                    lambda time, x=x, r=r: self.model(
                        x=x.to(dtype), t=time, r=r.to(time.dtype), **extras
                    ),
                    t,
                )
                x = x + (r - t) * average.to(x.dtype)
                self.nfe += 1
            states.append(x.to(dtype))
        return torch.stack(states)
