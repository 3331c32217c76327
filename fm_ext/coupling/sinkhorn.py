"""Entropic optimal transport between two batches."""

import math
import warnings
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fm_ext.coupling.optimal_transport import Cost, Transport, above_minima


@final
class SinkhornTransport(Transport):
    r"""Draws each target's source from the entropic plan.

    $$P = \arg\min_P \langle P, C \rangle - \varepsilon H(P), \qquad P 1 = P^T 1 = 1 / n$$

    by Sinkhorn's iterations (Cuturi, arXiv 1306.0895) on the logarithms, which do not underflow at image dimensions,
    with $\varepsilon$ halved down to its value. A source is drawn from each target's row of the
    plan, so pairs have the law P, each source is expected once, and a batch uses some sources twice and others
    not at all: the fewer, the smaller $\varepsilon$. As $\varepsilon \to 0$ the pairs are `OptimalTransport`'s.

    With `relative=False` and `regularization` $= 2 \sigma^2$ around `BridgeProbPath` of the same $\sigma$ this is the
    Schrödinger bridge SB-CFM (Tong et al., arXiv 2302.00482).

    Conditions are obeyed as by [`OptimalTransport`][fm_ext.coupling.OptimalTransport].

    Args:
        regularization: $\varepsilon$, positive, in units of the batch's mean cost above the minima of rows and then of
            columns: what all pairs of a row or column have in common, a distance between the two means for example, no
            plan can change. The cost of a condition does not count.
        relative: False: $\varepsilon$ in units of the cost itself, squared distance.
        tolerance: the iterations stop when the columns' sums are right to this fraction, on average.
        max_iterations: a warning says when these did not suffice.
        cost: see `OptimalTransport`.
        ratio: see `OptimalTransport`.
        weight: see `OptimalTransport`.

    Raises:
        ValueError: for an argument out of range.
    """

    def __init__(
        self,
        regularization: float = 0.05,
        *,
        relative: bool = True,
        tolerance: float = 0.01,
        max_iterations: int = 1000,
        cost: Cost | None = None,
        ratio: float | None = None,
        weight: float | None = None,
    ):
        super().__init__(cost=cost, ratio=ratio, weight=weight)
        for name, value in (("regularization", regularization), ("tolerance", tolerance)):
            if not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be positive and finite; got {value}.")
        if max_iterations < 1:
            raise ValueError(f"`max_iterations` must be at least 1; got {max_iterations}.")
        self.regularization = regularization
        self.relative = relative
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def assign(
        self,
        cost: Float[Tensor, "n n"],
        generator: torch.Generator | None,
        data: Float[Tensor, "n n"] | None = None,
    ) -> Int64[Tensor, " n"]:
        """A source (column) for each target (row), drawn from the plan."""
        logits = self.log_plan(cost, data)
        device = logits.device if generator is None else generator.device
        noise = torch.empty(logits.shape, dtype=logits.dtype, device=device)
        noise = noise.exponential_(generator=generator).to(logits.device)
        return (logits - noise.log()).argmax(1)  # Gumbel: argmax has the law softmax(logits)

    def log_plan(
        self, cost: Float[Tensor, "n n"], data: Float[Tensor, "n n"] | None = None
    ) -> Float[Tensor, "n n"]:
        r"""$\log P$ for a matrix of costs; rows sum to 1 / n exactly, columns to the tolerance.

        Args:
            cost: of each target (row) and source (column), finite.
            data: the part of it that gives `regularization` its unit, unless this part is the same for all plans; None:
                all of it.

        Warns:
            RuntimeWarning: if `max_iterations` did not suffice.
        """
        cost = above_minima(cost)
        mean = cost.mean().item()
        last = self.regularization
        if self.relative:
            unit = mean if data is None else above_minima(data).mean().item()
            last *= unit or mean or 1.0
        v = torch.zeros_like(cost[0])
        epsilon = max(mean, last)
        for iteration in range(self.max_iterations):
            epsilon = max(epsilon / 2, last)
            u = -epsilon * torch.logsumexp((v - cost) / epsilon, 1)
            logs = torch.logsumexp((u[:, None] - cost) / epsilon, 0)
            if epsilon == last and iteration % 10 == 9:
                if _error(v / epsilon + logs) <= self.tolerance:
                    break
            v = -epsilon * logs
        else:
            error = _error(torch.log_softmax((v - cost) / last, 1).logsumexp(0))
            if error > self.tolerance:
                warnings.warn(
                    f"`max_iterations` = {self.max_iterations} left an error of {error:.3g} in the columns' sums, "
                    f"above `tolerance` = {self.tolerance:g}: raise the one or "
                    f"`regularization` = {self.regularization:g}.",
                    RuntimeWarning,
                    stacklevel=4,
                )
        return torch.log_softmax((v - cost) / last, 1) - math.log(len(cost))


def _error(logs: Tensor) -> float:
    """How far the columns' sums, given as logarithms, are from 1 on average."""
    return logs.exp().sub(1).abs().mean().item()
