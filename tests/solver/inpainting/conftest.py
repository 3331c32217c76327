"""Gaussian data, for which velocity and posterior have closed forms."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn


class GaussianVelocity(nn.Module):
    """The exact velocity for data N(mean, covariance) and source N(0, I); counts calls and backward passes.

    `error` is added to the derivative of E[X_1 | x_t], as a trained network's might have it.
    """

    def __init__(self, covariance, scheduler, error=None, mean=0.0):
        super().__init__()
        self.scheduler, self.error, self.mean = scheduler, error, mean
        self.values, self.vectors = torch.linalg.eigh(covariance)
        self.calls = self.gradients = 0

    def forward(self, x, t):
        self.calls += 1
        out = self.scheduler(t.double())
        alpha, sigma = out.alpha_t, out.sigma_t
        gain = alpha * out.d_alpha_t * self.values + sigma * out.d_sigma_t
        gain = gain / (alpha**2 * self.values + sigma**2)
        matrix = self.vectors * gain @ self.vectors.T
        if self.error is not None:
            matrix = matrix + self.error / (1 - t)
        matrix, alpha = matrix.to(x.dtype), alpha.to(x.dtype)
        v = out.d_alpha_t.to(x.dtype) * self.mean + (x - alpha * self.mean) @ matrix
        if v.requires_grad:
            v.register_hook(self.count)
        return v

    def count(self, gradient):
        self.gradients += 1


class Hole:
    """AR(1) data with correlation 0.97 plus 0.001 I in 32 dimensions, of which 10 to 21 are missing.

    `center` is the mean of every entry.
    """

    def __init__(self, noise_std=0.0, observations=10, center=0.0):
        self.center = center
        index = torch.arange(32)
        self.covariance = 0.97 ** (index[:, None] - index).abs().double() + 1e-3 * torch.eye(32)
        self.mask = ((index >= 10) & (index < 22))[None]
        draws = torch.randn(observations, 32, dtype=torch.float64)
        self.image = center + draws @ torch.linalg.cholesky(self.covariance).T
        self.image = (self.image + noise_std * torch.randn_like(self.image)).float()
        known = ~self.mask[0]
        seen = self.covariance[known][:, known] + noise_std**2 * torch.eye(20)
        gain = self.covariance[:, known] @ torch.linalg.inv(seen)
        self.mean = center + (self.image[:, known].double() - center) @ gain.T
        self.spread = self.covariance - gain @ self.covariance[known]
        across = self.jumps(self.jumps(self.spread).T)  # covariance of both jumps
        self.jump_variance = across.diagonal()
        self.counted = self.mask[0] | (noise_std > 0)  # the entries whose law is in question

    def compare(self, samples):
        """W2 to the posterior, root mean square bias, and the ratios to its own of the trace and of the seam.

        Means over the observations; the seam is the root mean square jump at both edges of the hole.
        """
        jumps = self.jumps(samples.double())
        seam = self.jumps(self.mean).square() + self.jump_variance
        samples, true = samples.double()[..., self.counted], self.mean[:, self.counted]
        spread = self.spread[self.counted][:, self.counted]
        mean = samples.mean(0)
        rest = samples - mean
        cov = torch.einsum("noi,noj->oij", rest, rest) / (len(samples) - 1)
        values, vectors = torch.linalg.eigh(spread)
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T
        traces = cov.diagonal(dim1=1, dim2=2).sum(1)
        cross = torch.linalg.eigvalsh(root @ cov @ root).clamp(min=0).sqrt().sum(1)
        w2 = (mean - true).square().sum(1) + traces + spread.trace() - 2 * cross
        return SimpleNamespace(
            w2=w2.clamp(min=0).sqrt().mean().item(),
            bias=(mean - true).square().mean(1).sqrt().mean().item(),
            ratio=(traces / spread.trace()).mean().item(),
            seam=(jumps.square().mean() / seam.mean()).sqrt().item(),
        )

    @staticmethod
    def jumps(x):
        return x[..., [10, 21]] - x[..., [9, 22]]


@pytest.fixture
def hole():
    return Hole()


@pytest.fixture
def hole_of():
    return Hole


@pytest.fixture
def noisy_hole():
    return Hole(noise_std=0.3)


@pytest.fixture
def gaussian():
    return GaussianVelocity
