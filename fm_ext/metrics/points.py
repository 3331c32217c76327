"""Two sets of samples, checked, as points in float64."""

import torch
from torch import Tensor


def as_points(
    samples: Tensor,
    reference: Tensor,
    *,
    names: tuple[str, str] = ("samples", "reference"),
    equal: bool = False,
    least: int = 2,
) -> tuple[Tensor, Tensor]:
    """Both sets as `(batch, dimension)` in float64.

    Args:
        samples: one set, rows first.
        reference: the other.
        names: of the two arguments, for the messages.
        equal: whether the figure depends on the sample size, and so needs equal counts.
        least: the smallest count.

    Raises:
        ValueError: for rows of different shapes, too few rows, unequal counts with `equal`, or numbers that are not
            finite.
    """
    if samples.ndim < 2 or samples.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must be (batch, ...) with rows of one shape; got "
            f"{tuple(samples.shape)} and {tuple(reference.shape)}."
        )
    if equal and len(samples) != len(reference):
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must have equally many rows, because the figure depends on their number; "
            f"got {len(samples)} and {len(reference)}. Draw more, or leave rows out of the larger set."
        )
    for name, rows in zip(names, (samples, reference), strict=True):
        if len(rows) < least:
            raise ValueError(f"`{name}` must have at least {least} rows; got {len(rows)}.")
        if not rows.isfinite().all():
            raise ValueError(f"`{name}` must be finite; it holds NaN or infinity.")
    x, y = (rows.detach().flatten(1).to(torch.float64) for rows in (samples, reference))
    return x, y


def ordered(points: Tensor) -> Tensor:
    """The rows `(batch, dimension)` in an order of their own, so that parts of them do not depend on how they came."""
    weights = torch.linspace(1, 2, points.shape[1], dtype=torch.float64, device=points.device)
    return points[(points.double() @ weights).argsort(stable=True)]
