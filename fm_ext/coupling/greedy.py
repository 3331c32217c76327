"""Greedy transport: a permutation to near sources, for batches that are too large for an exact solver."""

from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fm_ext.coupling.optimal_transport import Cost, Transport

WISHES = 64
"""Rounds in which free sources are taken: most are after a few, unless the targets agree on which is the best."""


@final
class GreedyTransport(Transport):
    """Every target takes its nearest free source; then pairs exchange their sources where both together gain.

    A permutation like `OptimalTransport`'s, found on the device of the data by rounds of row minima over ever smaller
    matrices, and by exchanges among disjoint pairs of targets, half of the batch at once. It draws nothing at random.
    Where targets agree on their order of sources a round serves only one: after 64 rounds the rest is given in order.
    The results on couplings have its time and its gap to the optimum. Immiscible Diffusion trains with near noise that
    need not be the nearest (Li et al., arXiv 2406.12303).

    Conditions are obeyed as by [`OptimalTransport`][fm_ext.coupling.OptimalTransport].

    Args:
        rounds: of exchanges, 0 or more; after as many as there are rows, each pair of targets has had its turn.
        cost: see `OptimalTransport`.
        ratio: see `OptimalTransport`.
        weight: see `OptimalTransport`.

    Raises:
        ValueError: for an argument out of range.
    """

    def __init__(
        self,
        rounds: int = 256,
        *,
        cost: Cost | None = None,
        ratio: float | None = None,
        weight: float | None = None,
    ):
        super().__init__(cost=cost, ratio=ratio, weight=weight)
        if rounds < 0:
            raise ValueError(f"`rounds` must not be negative; got {rounds}.")
        self.rounds = rounds

    def assign(
        self,
        cost: Float[Tensor, "n n"],
        generator: torch.Generator | None,
        data: Float[Tensor, "n n"] | None = None,
    ) -> Int64[Tensor, " n"]:
        """A source (column) for each target (row), each used once."""
        return _exchange(cost, _nearest_free(cost), self.rounds)


def _nearest_free(cost: Tensor) -> Tensor:
    n = len(cost)
    cost = cost - cost.amin(0)  # a source that is near to all is no bargain for any
    cost -= cost.amin(1, keepdim=True)
    rows = columns = torch.arange(n, device=cost.device)
    result = torch.empty_like(rows)
    for _ in range(WISHES):
        if not len(rows):
            break
        price, wanted = cost.min(1)
        # The cheapest wish for each column, of equal ones the first: both minima are deterministic on any device.
        best = torch.full_like(cost[0], torch.inf).scatter_reduce(0, wanted, price, "amin")
        number = torch.arange(len(rows), device=cost.device)
        number = torch.where(price == best[wanted], number, n)
        winner = torch.full_like(columns, n).scatter_reduce(0, wanted, number, "amin")
        taken = winner < n
        winner = winner[taken]
        result[rows[winner]] = columns[taken]
        left = torch.ones_like(rows, dtype=torch.bool).index_fill_(0, winner, False)
        rows, columns, cost = rows[left], columns[~taken], cost[left][:, ~taken]
    result[rows] = columns
    return result


def _exchange(cost: Tensor, column: Tensor, rounds: int) -> Tensor:
    """In round r, rows i and j with i + j = r modulo n exchange their columns if that is cheaper."""
    n = len(cost)
    i = torch.arange(n, device=cost.device)
    flat = cost.reshape(-1)
    own = flat[i * n + column]
    for r in range(rounds):
        j = (r - i) % n  # the partner's partner is the row itself
        theirs = column[j]
        offered = flat[i * n + theirs]
        better = offered + offered[j] < own + own[j]  # the same on both sides, as a + b == b + a
        column = torch.where(better, theirs, column)
        own = torch.where(better, offered, own)
    return column
