"""Pictures that the examples draw; a reader of a lesson may skip it."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torchvision.utils import make_grid


def save_figure(figure: plt.Figure, file: Path, **options) -> None:
    """Saves and says so."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, **options)
    plt.close(figure)
    print(f"saved {file}")


def show_rows(
    axis: Axes, rows: Sequence[Tensor], titles: Sequence[str] = (), columns: Sequence[str] = ()
) -> None:
    """Rows of images on one axis, with the names of rows at the left and of columns above.

    Args:
        axis: of matplotlib.
        rows: of `(count, channel, height, width)` each, in about [-1, 1].
        titles: one a row, or none.
        columns: one a column, or none.
    """
    images = torch.cat([row.detach().cpu().float() for row in rows]).clamp(-1, 1)
    count = len(rows[0])
    grid = make_grid(images / 2 + 0.5, count).movedim(0, 2)
    axis.imshow(grid, extent=(0, count, len(rows), 0), aspect="auto", interpolation="nearest")
    axis.set_xticks(torch.arange(len(columns)) + 0.5, columns)
    axis.set_yticks(torch.arange(len(titles)) + 0.5, titles)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)


def save_rows(
    file: Path,
    rows: Sequence[Tensor],
    titles: Sequence[str] = (),
    columns: Sequence[str] = (),
    *,
    inches: float = 0.6,
) -> None:
    """A picture of `show_rows` alone; an image takes `inches` of it."""
    height, width = rows[0].shape[-2:]
    size = (inches * len(rows[0]) * width / height, inches * len(rows))
    figure, axis = plt.subplots(figsize=size)
    show_rows(axis, rows, titles, columns)
    save_figure(figure, file, dpi=100, bbox_inches="tight")


def show_flow(axis: Axes, states: Tensor, lines: int = 100, **options) -> None:
    """Points in the plane where they end, and some of their paths.

    Args:
        axis: of matplotlib.
        states: at all times, `(time, count, 2)`.
        lines: how many paths.
        **options: of the points, for `Axes.scatter`.
    """
    axis.plot(*states[:, :lines].unbind(2), color="0.8", linewidth=0.5, zorder=0)
    axis.scatter(*states[-1].T, **({"s": 2} | options))
    axis.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
