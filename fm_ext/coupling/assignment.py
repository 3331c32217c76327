"""The assignment problem, exactly: near prices first, then shortest augmenting paths."""

import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

SMALL = 128
"""Rows up to which better prices take longer to find than they save."""

EPSILONS = 0.1, 0.02, 0.005, 0.001
"""Regularisation, in units of the mean cost above the minima of rows and columns."""

SWEEPS = 6
"""Sinkhorn iterations with each of them."""

TIED = 4
"""Zeros a row, on average, above the minima: with more of them there are many optima, and prices only hide the ties."""

CROWDED = 0.3
"""Part of all costs, near 0 for the last of EPSILONS: beyond it a few large costs have set the unit."""

RELAXATION = 1.5
"""Of the iterations: 1 is Sinkhorn's own step, and from 2 on they diverge."""


def assign(cost: Float[Tensor, "n n"]) -> Int64[Tensor, " n"]:
    r"""The permutation $\pi$ with the least $\sum_i C_{i \pi(i)}$, on the CPU.

    By scipy's `linear_sum_assignment` (Crouse, IEEE TAES 52(4), 2016) of $C_{ij} - v_j$ in float64. Prices v of the
    columns change no optimum, and the nearer they are to those of the dual problem, the shorter the paths that the
    solver has to search. Where several permutations are the cheapest, rounding decides between them.

    Args:
        cost: the cost of giving row i column j, finite, on any device.
    """
    reduced = cost.cpu() - _prices(cost).cpu().double()
    return torch.from_numpy(linear_sum_assignment(reduced.numpy())[1]).long()


def _prices(cost: Tensor) -> Tensor:
    r"""Nearly optimal v of the dual problem $\max_v \sum_i \min_j (C_{ij} - v_j) + \sum_j v_j$.

    The minima of the columns above those of the rows; of large problems, the potentials of the entropic plan, by
    over-relaxed Sinkhorn iterations (Thibault et al., arXiv 1711.01851) from a large to a small regularisation. Not
    where many costs are equal, or nearly so beside the mean cost: there the solver is faster from the minima.
    """
    slack = cost - cost.amin(1, keepdim=True)
    minima = slack.amin(0)
    slack -= minima
    n = len(cost)
    if n <= SMALL or (slack == 0).sum() > TIED * n:
        return minima
    unit = slack.mean()
    if (slack <= EPSILONS[-1] * unit).sum() > CROWDED * n * n:
        return minima
    slack = slack.div_(unit).float()
    kernel = torch.empty_like(slack)
    v = torch.zeros_like(slack[0])
    for epsilon in EPSILONS:
        torch.sub(v, slack, out=kernel)
        kernel -= kernel.amax(1, keepdim=True)
        # No entry below e^-20: scalings stay within float32, and products with denormal numbers are slow.
        kernel.div_(epsilon).clamp_min_(-20).exp_()
        a = b = torch.ones_like(v)
        for _ in range(SWEEPS):
            a = a * (a * (kernel @ b)) ** -RELAXATION
            b = b * (b * (a @ kernel)) ** -RELAXATION
        v = v + epsilon * b.log()
    return minima + unit * v
