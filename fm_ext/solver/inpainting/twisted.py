"""The fills of one image as weighted particles, which share its modes rightly: twisted sequential Monte Carlo."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fm_ext.path.scheduler.precision import double
from fm_ext.solver.inpainting.guided import INSIDE, MomentMatching
from fm_ext.solver.inpainting.krylov import dot, unit
from fm_ext.solver.inpainting.method import Method, check, real, whole
from fm_ext.solver.inpainting.problem import Problem, kernel_variance


@dataclass(frozen=True)
class TwistedSMC(Method):
    r"""Moment matching's steps, with weights between the fills of one image (Wu et al., arXiv 2306.17775, algorithm 1).

    Moment matching takes the posterior at each time for one Gaussian. Where it has several modes, the fills are then
    led to the wrong ones, or between them. Here the fills of one image are particles: a step from t to s is proposed as
    by moment matching with $\eta = 1$, $x_s \sim q$, and corrected by the weight

    $$w = \frac{p(x_s \mid x_t)\, \hat p(y \mid x_s)}{q(x_s \mid x_t, y)\, \hat p(y \mid x_t)}, \qquad
    \hat p(y \mid x_t) = N(y;\, H \hat x_1,\, A_t), \quad A_t = H C_t H^\top + \sigma_y^2 I,$$

    where $p$ is the same step without the known entries. Where the effective number of particles falls below
    `threshold` of them, they are drawn again by their weights (systematically), and fills in the wrong modes die out.

    $\hat p$ is never formed. In the Krylov space of $A_t$ and the residual $r$, which the proposal needs anyway, the
    quadratic form is Gauss' quadrature of $r^\top A_t^{-1} r$, and the determinant is that of the Ritz values, with the
    smallest of them for all directions that the space has not seen. Exact for a covariance that is a multiple of the
    identity plus a few directions between modes.

    Weights count until the time `until`. Early, the modes are decided; late, each fill is in one, and the weights would
    be noise: their variance grows with the number of known entries, and drawing by noise costs diversity. After `until`
    this is moment matching, as it is for one fill of an image, which has none to share weights with.

    Args:
        products: vector-Jacobian products a step while weights count.
        until: the time up to which they count, in (0, 1).
        threshold: share of effective particles under which they are drawn again, in (0, 1].
        start: the first time at which the covariance is asked for, in (0, 1).
    """

    noisy = True
    gaussian = True
    products: int = 6
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
        plain = MomentMatching(start=self.start, eta=1.0)
        rest = problem.steps - 1
        grid = [0.0, *(self.start + (1 - self.start) * i / rest for i in range(rest)), 1.0]
        intervals = list(pairwise(grid))
        noise = problem.noise()
        x = self.start * problem.mean(noise) + (1 - self.start) * noise
        guess, twist = None, None
        log_weight = double(dot(x, torch.zeros_like(x)).flatten())
        for i in problem.bar(problem.steps):
            t, s = max(intervals[i][0], self.start), intervals[i][1]
            weighted = problem.copies > 1 and t < self.until
            if weighted:
                x_1, shift, guess, new_twist = self.twisted(problem, x, t)
                log_weight = log_weight + new_twist - (0.0 if twist is None else twist)
                chosen = self.resampled(problem, log_weight)
                if chosen is not None:
                    log_weight = torch.where(chosen.drawn, 0.0, log_weight)
                    x, x_1, shift, guess, noise, new_twist = (
                        value[chosen.rows] for value in (x, x_1, shift, guess, noise, new_twist)
                    )
                twist = new_twist
            else:
                if twist is not None:  # the last weights
                    chosen = self.resampled(problem, log_weight, always=True)
                    assert chosen is not None
                    x, noise = x[chosen.rows], noise[chosen.rows]
                    guess, twist = None, None
                x_1, guess = plain.target(problem, x, t, guess)
                shift = torch.zeros_like(x)
            # As in moment matching: x_0 is kept, but for the share of it that is made anew.
            x_1_y = x_1 + shift
            x_0 = noise if i == 0 else (x - t * x_1_y) / (1 - t)
            variance = ((1 - s) / (1 - t)) ** 2 * kernel_variance(t, s)
            new = problem.noise() if variance > 0 else torch.zeros_like(x)
            keep = max(0.0, (1 - s) ** 2 - variance) ** 0.5
            x_s = s * x_1_y + keep * x_0 + variance**0.5 * new
            if weighted and variance > 0:
                # x_s less its mean under p, in units of the standard deviation, is new + pull; under q it is new.
                slope = s if i == 0 else s - keep * t / (1 - t)
                pull = double(slope / variance**0.5 * shift)
                log_weight = log_weight - dot(pull, double(new) + pull / 2).flatten()
            x = x_s
        return x

    def twisted(
        self, problem: Problem, x: Tensor, t: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r"""$\hat x_1$, its shift by the known entries, the shift's weights, and $\ln \hat p(y \mid x_t)$."""
        x_1, vjp = problem.target_and_vjp(x, t)
        residual = problem.residual(x_1)
        size = dot(residual, residual).sqrt()
        basis, others, images = [unit(residual, size)], [], []
        for _ in range(self.products):
            moved = (1 - t) ** 2 / t * vjp(basis[-1])
            image = torch.where(problem.known, moved, 0.0) + problem.noise_std**2 * basis[-1]
            others.append(moved)
            images.append(image)
            length = dot(image, image).sqrt()
            for _ in range(2):  # twice, against rounding
                for v in basis:
                    image = image - dot(v, image) * v
            rest = dot(image, image).sqrt()
            basis.append(
                unit(image, torch.where(rest > 1e3 * torch.finfo(x.dtype).eps * length, rest, 0.0))
            )
        space = torch.stack([double(v).reshape(len(v), -1) for v in basis[:-1]], 2)
        applied = torch.stack([double(v).reshape(len(v), -1) for v in images], 2)
        inside = space.square().sum(1) > 0.5  # the space ends where the next direction is 0
        small = space.mT @ applied
        values, vectors = torch.linalg.eigh(
            (small + small.mT) / 2 + torch.diag_embed(1.0 * ~inside)
        )
        largest = values.abs().amax(1, keepdim=True)
        values = values.clamp(min=torch.finfo(x.dtype).eps ** 0.5 * largest)
        right = torch.zeros_like(values)
        right[:, 0] = double(size).flatten()
        inner = (vectors.mT @ right[:, :, None])[:, :, 0]
        # The proposal has the least residual instead, which no small eigenvalue of an inexact network blows up.
        gram = applied.mT @ applied
        floor = torch.finfo(x.dtype).eps ** 2 * gram.diagonal(dim1=1, dim2=2).sum(1)
        floor = floor.clamp(min=torch.finfo(gram.dtype).tiny)[:, None] + 1.0 * ~inside
        right = applied.mT @ double(residual).reshape(len(residual), -1)[:, :, None]
        weights = torch.linalg.solve(gram + torch.diag_embed(floor), right)[:, :, 0]
        count = problem.known.expand_as(x).reshape(len(x), -1).sum(1) - inside.sum(1)
        seen = (vectors.square() * inside[:, :, None]).sum(1) > 0.5  # not the 1s of the padding
        smallest = torch.where(seen, values, torch.inf).amin(1).clamp(max=1e30)
        determinant = torch.where(seen, values.log(), 0.0).sum(1) + count * smallest.log()
        twist = -((inner.square() / values).sum(1) + determinant) / 2
        shape = (-1, len(others), *(1 for _ in x.shape[1:]))
        parts = weights.to(x.dtype).view(shape)
        shift = (parts * torch.stack(others, 1)).sum(1)
        solution = (parts * torch.stack(basis[:-1], 1)).sum(1)
        return x_1, shift, solution, twist

    def resampled(
        self, problem: Problem, log_weight: Tensor, always: bool = False
    ) -> "Chosen | None":
        """Which rows go on, in groups of the fills of one image; None for all as they are."""
        groups = log_weight.view(problem.copies, -1).T.softmax(1)
        effective = 1 / groups.square().sum(1)
        few = torch.ones_like(effective, dtype=torch.bool)
        if not always:
            few = effective < self.threshold * problem.copies
        if not bool(few.any()):
            return None
        images = len(groups)
        device = groups.device if problem.generator is None else problem.generator.device
        shift = torch.rand(
            images, 1, dtype=groups.dtype, device=device, generator=problem.generator
        )
        own = torch.arange(problem.copies, device=groups.device)
        points = (shift.to(groups.device) + own) / problem.copies
        drawn = torch.searchsorted(groups.cumsum(1), points).clamp(max=problem.copies - 1)
        copies = torch.where(few[:, None], drawn, own).T
        rows = copies * images + torch.arange(images, device=groups.device)
        return Chosen(rows.flatten(), few.expand(problem.copies, -1).flatten())


@dataclass(frozen=True)
class Chosen:
    """The rows that go on, and whether each was drawn by its weight."""

    rows: Tensor
    drawn: Tensor
