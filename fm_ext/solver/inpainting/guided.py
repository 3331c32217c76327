"""The expected data are moved to where the known entries put them, through the model's derivative."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fm_ext.solver.inpainting.krylov import SOLVERS, Product
from fm_ext.solver.inpainting.method import Method, check, real, whole
from fm_ext.solver.inpainting.problem import Problem, renewal

INSIDE = real("in (0, 1)", lambda start: 0 < start < 1)


@dataclass(frozen=True)
class OTODE(Method):
    r"""OT-ODE (Pokle et al., arXiv 2310.04432, algorithm 1): PiGDM (Song et al., ICLR 2023) for flows.

    $\operatorname{Cov}[X_1 \mid x_t]$ is taken to be $r_t^2 I$, $r_t^2 = (1 - t)^2 / (t^2 + (1 - t)^2)$. With
    $J = \partial \hat x_1 / \partial x$ the velocity becomes

    $$v + \frac{1 - t}{t}\, J^\top H^\top \frac{y - H \hat x_1}{r_t^2 + \sigma_y^2},$$

    which is 0/0 at $t = 0$. So, as in the paper, it starts later, from the known entries with noise:
    $t\,y + (1 - t)\,\epsilon$. In missing entries, which have no $y$, $E[X_1]$ stands in its place (ours, for one
    evaluation more): without it data whose mean is not 0 would start off their path. What the start leaves out is the
    spread of the missing entries, so a longer one costs diversity.

    Args:
        start: the first time, in (0, 1).
    """

    noisy = True
    gaussian = True
    start: float = 0.2

    def __post_init__(self) -> None:
        check("ot_ode", start=(self.start, INSIDE))

    def fill(self, problem: Problem) -> Tensor:
        noise = problem.noise()
        y = torch.where(problem.known, problem.y, problem.mean(noise))
        x = self.start * y + (1 - self.start) * noise
        for t, s in problem.intervals(self.start):
            x_1, vjp = problem.target_and_vjp(x, t)
            var = (1 - t) ** 2 / (t**2 + (1 - t) ** 2)
            pull = vjp(problem.residual(x_1) / (var + problem.noise_std**2))
            del vjp  # and the graph with it, before the next one is built
            x_1 = x_1 + (1 - t) ** 2 / t * pull
            x = x + (s - t) / (1 - t) * (x_1 - x)
        return x


def covariance(problem: Problem, x: Tensor, t: float) -> tuple[Tensor, Product]:
    r"""$\hat x_1$, and $u \mapsto (C_t u, A_t u)$ for a $u$ in the known entries; see `MomentMatching`."""
    x_1, vjp = problem.target_and_vjp(x, t)

    def product(u: Tensor) -> tuple[Tensor, Tensor]:
        moved = (1 - t) ** 2 / t * vjp(u)
        return moved, torch.where(problem.known, moved, 0.0) + problem.noise_std**2 * u

    return x_1, product


@dataclass(frozen=True)
class MomentMatching(Method):
    r"""The flow of $p(x_1 \mid y)$, with the covariance that the model itself implies (Rozet et al., arXiv 2405.13712).

    $C_t = \operatorname{Cov}[X_1 \mid x_t] = \frac{(1 - t)^2}{t} J$ (Tweedie's second moment), and so

    $$\hat x_1^y = \hat x_1 + C_t H^\top (H C_t H^\top + \sigma_y^2 I)^{-1} (y - H \hat x_1), \qquad
    v^y = \frac{\hat x_1^y - x}{1 - t},$$

    exact for Gaussian data; other data, whose posterior at $t$ this takes for a Gaussian, it leaves with a bias that no
    number of steps removes. $C_t$ is never built: the linear system is solved by a Krylov method whose products
    are vector-Jacobian products of the network, starting at the solution of the last step. At $t = 0$ the covariance
    is 0/0 ($J = 0$), and near it a small error of the network is a large one of $C_t$; so the first step goes from 0 to
    `start` by what the network says at `start`, in the state to which its $E[X_1]$ at 0 leads there. This costs one
    evaluation more than there are steps.

    Between two steps the noise may be renewed, as in DDIM with $\eta$ (arXiv 2010.02502, equations 12 and 16):

    $$x_s = s\,\hat x_1^y + \sqrt{(1 - s)^2 - \eta^2 \tilde\sigma^2}\; \hat x_0^y + \eta\,\tilde\sigma\,\epsilon,
    \qquad \tilde\sigma^2 = \frac{(1 - s)^2}{(1 - t)^2} \Big((1 - t)^2 - \frac{t^2}{s^2} (1 - s)^2\Big).$$

    For Gaussian data and an independent source $N(0, I)$ every $\eta$ has the same distribution in the limit of small
    steps, and in few steps a larger one leaves less diversity. Where $v^y$ is not exact they differ in the limit too:
    fresh noise lets the late steps, at which the posterior is nearly a Gaussian, correct the early ones
    (docs/content/guides/pretrained.md).

    A network's $J$ is not quite symmetric. Conjugate gradients ("cg") then diverge where its error exceeds
    $J$'s small eigenvalues; the minimal residual over the same Krylov space ("gmres") cannot.

    Args:
        products: vector-Jacobian products a step.
        start: the first time at which the covariance is asked for, in (0, 1).
        eta: 0 renews no noise (an ODE), 1 as much as DDPM's ancestral step; None for 1, and for 0 where `source=` or
            `coupled=True` says that fresh noise is not the model's.
        linear_solver: "gmres" or "cg".
    """

    noisy = True
    gaussian = True
    products: int = 4
    start: float = 0.1
    eta: float | None = None
    linear_solver: str = "gmres"

    def __post_init__(self) -> None:
        check(
            "moment_matching",
            products=(self.products, whole(1)),
            start=(self.start, INSIDE),
            eta=(
                0 if self.eta is None else self.eta,
                real("in [0, 1], or None", lambda eta: 0 <= eta <= 1),
            ),
            linear_solver=(
                self.linear_solver,
                (lambda name: name in list(SOLVERS), f"one of {', '.join(SOLVERS)}"),
            ),
        )

    def fill(self, problem: Problem) -> Tensor:
        x, x_0 = self.begin(problem)
        return self.walk(problem, x, x_0, self.intervals(problem))

    def walk(
        self,
        problem: Problem,
        x: Tensor,
        x_0: Tensor | None,
        intervals: Iterable[tuple[float, float]],
    ) -> Tensor:
        """From `x` through the intervals; `x_0` is the noise in `x`, None for what the expected data leave of it."""
        eta = self.eta
        if eta is None:
            eta = 1.0 if problem.plain else 0.0
        guess = None
        for t, s in intervals:
            x_1, guess = self.target(problem, x, t, guess)
            x_0 = (x - t * x_1) / (1 - t) if x_0 is None else x_0
            keep, std = renewal(eta, t, s)
            x = s * x_1 + keep * x_0
            x, x_0 = x + std * problem.noise() if std else x, None
        return x

    def begin(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """The state at `start`, and the noise it is made of, with the mean where later the expected data stand."""
        noise = problem.noise()
        return self.start * problem.mean(noise) + (1 - self.start) * noise, noise

    def intervals(self, problem: Problem) -> Iterator[tuple[float, float]]:
        """Equal steps from `start` to 1, and before them the one that ends where it began, at `start`."""
        rest = problem.steps - 1
        times = [self.start + (1 - self.start) * i / rest for i in range(rest)]
        times = [self.start, *times, 1.0]
        for i in problem.bar(problem.steps):
            yield times[i], times[i + 1]

    def target(
        self, problem: Problem, x: Tensor, t: float, guess: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The expected data given the known entries too, and their weights in it, which the next step starts at."""
        x_1, product = covariance(problem, x, t)
        solver, residual = SOLVERS[self.linear_solver], problem.residual(x_1)
        if guess is None or self.products == 1:
            weights, shift = solver(product, residual, self.products)
            return x_1 + shift, weights
        shift, image = product(guess)
        weights, further = solver(product, residual - image, self.products - 1)
        return x_1 + shift + further, guess + weights
