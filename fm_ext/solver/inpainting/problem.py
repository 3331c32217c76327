"""One call as a method of inpainting sees it: on the straight path, whatever path the model was trained on."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fm_ext.solver.field import Field
from fm_ext.utils.inputs import randn_like

Source = Callable[[Tensor, torch.Generator | None], Tensor]


def kernel_variance(t: float, s: float) -> float:
    """The variance of $X_t$ given $X_s$, for t at most s, of $N(0, I)$ noise: what the way back in time adds."""
    return (1 - t) ** 2 - (t / s * (1 - s)) ** 2


def renewal(eta: float, t: float, s: float) -> tuple[float, float]:
    r"""What a step from t to s keeps of the noise $\hat x_0$ in the state, and the standard deviation of what it adds.

    DDIM's $\eta$ (arXiv 2010.02502, equations 12 and 16): 0 adds nothing, 1 as much as DDPM's ancestral step. The
    variance is $(1 - s)^2$ in all.
    """
    var = (eta * (1 - s) / (1 - t)) ** 2 * kernel_variance(t, s)
    return math.sqrt(max(0.0, (1 - s) ** 2 - var)), math.sqrt(var)


class Problem:
    r"""Known entries to agree with, and a model that knows $E[X_1 \mid X_t]$ for $X_t = t\,X_1 + (1 - t)\,X_0$.

    A method asks for noise, for intervals of time and for the model's answers; what it asks of the model is counted.

    Args:
        model: the velocity on the straight path.
        y: the image, 0 in its missing entries, in float32 or more.
        known: bool, broadcasts to `y`.
        noise_std: standard deviation of the noise on the known entries.
        steps: number of intervals.
        source: draws $X_0$ like a tensor, by a generator; None for $N(0, I)$.
        coupled: whether the model's $X_0$ depends on $X_1$.
        generator: of all random numbers.
        extras: handed to the model.
        dtype: what the model gets its state in.
        progress: whether to show a progress bar.
        copies: fills of each image; row `copy * images + image` is one of them.

    Attributes:
        plain: whether the model's $X_0$ is $N(0, I)$ and independent, so that fresh noise is as good as any.
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Tensor],
        y: Tensor,
        known: Tensor,
        *,
        noise_std: float,
        steps: int,
        source: Source | None,
        coupled: bool,
        generator: torch.Generator | None,
        extras: dict[str, Any],
        dtype: torch.dtype,
        progress: bool,
        copies: int = 1,
    ):
        self.field, self.y, self.known = Field(model, extras, dtype), y, known
        self.noise_std, self.steps, self.source, self.generator = (
            noise_std,
            steps,
            source,
            generator,
        )
        self.progress, self.copies = progress, copies
        self.plain = source is None and not coupled
        self.gradients = 0

    @property
    def nfe(self) -> int:
        """Evaluations of the model so far."""
        return self.field.nfe

    def normal(self) -> Tensor:
        """Standard normal numbers, drawn where the generator lives."""
        return randn_like(self.y, self.generator)

    def noise(self) -> Tensor:
        """A fresh $X_0$."""
        if self.source is None:
            return self.normal()
        x_0, like = self.source(self.y, self.generator), self.y
        wanted = (like.shape, like.dtype, like.device)
        if (x_0.shape, x_0.dtype, x_0.device) != wanted:
            raise ValueError(
                f"`source` must answer like its first argument, {tuple(like.shape)}, {like.dtype} on {like.device}; "
                f"got {tuple(x_0.shape)}, {x_0.dtype} on {x_0.device}."
            )
        return x_0

    def residual(self, x_1: Tensor) -> Tensor:
        """What the known entries have and `x_1` has not; 0 in the missing ones."""
        return torch.where(self.known, self.y - x_1, 0.0)

    def renoised(self, t: float) -> Tensor:
        """The known entries at time `t` of their own path, with fresh noise everywhere."""
        return t * self.y + (1 - t) * self.noise()

    def bar(self, count: int) -> Iterator[int]:
        """0, ..., `count` - 1, under the progress bar if one is wanted."""
        return iter(tqdm(range(count), disable=not self.progress, desc="inpainting"))

    def intervals(self, start: float = 0.0) -> Iterator[tuple[float, float]]:
        """`steps` equal intervals from `start` to exactly 1."""
        for i in self.bar(self.steps):
            last = i + 1 == self.steps
            s = 1.0 if last else start + (1 - start) * (i + 1) / self.steps
            yield start + (1 - start) * i / self.steps, s

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """The model's velocity at `x` and `t`: one evaluation."""
        v = self.field(torch.full((), t, dtype=x.dtype, device=x.device), x)
        if x.requires_grad and not v.requires_grad:  # its derivative would silently be 0
            raise ValueError(
                "`velocity_model` must be differentiable for this method, and its answer carries no gradient; is it "
                'called under `torch.no_grad()` inside? method="flower" needs no gradients.'
            )
        return v

    def target(self, x: Tensor, t: float) -> Tensor:
        r"""$\hat x_1 = E[X_1 \mid X_t = x] = x + (1 - t)\,v$: one evaluation, none at $t = 1$."""
        return x if t == 1 else x + (1 - t) * self.velocity(x, t)

    def mean(self, x_0: Tensor) -> Tensor:
        """$E[X_1]$, which is all that a state of pure noise tells of the data: one evaluation at $t = 0$."""
        return self.target(x_0, 0.0)

    def target_and_vjp(self, x: Tensor, t: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        r"""$\hat x_1$, and $u \mapsto J^\top u$ with $J = \partial \hat x_1 / \partial x$: one gradient a call."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = self.velocity(x, t)
            x_1 = x + (1 - t) * v

        def vjp(u: Tensor) -> Tensor:
            self.gradients += 1
            return torch.autograd.grad(x_1, x, u, retain_graph=True)[0]

        return x_1.detach(), vjp

    def endpoint(self, x: Tensor) -> Tensor:
        """Where Euler's method takes `x` from 0 to 1: `steps` evaluations."""
        times = [i / self.steps for i in range(self.steps)] + [1.0]
        for t, s in pairwise(times):
            x = x + (s - t) * self.velocity(x, t)
        return x
