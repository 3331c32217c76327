"""L-BFGS with one history and one line search for every sample of a batch."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fm_ext.solver.inpainting.krylov import dot

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]


def minimise(
    objective: Objective, x: Tensor, iterations: Iterable[int], history: int = 10
) -> Tensor:
    """A minimiser from `x`: samples share the evaluations and nothing else, unlike in `torch.optim.LBFGS`.

    Nocedal and Wright, Numerical Optimization, algorithm 7.4, with backtracking to Armijo's condition. A sample
    stays where it is if it finds no better point in 10 halvings, or where less than the rounding of its first value is
    to be gained; when all do, the search ends.

    Args:
        objective: `x` to its values `(batch, 1, ..., 1)` and gradients.
        x: `(batch, ...)`.
        iterations: `range` of the directions tried, or a progress bar over it.
        history: pairs remembered.
    """
    value, gradient = objective(x)
    rounding = torch.finfo(value.dtype).eps * value
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    for i in iterations:
        direction = -inverse_hessian(pairs, gradient)
        slope = dot(direction, gradient)
        direction = torch.where(slope < 0, direction, -gradient)
        slope = torch.where(slope < 0, slope, -dot(gradient, gradient))
        length = torch.ones_like(slope)
        if i == 0:
            length = (1 / dot(gradient, gradient).sqrt().clamp(min=1e-30)).clamp(max=1)
        new, new_value, new_gradient = x, value, gradient
        searching = slope < -rounding
        if not bool(searching.any()):
            break
        for _ in range(10):
            trial = x + length * direction
            trial_value, trial_gradient = objective(trial)
            good = searching & (trial_value <= value + 1e-4 * length * slope)
            new = torch.where(good, trial, new)
            new_value = torch.where(good, trial_value, new_value)
            new_gradient = torch.where(good, trial_gradient, new_gradient)
            searching = searching & ~good
            if not bool(searching.any()):
                break
            length = length / 2
        s, y = new - x, new_gradient - gradient
        curvature = dot(s, y)
        kept = curvature > 1e-10 * dot(y, y)
        inverse = torch.where(kept, 1 / torch.where(kept, curvature, 1.0), 0.0)
        pairs = [*pairs, (s, y, inverse)][-history:]
        x, value, gradient = new, new_value, new_gradient
    return x


def inverse_hessian(pairs: list[tuple[Tensor, Tensor, Tensor]], gradient: Tensor) -> Tensor:
    """The two-loop recursion; a pair without positive curvature, whose `inverse` is 0, counts for nothing."""
    q, shares = gradient, []
    for s, y, inverse in reversed(pairs):
        share = inverse * dot(s, q)
        q = q - share * y
        shares.append(share)
    scale = torch.ones_like(dot(q, q))
    for _, y, inverse in pairs:  # of the latest pair that counts
        scale = torch.where(inverse > 0, 1 / (inverse * dot(y, y)).clamp(min=1e-30), scale)
    q = scale * q
    for (s, y, inverse), share in zip(pairs, reversed(shares), strict=True):
        q = q + (share - inverse * dot(y, q)) * s
    return q
