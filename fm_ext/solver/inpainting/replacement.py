"""Known entries are put on their own path while the rest follows the model: replacement, RePaint, Restora-Flow."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fm_ext.solver.inpainting.method import Method, check, whole
from fm_ext.solver.inpainting.problem import Problem, kernel_variance


@dataclass(frozen=True)
class Replace(Method):
    r"""Known entries follow $t\,y + (1 - t)\,\epsilon$ with one $\epsilon$, the missing ones the model's velocity.

    What most libraries ship. It never asks which known entries a missing one implies, only what the mixture at time
    $t$ does, and so it is biased (Lugmayr et al., arXiv 2201.09865, section 4.2); more steps do not cure it (the table
    of `docs/content/guides/pretrained.md`).
    """

    def fill(self, problem: Problem) -> Tensor:
        x = noise = problem.noise()
        for t, s in problem.intervals():
            own = problem.y - noise
            x = x + (s - t) * torch.where(problem.known, own, problem.velocity(x, t))
        return x


@dataclass(frozen=True)
class RePaint(Method):
    r"""Replacement with time travel: every stretch of time is walked several times (Lugmayr et al., algorithm 1).

    Back from $s$ to $t$ leads the exact kernel of the path, for independent Gaussian $X_0$ (for $s = 1$ it draws from
    the path itself):

    $$x_t = \frac{t}{s}\,x_s + \sqrt{(1 - t)^2 - \tfrac{t^2}{s^2} (1 - s)^2}\; z .$$

    Args:
        jump_n_sample: how often each stretch is walked; 1 is replacement with fresh noise.
        jump_length: steps in a stretch.
    """

    gaussian = True
    jump_n_sample: int = 10
    jump_length: int = 1

    def __post_init__(self) -> None:
        check(
            "repaint",
            jump_n_sample=(self.jump_n_sample, whole(1)),
            jump_length=(self.jump_length, whole(1)),
        )

    def fill(self, problem: Problem) -> Tensor:
        x = problem.noise()
        stretch: list[tuple[float, float]] = []
        for t, s in problem.intervals():
            stretch.append((t, s))
            if len(stretch) < self.jump_length and s < 1:
                continue
            for repetition in range(self.jump_n_sample):
                if repetition > 0:
                    x = travel_back(problem, x, stretch[-1][1], stretch[0][0])
                for start, end in stretch:
                    x = torch.where(problem.known, problem.renoised(start), x)
                    x = x + (end - start) * problem.velocity(x, start)
            stretch = []
        return x


def travel_back(problem: Problem, x: Tensor, s: float, t: float) -> Tensor:
    """A draw from the law of X_t given X_s = `x`, for t < s."""
    return t / s * x + math.sqrt(kernel_variance(t, s)) * problem.noise()


@dataclass(frozen=True)
class RestoraFlow(Method):
    r"""Replacement whose every step is corrected through the expected data (arXiv 2511.20152, algorithm 1).

    After a step from $t$ to $s$: $x_t \leftarrow t\,\hat x_1(x_s, s) + (1 - t)\,\epsilon$, and the step again.

    Args:
        corrections: how often each step is corrected; every one costs two evaluations.
    """

    corrections: int = 1

    def __post_init__(self) -> None:
        check("restora", corrections=(self.corrections, whole(0)))

    def fill(self, problem: Problem) -> Tensor:
        x = problem.noise()
        for t, s in problem.intervals():
            x = self.step(problem, x, t, s)
            for _ in range(self.corrections):
                x_1 = problem.target(x, s)
                x = self.step(problem, t * x_1 + (1 - t) * problem.noise(), t, s)
        return x

    @staticmethod
    def step(problem: Problem, x: Tensor, t: float, s: float) -> Tensor:
        x = torch.where(problem.known, problem.renoised(t), x)
        return x + (s - t) * problem.velocity(x, t)
