"""Points in the plane that the examples learn from."""

import math

import torch
from torch import Tensor


def eight_gaussians(count: int) -> Tensor:
    """Narrow Gaussians on a circle of radius 2, `(count, 2)`."""
    angle = torch.randint(8, (count,)) * (math.pi / 4)
    return 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.2 * torch.randn(count, 2)


def moons(
    count: int, scale: tuple[float, float] = (1.5, 1.5), noise: float = 0.05
) -> tuple[Tensor, Tensor]:
    """Two half circles around 0, `(count, 2)`, and to which of them a point belongs, `(count,)`."""
    angle, lower = math.pi * torch.rand(count), torch.rand(count) < 0.5
    x = torch.where(lower, 1 - angle.cos(), angle.cos()) - 0.5
    y = torch.where(lower, 0.5 - angle.sin(), angle.sin()) - 0.25
    return torch.stack([scale[0] * x, scale[1] * y], 1) + noise * torch.randn(
        count, 2
    ), lower.long()
