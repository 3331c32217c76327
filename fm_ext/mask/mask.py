"""The contract of a mask: a batch of holes, each with an area inside the bounds."""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor


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
        size: Sequence[int],
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Bool[Tensor, "batch 1 height width"]:
        """Draw `batch` masks of `size = (height, width)`; True is missing, to be generated.

        Args:
            batch: Number of masks, 0 or more.
            size: Height and width in pixels, for example `x.shape[-2:]`.
            device: Where the masks lie; PyTorch's default device if None.
            generator: Source of the randomness; the global one of `device` if None. The same state
                gives the same masks, and the global state is left alone. They are drawn on the
                generator's device and moved to `device`.

        Raises:
            ValueError: If `batch` or `size` is out of range, or if no mask of this kind has an area
                inside the bounds on this grid.
        """
        if batch < 0:
            raise ValueError(f"`batch` must be at least 0; got {batch}.")
        if len(size) != 2 or min(size) < 1:
            raise ValueError(
                f"`size` must be (height, width) in pixels, both at least 1; got {tuple(size)}."
            )
        place = torch.get_default_device() if device is None else torch.device(device)
        origin = place if generator is None else generator.device
        height, width = size
        pixels = pixel_bounds(self.area, height * width)
        return self.draw(batch, (height, width), pixels, origin, generator).to(place)

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
    fractions = [f"{n}/{total} = {n / total:.6g}" for n in nearest if 0 < n < total]
    return (
        f"`area` must hold a fraction that {what} can have on {total} pixels; got {area[0]:g} to "
        f"{area[1]:g}; the nearest are {' and '.join(fractions) or 'none'}: widen the bounds."
    )


def check_range(
    name: str,
    value: tuple[float, float],
    low: float,
    high: float = math.inf,
    *,
    strict: bool = False,
) -> None:
    """Raise a ValueError unless `low <= value[0] <= value[1] <= high`, `low < value[0]` if `strict`."""
    if len(value) != 2 or not low <= value[0] <= value[1] <= high or (strict and value[0] == low):
        raise ValueError(
            f"`{name}` must be (smallest, largest) with {low:g} {'<' if strict else '<='} smallest "
            f"<= largest <= {high:g}; got {value}."
        )
