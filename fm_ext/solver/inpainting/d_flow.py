"""The source is optimised until the flow meets the known entries: D-Flow."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fm_ext.solver.inpainting.krylov import dot
from fm_ext.solver.inpainting.lbfgs import minimise
from fm_ext.solver.inpainting.method import Method, check, whole
from fm_ext.solver.inpainting.problem import Problem


@dataclass(frozen=True)
class DFlow(Method):
    r"""Minimises $\|y - H\,x_1(x_0)\|^2$ over the source by L-BFGS, through the whole ODE (arXiv 2402.14017).

    From noise, and without a regulariser: the gradients then move $x_0$ only across the set of sources that fit. For a
    linear flow this is the orthogonal projection of the noise on that set, which is an exact draw from the posterior.
    It needs neither a Gaussian source nor an independent one. The graph of all `steps` evaluations is kept in memory:
    the paper takes 6.

    Args:
        iterations: of L-BFGS; each costs `steps` evaluations and gradients, more where it has to backtrack.
    """

    independent = False
    iterations: int = 20

    def __post_init__(self) -> None:
        check("d_flow", iterations=(self.iterations, whole(1)))

    def fill(self, problem: Problem) -> Tensor:
        def objective(x_0: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                x_0 = x_0.detach().requires_grad_()
                misfit = problem.residual(problem.endpoint(x_0))
                value = dot(misfit, misfit)
                (gradient,) = torch.autograd.grad(value.sum(), x_0)
            problem.gradients += problem.steps
            return value.detach(), gradient

        iterations = problem.bar(self.iterations)
        return problem.endpoint(minimise(objective, problem.noise(), iterations))
