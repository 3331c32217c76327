"""Sampling through a change of schedule: the error against the exact flow of Gaussian data, for every pair and solver.

    python examples/benchmarks/schedule_transform.py

Prints max |x(1) - exact| in float32 with 100 steps (dopri5: tolerance 1e-5), first with upstream's
ScheduleTransformedModel on its own five schedulers, then with fm_ext's, then fm_ext's on ours. "fails" is NaN or an
exception of the solver.
"""

import os
from itertools import product

import torch
from flow_matching.path import scheduler as upstream
from flow_matching.path.scheduler import Scheduler
from flow_matching.solver import ODESolver
from flow_matching.utils import ModelWrapper
from torch import Tensor

from fm_ext.path.scheduler import ScheduleTransformedModel, get_scheduler

MEAN, STD = 2.0, 0.5
STEPS = 100
METHODS = ("euler", "midpoint", "heun2", "heun3", "rk4", "dopri5")
UPSTREAM = {
    "CondOT": upstream.CondOTScheduler(),
    "Poly2": upstream.PolynomialConvexScheduler(2),
    "VP": upstream.VPScheduler(),
    "LinVP": upstream.LinearVPScheduler(),
    "Cosine": upstream.CosineScheduler(),
}
OURS = {name: get_scheduler(name) for name in ("cosine", "iddpm_cosine", "vp", "linear_vp")}
OURS |= {name: get_scheduler(name) for name in ("sigmoid", "edm", "ve")}
OURS["shifted"] = get_scheduler("shifted", scheduler=upstream.CondOTScheduler(), shift=3.0)
OURS["beta_table"] = get_scheduler("beta_table", betas=torch.linspace(1e-4, 0.02, 1000))
if os.getenv("FM_EXT_SMOKE") == "1":
    STEPS, METHODS = 4, ("euler", "heun2")
    UPSTREAM = {name: UPSTREAM[name] for name in ("CondOT", "LinVP")}
    OURS = {name: OURS[name] for name in ("cosine", "beta_table")}


class GaussianVelocity(ModelWrapper):
    """The exact marginal velocity for data N(MEAN, STD^2)."""

    def __init__(self, scheduler: Scheduler):
        super().__init__(torch.nn.Identity())
        self.scheduler = scheduler

    def forward(self, x: Tensor, t: Tensor, **extras: object) -> Tensor:
        out = self.scheduler(t)
        variance = out.alpha_t**2 * STD**2 + out.sigma_t**2
        growth = out.alpha_t * out.d_alpha_t * STD**2 + out.sigma_t * out.d_sigma_t
        return out.d_alpha_t * MEAN + growth / variance * (x - out.alpha_t * MEAN)


def exact(scheduler: Scheduler, x: Tensor) -> Tensor:
    """The map between the Gaussians at both ends, which is the flow."""
    start, end = (scheduler(torch.tensor(t, dtype=torch.float64)) for t in (0.0, 1.0))
    std = [(out.alpha_t**2 * STD**2 + out.sigma_t**2).sqrt() for out in (start, end)]
    return end.alpha_t * MEAN + std[1] / std[0] * (x - start.alpha_t * MEAN)


def table(title: str, transform: type[ModelWrapper], schedulers: dict[str, Scheduler]) -> None:
    print(f"\n{title}\n{'original':13}{'new':13}" + "".join(f"{method:>10}" for method in METHODS))
    x, worst = torch.tensor([[-1.0], [0.3], [1.7]]), dict.fromkeys(METHODS, 0.0)
    failures = dict.fromkeys(METHODS, 0)
    for (original, old), (name, new) in product(schedulers.items(), repeat=2):
        solver, cells = ODESolver(transform(GaussianVelocity(old), old, new)), []  # type: ignore[call-arg]
        for method in METHODS:
            step_size = None if method == "dopri5" else 1 / STEPS
            try:
                end = solver.sample(x_init=x, step_size=step_size, method=method)
                error = (torch.as_tensor(end) - exact(new, x)).abs().max().item()
            except AssertionError:  # torchdiffeq: underflow in dt
                error = float("nan")
            failures[method] += error != error
            worst[method] = max(worst[method], error) if error == error else worst[method]
            cells.append("fails" if error != error else f"{error:.1e}")
        print(f"{original:13}{name:13}" + "".join(f"{cell:>10}" for cell in cells))
    print(f"{'worst':26}" + "".join(f"{worst[method]:10.1e}" for method in METHODS))
    print(f"{'failures':26}" + "".join(f"{failures[method]:10d}" for method in METHODS))


table("upstream", upstream.ScheduleTransformedModel, UPSTREAM)
table("fm_ext on upstream's schedulers", ScheduleTransformedModel, UPSTREAM)
table("fm_ext on its own schedulers", ScheduleTransformedModel, OURS)
