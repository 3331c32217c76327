"""A figure with its interval and its sample count."""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A figure, the interval around it, and how many samples it rests on.

    Prints as `0.412 [0.398, 0.426] (n = 10000)`; a format specification, as in `f"{estimate:.1f}"`, goes to each
    number.

    Attributes:
        value: the figure.
        low: lower end of the interval.
        high: upper end.
        count: number of samples.
        level: probability of the interval.
    """

    value: float
    low: float
    high: float
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    level: float = 0.95

    def __format__(self, specification: str) -> str:
        value, low, high = (format(x, specification or ".4g") for x in self[:3])
        return f"{value} [{low}, {high}] (n = {self.count})"

    def __str__(self) -> str:
        return format(self)


def jackknife(
    statistic: Callable[..., Tensor],
    *samples: Tensor,
    paired: bool = False,
    resamples: int = 50,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""Any statistic of samples, with an interval from random halves of them.

    $$T \pm z \sqrt{\tfrac{b}{n - b}}\; s, \qquad b = \lfloor n / 2 \rfloor$$

    where $s$ is the standard deviation of the statistic over subsets of $b$ of the $n$ rows, drawn without replacement
    from each tensor on its own, and $z$ the normal quantile (1.96): the delete-d jackknife of Shao and Wu (Annals of
    Statistics 17(3), 1989), with $d = n - b$. The usual bootstrap draws $n$ rows with replacement, and repeats some:
    then nearest neighbours are at distance 0 (Abadie and Imbens, Econometrica 76(6), 2008), self-pairs enter averages
    over pairs, and the bias of a Frechet distance doubles, so that its percentiles need not contain the figure itself.
    Halves repeat nothing; their larger bias moves their mean and not their spread, which is all that is used.

    The interval tells how far the figure would move with other samples *of the same number*. It does not remove a bias:
    a statistic that depends on the sample size is to be compared at equal counts. Where two distributions agree, the
    figures that are then near 0 (kernel and energy distances) get intervals too wide rather than too narrow. That of a
    proportion near 0 or 1 in few samples is too narrow: 20 of 20 right give [1, 1].

    Args:
        statistic: takes the tensors, in this order, and returns one number. It must be defined on half of the rows.
        samples: tensors whose rows (first axis) are independent samples.
        paired: whether row i of all tensors belongs together (an image, its target, its mask).
        resamples: number of halves; the interval's width is then right to about $1 / \sqrt{2 \cdot 50}$ = 10 %.
        level: probability of the interval.
        generator: source of the halves, on the CPU; a new one with seed 0 if None, so the same data give the same
            interval.

    Returns:
        The statistic of all rows, with the interval; `count` is the number of rows of the smallest tensor.

    Raises:
        ValueError: for no tensor, one with fewer than 4 rows, paired tensors of unequal lengths, fewer than 2
            resamples, a level outside (0, 1), or a statistic that is not one number, not finite, or not defined on half
            of the rows.
    """
    counts = [len(rows) for rows in samples]
    if not counts or min(counts) < 4:
        raise ValueError(f"`samples` must be tensors with at least 4 rows each; got {counts} rows.")
    if paired and len(set(counts)) > 1:
        raise ValueError(f"`samples` must have equally many rows if paired; got {counts}.")
    if resamples < 2:
        raise ValueError(f"`resamples` must be at least 2; got {resamples}.")
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie in (0, 1); got {level}.")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    value = number(statistic(*samples))
    halves = []
    for _ in range(resamples):
        orders = [torch.randperm(n, generator=generator) for n in counts[: 1 if paired else None]]
        chosen = [order[: len(order) // 2] for order in orders]
        chosen = chosen * len(counts) if paired else chosen
        rows = (x[i.to(x.device)] for x, i in zip(samples, chosen, strict=True))
        try:
            halves.append(number(statistic(*rows)))
        except ValueError as error:
            raise ValueError(
                f"`statistic` must be defined on half of the rows, {[len(order) for order in chosen]} of {counts}, "
                f"for the interval; there it says: {error}"
            ) from error
    count = min(counts)
    half = count // 2
    spread = torch.tensor(halves, dtype=torch.float64).std().item()
    margin = NormalDist().inv_cdf(0.5 + level / 2) * spread * math.sqrt(half / (count - half))
    return Estimate(value, value - margin, value + margin, count, level)


def number(value: Tensor | float) -> float:
    """What a statistic returned, as a float."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(
            f"`statistic` must return one number; got shape {tuple(value.shape)}. Take one entry or a mean, "
            "for example lambda x: f(x).mean()."
        )
    if not math.isfinite(value):
        raise ValueError(f"`statistic` must return a finite number; got {float(value)}.")
    return float(value)
