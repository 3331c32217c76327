"""Batches whose rows are chosen by noise."""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import DataLoader

from fm_ext.data.loader import EpochLoader
from fm_ext.data.order import EpochDataset, EpochSampler
from fm_ext.sampling.noise import indexed_noise
from fm_ext.utils.inputs import check_whole


@runtime_checkable
class Assignment(Protocol):
    """What chooses rows: `fm_ext.coupling.SemidiscreteTransport`."""

    x_1: Tensor
    label: Tensor | None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides on the rows, as JSON has it."""
        ...

    def assign(
        self, x_0: Float[Tensor, " batch *dim"], label: Int64[Tensor, " batch"] | None = None
    ) -> Int64[Tensor, " batch"]:
        """The row of each noise."""
        ...


def assigned_loader(
    loader: DataLoader[dict[str, Tensor]],
    transport: Assignment,
    *,
    batch_size: int,
    seed: int = 0,
) -> DataLoader[dict[str, Tensor]]:
    """Batches of noise `x_0` and the rows that `transport` assigns to it, for training on the plain path.

    An epoch is as much noise as there are rows. Each noise is a function of (seed, its number) alone, and so is the row
    that it gets: batches are the same on any number of processes, and resume is exact, as for `image_loader`. Rows
    come about equally often in the long run, not once an epoch. With labels, the class of the k-th noise of an epoch
    is that of row k, so classes are as frequent as in the data, and noise is independent of the class.

    Args:
        loader: of `image_loader` or another of this room, with all rows of the data that the transport was fitted to,
            in their order; its own batches are not used. Flips and crops are made after the assignment.
        transport: chooses the rows.
        batch_size: rows of a batch, on each process; an incomplete last batch is left out.
        seed: of the noise.

    Raises:
        TypeError: for a stream, or a loader of another room.
        ValueError: for another number of rows than the transport's, and numbers out of range.
    """
    data = loader.dataset
    if not isinstance(data, EpochDataset) or not hasattr(data, "__len__"):
        raise TypeError(
            "`loader` must be one of fm_ext.data with a known number of rows, which a stream has not; got one of "
            f"{type(data).__name__}. Write image_loader(..., streaming=False)."
        )
    dataset = AssignedDataset(data, transport, check_whole("seed", seed, 0))
    batch_size = check_whole("batch_size", batch_size, 1)
    if batch_size > len(dataset):
        raise ValueError(f"`batch_size` must be at most the {len(dataset)} rows; got {batch_size}.")
    return EpochLoader(dataset, EpochSampler(dataset), batch_size=batch_size, drop_last=True)


class AssignedDataset(EpochDataset):
    """Rows of another data set, chosen by noise.

    Args:
        data: the rows.
        transport: chooses them.
        seed: of the noise.
    """

    def __init__(self, data: EpochDataset, transport: Assignment, seed: int):
        super().__init__(seed=seed, shuffle=False)
        if len(data) != len(transport.x_1):  # pyright: ignore[reportArgumentType]
            raise ValueError(
                f"`loader` must hold the rows that the transport was fitted to, {len(transport.x_1)}; it holds "
                f"{len(data)}."  # pyright: ignore[reportArgumentType]
            )
        self.data, self.transport = data, transport

    @property
    def identity(self) -> dict[str, Any]:
        """See `EpochDataset.identity`."""
        return {"data": self.data.identity, **self.assignment}

    @property
    def assignment(self) -> dict[str, Any]:
        """What chooses the rows, as JSON has it: the trainer resumes a run with the same only."""
        return {"transport": self.transport.identity, "seed": self.seed}

    def __len__(self) -> int:
        return len(self.transport.x_1)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """The batch of these indices, as the loader's sampler yields them."""
        x_0 = indexed_noise(indices, self.transport.x_1.shape[1:], seed=self.seed)
        label, numbers = self.transport.label, torch.tensor(indices)
        if label is not None:
            label = label[(numbers % len(self)).to(label.device)]
        rows = self.transport.assign(x_0, label).cpu()
        batch = self.data.__getitems__((numbers - numbers % len(self) + rows).tolist())
        device = next(iter(batch.values())).device
        return {"x_0": x_0.to(device), **batch}
