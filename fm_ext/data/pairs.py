"""Pairs of source and target on disk, written and read."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.distributed as dist
from pyarrow import compute, types
from torch import Tensor
from torch.utils.data import DataLoader

from fm_ext.data.loader import EpochLoader, check_fills
from fm_ext.data.order import EpochDataset, EpochSampler
from fm_ext.data.source import fingerprint, sampled_rows
from fm_ext.utils.inputs import check_whole

SHARD = 10_000
"""Rows of a file, at least, but for the last one."""

UNFINISHED = "unfinished-"
"""The name of a file, with the rank behind, as long as a process has pairs to write."""


def write_pairs(batches: Iterable[Mapping[str, Tensor]], folder: str | os.PathLike) -> int:
    """Stores pairs of source and target, for example those that `fm_ext.solver.simulate_pairs` yields.

    The files are parquet, which `datasets.load_dataset(folder)` reads: columns `x_0`, `x_1` and the conditions, in
    their dtypes, but for bfloat16, which parquet does not know and which is stored as float32. In a process group
    all processes must call it; each writes files of its own, so give each its own pairs. A folder that is not
    finished, because a process was killed or is still writing, is marked by a file, and `pair_loader` refuses it.

    Args:
        batches: dictionaries of `x_0` and `x_1` `(batch, ...)`, and of the conditions row by row; the same names in
            each. They are taken one after the other, and only when the folder is known to be free.
        folder: where the files go; made if need be.

    Returns:
        The number of pairs that this process has stored.

    Raises:
        ValueError: if the folder holds parquet already, of whichever process, a batch has no `x_0` or no `x_1`, or
            differs from the first in its names or in the rows of one of its tensors, or there is no pair at all.
        TypeError: if a batch is no dictionary of tensors.
    """
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    folder = Path(folder).expanduser()
    mark = folder / f"{UNFINISHED}{rank:03}"
    _claim(folder, mark)
    rows: list[dict[str, np.ndarray]] = []
    names: set[str] = set()
    total = waiting = shards = 0
    for batch in batches:
        _check_batch(batch, names)
        names = set(batch)
        if not len(batch["x_0"]):
            continue
        rows.append({name: as_numpy(x) for name, x in batch.items()})
        waiting += len(batch["x_0"])
        total += len(batch["x_0"])
        if waiting >= SHARD:
            write_shard(rows, folder / f"train-{rank:03}-{shards:05}.parquet")
            rows, waiting, shards = [], 0, shards + 1
    if rows:
        write_shard(rows, folder / f"train-{rank:03}-{shards:05}.parquet")
    if not total:
        raise ValueError("`batches` must have a row; it is empty.")
    mark.unlink()
    return total


def pair_loader(
    folder: str | os.PathLike,
    *,
    batch_size: int,
    shuffle: bool = True,
    seed: int = 0,
    drop_last: bool | None = None,
) -> DataLoader[dict[str, Tensor]]:
    """Batches of stored pairs: `{"x_0": ..., "x_1": ..., "label": ...}`, each row whole.

    Tensors have the dtypes that were stored. The order of an epoch is a function of (seed, epoch), processes take turns
    batch by batch, and resume is exact, as for `image_loader`.

    Args:
        folder: what `write_pairs` wrote, or any folder of parquet with fixed-size numeric columns.
        batch_size: rows of a batch, on each process.
        shuffle: whether the order is random.
        seed: of the order.
        drop_last: whether an incomplete last batch is left out; None: when shuffling.

    Raises:
        ValueError: for an argument out of range, or a folder without pairs or with a part of them.
    """
    batch_size, seed = check_whole("batch_size", batch_size, 1), check_whole("seed", seed, 0)
    folder = Path(folder).expanduser()
    if next(folder.glob("*.parquet"), None) is None:
        raise ValueError(f"`folder` must hold pairs that write_pairs wrote; {folder} holds none.")
    if unfinished := sorted(file.name for file in folder.glob(f"{UNFINISHED}*")):
        raise ValueError(
            f"`folder` must hold all pairs of write_pairs; {folder} holds {', '.join(unfinished)}: that process was "
            "killed, or is still writing. Wait for it, or begin anew in another folder."
        )
    return row_loader(folder, batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last)


def row_loader(
    folder: Path, batch_size: int, *, shuffle: bool, seed: int, drop_last: bool | None
) -> EpochLoader:
    """Batches of the rows of a folder of parquet, in the order of its files or an epoch's own; see `pair_loader`."""
    try:
        data = datasets.load_dataset(str(folder), split="train")
    except ValueError as error:  # files without rows
        raise ValueError(f"`folder` must hold rows; {folder} holds none: {error}") from error
    drop_last = shuffle if drop_last is None else drop_last
    check_fills(len(data), batch_size, drop_last)
    dataset = PairDataset(data, seed=seed, shuffle=shuffle)
    return EpochLoader(dataset, EpochSampler(dataset), batch_size=batch_size, drop_last=drop_last)


class PairDataset(EpochDataset):
    """Rows of a HuggingFace data set as tensors, a batch at a time.

    Args:
        data: columns of numbers, all rows of a shape.
        seed: of the order in which the loader reads.
        shuffle: whether that order is random.
    """

    def __init__(self, data: datasets.Dataset, *, seed: int, shuffle: bool):
        super().__init__(seed=seed, shuffle=shuffle)
        self.data = data.with_format("arrow")
        self._fingerprint = fingerprint(sampled_rows(data.with_format(None)))

    @property
    def identity(self) -> dict[str, Any]:
        """See `EpochDataset.identity`."""
        return {
            "rows": len(self),
            "columns": sorted(self.data.column_names),
            "shuffle": self.shuffle,
            "seed": self.seed,
            "fingerprint": self._fingerprint,
        }

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """The batch of these indices, as the loader's sampler yields them."""
        table: Any = self.data[[index % len(self) for index in indices]]
        return {name: _tensor(table[name].combine_chunks()) for name in table.column_names}


def _claim(folder: Path, mark: Path) -> None:
    """Marks the folder as unfinished, unless it holds anything on any process; none writes before all have looked."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {*folder.glob("*.parquet"), *folder.glob(f"{UNFINISHED}*")} - {mark}
    everywhere = [bool(found)]
    if dist.is_available() and dist.is_initialized():
        everywhere *= dist.get_world_size()
        dist.all_gather_object(everywhere, bool(found))
    if any(everywhere):
        raise ValueError(
            f"`folder` must hold no pairs yet; {folder} does. Remove them, or name another."
        )
    mark.touch()


def _check_batch(batch: Mapping[str, Tensor], names: set[str]) -> None:
    """Raises unless it is a batch of pairs with these names, if any."""
    if not isinstance(batch, Mapping) or not all(isinstance(x, Tensor) for x in batch.values()):
        raise TypeError("`batches` must be dictionaries of tensors with x_0 and x_1.")
    if not {"x_0", "x_1"} <= set(batch) or names not in (set(), set(batch)):
        raise ValueError(
            "`batches` must have x_0 and x_1 in each, and the same names in all; got "
            f"{sorted(batch)}" + (f" after {sorted(names)}." if names else ".")
        )
    rows = {name: tuple(x.shape[:1]) for name, x in batch.items()}
    if len(set(rows.values())) > 1 or () in rows.values():
        raise ValueError(f"`batches` must have as many rows of each tensor as of x_0; got {rows}.")


def write_shard(rows: list[dict[str, np.ndarray]], file: Path) -> None:
    """One parquet file; complete or not there."""
    columns = {name: np.concatenate([batch[name] for batch in rows]) for name in rows[0]}
    features = datasets.Features({name: _feature(x) for name, x in columns.items()})
    partial = file.with_suffix(".partial")
    datasets.Dataset.from_dict(columns, features=features).to_parquet(partial)
    partial.replace(file)


def _tensor(column: Any) -> Tensor:
    """An arrow array of numbers, or of nested lists of them, in its own dtype."""
    values = getattr(column, "storage", column)
    shape = [len(values)]
    while values.type.num_fields:  # a list
        lengths = set(compute.list_value_length(values).to_pylist())  # pyright: ignore[reportAttributeAccessIssue]
        if len(lengths) != 1:
            raise ValueError(
                f"`folder` must hold rows of one shape; got lists of {lengths} numbers."
            )
        shape.append(lengths.pop())
        values = values.flatten()
    if values.null_count or not (
        types.is_integer(values.type)
        or types.is_floating(values.type)
        or types.is_boolean(values.type)
    ):
        raise ValueError(
            f"`folder` must hold numbers, none of them missing; got {values.type} with {values.null_count} missing."
        )
    return torch.from_numpy(np.array(values.to_numpy(zero_copy_only=False)).reshape(shape))


def as_numpy(x: Tensor) -> np.ndarray:
    """A tensor as parquet can hold it: bfloat16 becomes float32."""
    return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()


def _feature(x: np.ndarray) -> Any:
    arrays = {3: datasets.Array2D, 4: datasets.Array3D, 5: datasets.Array4D, 6: datasets.Array5D}
    if x.ndim == 1:
        return datasets.Value(str(x.dtype))
    if x.ndim == 2:
        return datasets.Sequence(datasets.Value(str(x.dtype)), length=x.shape[1])
    return arrays[x.ndim](x.shape[1:], str(x.dtype))
