"""The contract of a mask: a batch of holes, each with an area inside the bounds."""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from fm_ext.utils.inputs import check_size, check_whole


@dataclass(frozen=True, kw_only=True)
class Mask(abc.ABC):
    """Draws random holes, a whole batch at once, on any device.

    Inside `torch.compile` a call breaks the graph and runs as it is: what is drawn is as random in
    number and shape as the holes.

    To write a mask of your own, subclass, add your fields, and implement [`draw`][fm_ext.mask.Mask.draw].

    Args:
        area: Lowest and highest missing fraction, in [0, 1]. Every mask drawn lies inside, counted in
            whole pixels; none is empty or full, unless the bounds are `(0, 0)` or `(1, 1)`.
    """

    area: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_range("area", self.area, 0.0, 1.0)

    @torch.compiler.disable
    def __call__(
        self,
        batch: int,
        size: int | Sequence[int],
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Bool[Tensor, "batch 1 *size"]:
        """Draw `batch` masks of `size = (height, width)`; True is missing, to be generated.

        A sequence has one axis: `size = (length,)` gives masks `(batch, 1, length)`, for signals `(batch, channel,
        length)`; `mask.mT` is `(batch, length, 1)`, for `(batch, length, channel)`. They are those of an image of
        height 1.

        Args:
            batch: Number of masks, 0 or more.
            size: Pixels, one number or (height, width), for example `x.shape[-2:]`; or (length,) of a sequence.
            device: Where the masks lie; PyTorch's default device if None.
            generator: Source of the randomness; the global one of `device` if None. The same state
                gives the same masks, and the global state is left alone. They are drawn on the
                generator's device and moved to `device`.

        Raises:
            TypeError: If `batch` or `size` is not in whole numbers.
            ValueError: If `batch` or `size` is out of range, or if no mask of this kind has an area
                inside the bounds on this grid.
        """
        batch = check_whole("batch", batch, 0)
        grid: Any = size
        sequence = isinstance(grid, Sequence) and not isinstance(grid, str) and len(grid) == 1
        height, width = check_size("size", (1, *grid) if sequence else grid)
        place = torch.get_default_device() if device is None else torch.device(device)
        origin = place if generator is None else generator.device
        pixels = pixel_bounds(self.area, height * width)
        masks = self.draw(batch, (height, width), pixels, origin, generator).to(place)
        return masks.squeeze(2) if sequence else masks

    @abc.abstractmethod
    def draw(
        self,
        batch: int,
        size: tuple[int, int],
        pixels: tuple[int, int],
        device: torch.device,
        generator: torch.Generator | None,
    ) -> Bool[Tensor, "batch 1 height width"]:
        """Draw the masks: what a subclass implements and `__call__` calls with checked arguments.

        Args:
            batch: Number of masks.
            size: Height and width.
            pixels: Lowest and highest number of missing pixels: `area` on this grid. The subclass
                keeps to them, or raises a ValueError that names the fractions it can reach.
            device: Where the masks are drawn.
            generator: To be passed to every random function, None included.
        """


def pixel_bounds(area: tuple[float, float], total: int) -> tuple[int, int]:
    """Lowest and highest n with `area[0] <= n / total <= area[1]`, without 0 and total if possible.

    Raises:
        ValueError: If there is no such n; the message names the fractions on either side.
    """
    low, high = (round(fraction * total) for fraction in area)
    low += low / total < area[0]
    high -= high / total > area[1]
    if area[1] > 0:
        low = max(low, 1)
    if area[0] < 1:
        high = min(high, total - 1)
    if low > high:
        raise ValueError(unreachable("a mask", area, total, sorted({low, high})))
    return low, high


def unreachable(what: str, area: tuple[float, float], total: int, nearest: list[int]) -> str:
    """The message for bounds that nothing meets; `nearest` are the closest numbers of pixels."""
    found = [n for n in nearest if 0 < n < total]
    message = (
        f"`area` must hold a fraction that {what} can have on {total} pixels; got {area[0]:g} to {area[1]:g}; the "
        f"nearest are {' and '.join(f'{n}/{total} = {n / total:.6g}' for n in found) or 'none'}"
    )
    if found:
        low, high = min(area[0], found[0] / total), max(area[1], found[-1] / total)
        return f"{message}. Fix: `area=({low!r}, {high!r})`."
    return f"{message}. Fix: a larger image, or `area=(1.0, 1.0)` for masks that are full."


def check_range(
    name: str,
    value: tuple[float, float],
    low: float,
    high: float = math.inf,
    *,
    strict: bool = False,
    whole: bool = False,
) -> None:
    """Raise a ValueError unless `low <= value[0] <= value[1] <= high`, `low < value[0]` if `strict`, both `whole`."""
    try:
        first, last = value
        fine = low <= first <= last <= high and not (strict and first == low)
        fine = fine and not (whole and (first % 1 or last % 1))
    except (TypeError, ValueError):
        fine = False
    if not fine:
        kind = "(smallest, largest)" + " in whole numbers" * whole
        raise ValueError(
            f"`{name}` must be {kind} with {low:g} {'<' if strict else '<='} smallest "
            f"<= largest <= {high:g}; got {value}."
        )
