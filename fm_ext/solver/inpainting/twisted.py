"""The fills of one image as weighted particles, which share its modes rightly: twisted sequential Monte Carlo."""

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from fm_ext.path.scheduler.precision import double
from fm_ext.solver.inpainting.guided import INSIDE, MomentMatching, covariance
from fm_ext.solver.inpainting.krylov import Krylov, dot
from fm_ext.solver.inpainting.method import Method, check, real, whole
from fm_ext.solver.inpainting.problem import Problem, renewal


@dataclass(frozen=True)
class TwistedSMC(Method):
    r"""Moment matching's steps, with weights between the fills of one image (Wu et al., arXiv 2306.17775, algorithm 1).

    Moment matching takes the posterior at each time for one Gaussian. Where it has several modes, the fills are then
    led to the wrong ones, or between them. Here the fills of one image are particles: a step from t to s is proposed as
    by moment matching with $\eta = 1$, $x_s \sim q$, and corrected by the weight

    $$w = \frac{p(x_s \mid x_t)\, \hat p(y \mid x_s)}{q(x_s \mid x_t, y)\, \hat p(y \mid x_t)}, \qquad
    \hat p(y \mid x_t) = N(y;\, H \hat x_1,\, A_t), \quad A_t = H C_t H^\top + \sigma_y^2 I,$$

    where $p$ is the same step without the known entries. Particles are drawn again by their weights (systematically),
    and fills in the wrong modes die out.

    $\hat p$ is never formed. The quadratic form $r^\top A_t^{-1} r$ of the residual r is Gauss' quadrature in the
    Krylov space that the proposal needs anyway. $\ln \det A_t$, the trace of $\ln A_t$, is that of $z^\top \ln(A_t) z$
    with random signs z: stochastic Lanczos quadrature (Ubaru, Chen and Saad, 2017). All fills of an image have the same
    z at all times, so what it misses of a covariance that they share is the same for all, and drops out of the weights.

    $\hat p$ is no more than a Gaussian, and where an image has many known entries the logarithms of the weights vary by
    far more than they mean. So they are tempered: where the effective number of particles falls below the share
    `threshold`, particles are drawn by the largest power of the weights, below 1, that leaves so many, and the rest of
    the weight is dropped. Late, each fill is in one mode, and weights would be noise: after the time `until` this is
    moment matching, as it is for one fill of an image, which has none to share weights with, and where `source=` or
    `coupled=True` says that fresh noise, of which the weights are made, is not the model's.

    Args:
        products: vector-Jacobian products a step, and while weights count as many again for the determinant.
        until: the time up to which weights count, in (0, 1). Modes that little tells apart are decided later.
        threshold: share of effective particles that each drawing leaves, in (0, 1].
        start: the first time at which the covariance is asked for, in (0, 1).
    """

    noisy = True
    gaussian = True
    products: int = 4
    until: float = 0.35
    threshold: float = 0.5
    start: float = 0.1

    def __post_init__(self) -> None:
        check(
            "twisted_smc",
            products=(self.products, whole(1)),
            until=(self.until, INSIDE),
            threshold=(self.threshold, real("in (0, 1]", lambda share: 0 < share <= 1)),
            start=(self.start, INSIDE),
        )

    def fill(self, problem: Problem) -> Tensor:
        plain = MomentMatching(products=self.products, start=self.start)
        x, noise = plain.begin(problem)
        times = plain.intervals(problem)
        if problem.copies == 1 or problem.steps == 1 or not problem.plain:
            return plain.walk(problem, x, noise, times)
        next(times)  # moment matching's first move, which has no weight
        now = next(times)
        signs = self.signs(problem)
        log_weight = last = double(x.new_zeros(len(x)))
        while now[0] < self.until and now[1] < 1:
            t, s = now
            x_1, shift, twist = self.twisted(problem, x, t, signs)
            log_weight = log_weight + twist - last
            rows, drawn = self.drawn(problem, log_weight)
            log_weight = torch.where(drawn, 0.0, log_weight)
            x, x_1, shift, last = x[rows], x_1[rows], shift[rows], twist[rows]
            target, new = x_1 + shift, problem.noise()
            keep, std = renewal(1.0, t, s)
            x = s * target + keep * (x - t * target) / (1 - t) + std * new
            # x less its mean under p, in units of the standard deviation, is new + pull; under q it is new.
            pull = double((s - keep * t / (1 - t)) / std * shift)
            log_weight = log_weight - dot(pull, double(new) + pull / 2).flatten()
            now = next(times)
        x = x[self.drawn(problem, log_weight, always=True)[0]]
        return plain.walk(problem, x, None, chain([now], times))

    @staticmethod
    def signs(problem: Problem) -> Tensor:
        """Random signs in the known entries, 0 in the missing ones, the same for all fills of an image."""
        signs = problem.normal().unflatten(0, (problem.copies, -1))[:1].sign()
        return torch.where(
            problem.known, signs.expand(problem.copies, *signs.shape[1:]).flatten(0, 1), 0.0
        )

    def twisted(
        self, problem: Problem, x: Tensor, t: float, signs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""$\hat x_1$, its shift by the known entries, and $\ln \hat p(y \mid x_t)$ but for a constant."""
        x_1, product = covariance(problem, x, t)
        space = Krylov.of(product, problem.residual(x_1), self.products)
        determinant = Krylov.of(product, signs, self.products).quadrature(torch.log)
        twist = -(space.quadrature(torch.reciprocal) + determinant) / 2
        return x_1, space.least_residual()[1], twist

    def drawn(
        self, problem: Problem, log_weight: Tensor, always: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The rows that go on, among the fills of each image, and whether each was drawn by its weight."""
        logits = log_weight.view(problem.copies, -1).T
        least, power = self.threshold * problem.copies, torch.zeros_like(logits[:, :1])
        few = effective(logits) < least
        for digit in range(1, 31):  # of the largest power that leaves enough
            more = power + 0.5**digit
            power = torch.where(effective(more * logits)[:, None] < least, power, more)
        weights = (torch.where(few[:, None], power, 1.0) * logits).softmax(1)
        few = few | always
        images, device = len(logits), logits.device
        where = device if problem.generator is None else problem.generator.device
        shift = torch.rand(images, 1, dtype=logits.dtype, device=where, generator=problem.generator)
        own = torch.arange(problem.copies, device=device)
        points = (shift.to(device) + own) / problem.copies
        chosen = torch.searchsorted(weights.cumsum(1), points).clamp(max=problem.copies - 1)
        copies = torch.where(few[:, None], chosen, own).T
        rows = copies * images + torch.arange(images, device=device)
        return rows.flatten(), few.expand(problem.copies, -1).flatten()


def effective(logits: Tensor) -> Tensor:
    """The effective number of particles of each row."""
    return 1 / logits.softmax(1).square().sum(1)
