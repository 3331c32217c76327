"""The expected data are pulled towards the known entries and noised again: PnP-Flow and FLOWER."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fm_ext.solver.inpainting.method import Method, check, real, whole
from fm_ext.solver.inpainting.problem import Problem


@dataclass(frozen=True)
class PnPFlow(Method):
    r"""A gradient step on the known entries, fresh noise, the model as denoiser (arXiv 2410.02423, algorithm 3).

    $$z = x - \gamma (1 - t)^a\, H^\top (H x - y), \qquad x \leftarrow
    \frac1n \sum_{i=1}^{n} \hat x_1\big(t z + (1 - t)\,\epsilon_i,\, t\big) .$$

    The level of the noise on $y$ cancels from the paper's step, so known entries may be noisy and `noise_std` changes
    nothing but that they are not pasted back.

    Args:
        step: $\gamma$, in (0, 1]: 1 replaces the known entries by $y$ at $t = 0$.
        exponent: $a$, at least 0.
        averages: $n$. More raise the PSNR and take the diversity away.
    """

    noisy = True
    step: float = 1.0
    exponent: float = 0.5
    averages: int = 1

    def __post_init__(self) -> None:
        check(
            "pnp",
            step=(self.step, real("in (0, 1]", lambda step: 0 < step <= 1)),
            exponent=(self.exponent, real("at least 0", lambda exponent: exponent >= 0)),
            averages=(self.averages, whole(1)),
        )

    def fill(self, problem: Problem) -> Tensor:
        x = problem.y
        for t, _ in problem.intervals():
            z = x + self.step * (1 - t) ** self.exponent * problem.residual(x)
            answers = [
                problem.target(t * z + (1 - t) * problem.noise(), t) for _ in range(self.averages)
            ]
            x = torch.stack(answers).mean(0) if self.averages > 1 else answers[0]
        return x


@dataclass(frozen=True)
class Flower(Method):
    r"""The posterior under a scalar variance, then fresh noise (arXiv 2509.26287, algorithm 1).

    Around $\hat x_1$ lies $N(\hat x_1, \nu_t^2 I)$ with $\nu_t^2 = (1 - t)^2 / (t^2 + (1 - t)^2)$. Known entries turn
    it into $N(\mu, \kappa^2)$, entry by entry: $\kappa^2 = (\nu_t^{-2} + \sigma_y^{-2})^{-1}$ and
    $\mu = \kappa^2 (\hat x_1 / \nu_t^2 + y / \sigma_y^2)$ at known ones, $\nu_t^2$ and $\hat x_1$ at missing ones. Then

    $$x_s = s\,(\mu + \gamma \kappa z) + (1 - s)\,\epsilon .$$

    So the last step adds white noise to the answer, of standard deviation $\gamma \nu_t \approx \gamma / (N - 1)$ for N
    steps. White data have it themselves, and would be too smooth without it; in an image it is grain.

    Args:
        gamma: 1 draws from that posterior, 0 takes its mean: a higher PSNR and too little diversity.
    """

    noisy = True
    gamma: float = 1.0

    def __post_init__(self) -> None:
        check("flower", gamma=(self.gamma, real("in [0, 1]", lambda gamma: 0 <= gamma <= 1)))

    def fill(self, problem: Problem) -> Tensor:
        x, noise_var = problem.noise(), problem.noise_std**2
        for t, s in problem.intervals():
            x_1 = problem.target(x, t)
            var = (1 - t) ** 2 / (t**2 + (1 - t) ** 2)
            x_1 = x_1 + var / (var + noise_var) * problem.residual(x_1)
            if self.gamma > 0:
                known_std = (var * noise_var / (var + noise_var)) ** 0.5
                std = torch.where(problem.known, x.new_tensor(known_std), var**0.5)
                x_1 = x_1 + self.gamma * std * problem.normal()
            x = s * x_1 + (1 - s) * problem.noise()
        return x
