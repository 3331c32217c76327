"""Images as latents on disk: encoded once, sharded over processes, resumed after a kill, read in order."""

import json
import math
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from fm_ext.data.loader import as_is, image_loader
from fm_ext.data.pairs import as_numpy, row_loader, write_shard
from fm_ext.data.source import Source
from fm_ext.utils.inputs import check_whole

MANIFEST = "latents.json"
"""The description of a folder: written first, so that a second call goes on with the same latents or refuses."""


@runtime_checkable
class Codec(Protocol):
    """What encodes: `fm_ext.models.LatentCodec`, or any module like it."""

    draw: bool

    def encode(self, images: Tensor, *, generator: torch.Generator | None) -> Tensor: ...

    def state_dict(self) -> dict[str, Any]: ...


def write_latents(
    source: Source,
    codec: Codec,
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 32,
    shard_rows: int = 1000,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    num_workers: int = 0,
    seed: int = 0,
    **options: Any,
) -> int:
    """Encodes a data set of images once, for `latent_loader`.

    Row i of the folder is row i of the source. The files are parquet with the columns `latent` and, where the source
    has one, `label`, each of `shard_rows` rows. In a process group all processes must call it, and each writes every
    `processes`-th file. A file is complete or not there, so after a kill the same call goes on, on any number of
    processes, and what it writes is what an undisturbed run would have written: what `codec` draws depends on `seed`,
    the file and `batch_size`.

    Args:
        source: as `image_loader` takes it; not a stream.
        codec: encodes images in [-1, 1] on `device`.
        folder: where the files go; made if need be.
        batch_size: images that the codec gets at once.
        shard_rows: rows of a file, the most that a kill costs.
        dtype: of the stored latents; float16 halves the files.
        device: where the images go before they are encoded; None for the CPU.
        num_workers: processes that decode images meanwhile.
        seed: of what the codec draws, if it does.
        **options: of `image_loader`: `split`, `size`, `channels`, `crop`, ... ; none that is random.

    Returns:
        The number of files that this process has written.

    Raises:
        ValueError: for a folder of other latents, or of anything else in parquet; for an option that would make rows
            random or skip them; for an argument out of range.
        TypeError: for a stream, whose rows have no numbers.
    """
    batch_size, seed = check_whole("batch_size", batch_size, 1), check_whole("seed", seed, 0)
    shard_rows, num_workers = (
        check_whole("shard_rows", shard_rows, 1),
        check_whole("num_workers", num_workers, 0),
    )
    for name, fixed in (
        ("shuffle", False),
        ("flip", False),
        ("drop_last", False),
        ("on_error", "raise"),
    ):
        if options.setdefault(name, fixed) != fixed:
            raise ValueError(
                f"`{name}` must be {fixed!r}, because latents are encoded once; got {options[name]!r}. Mirrored images "
                "are a second folder, and their rows a second source."
            )
    if options.get("crop") == "random":
        raise ValueError(
            "`crop` must be 'center' or None, because latents are encoded once; got 'random'."
        )
    if options.pop("streaming", False):
        raise TypeError(
            "`streaming` must be False: the rows of a stream have no numbers to go on from."
        )
    loader = image_loader(source, batch_size=1, in_memory=False, num_workers=0, **options)
    images: Any = loader.dataset
    rows, folder = len(images), Path(folder).expanduser()
    manifest = {
        "rows": rows,
        "shard_rows": shard_rows,
        "dtype": str(dtype),
        "codec": _digest(codec),
        "draws": [seed, batch_size] if codec.draw else None,
        "source": images.identity,
    }
    rank, world = 0, 1
    if dist.is_available() and dist.is_initialized():
        rank, world = dist.get_rank(), dist.get_world_size()
    refused = [_claim(folder, manifest) if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(refused)  # and none writes before the first has looked
    if refused[0] is not None:
        raise ValueError(refused[0])
    written = 0
    for number in range(rank, math.ceil(rows / shard_rows), world):
        file = folder / _name(number)
        if file.exists():
            continue
        stop = min(rows, (number + 1) * shard_rows)
        starts = range(number * shard_rows, stop, batch_size)
        chunks = [list(range(start, min(start + batch_size, stop))) for start in starts]
        own_seed = np.random.SeedSequence((seed, number)).generate_state(1)
        generator = torch.Generator().manual_seed(int(own_seed[0]))
        shard: list[dict[str, np.ndarray]] = []
        for batch in DataLoader(
            images, batch_sampler=chunks, collate_fn=as_is, num_workers=num_workers
        ):
            latent = codec.encode(batch["image"].to(device), generator=generator)
            columns = {"latent": latent.to(dtype)} | {
                k: v for k, v in batch.items() if k == "label"
            }
            shard.append({name: as_numpy(column) for name, column in columns.items()})
        write_shard(shard, file)
        written += 1
    return written


def latent_loader(
    folder: str | os.PathLike[str],
    *,
    batch_size: int,
    shuffle: bool = True,
    seed: int = 0,
    drop_last: bool | None = None,
) -> DataLoader[dict[str, Tensor]]:
    """Batches of stored latents: `{"latent": (batch, channel, rows, columns), "label": ...}`.

    Latents are no images: they have about unit variance and no bounds. Order, shards over processes and resume are
    those of `pair_loader`.

    Args:
        folder: what `write_latents` wrote, all of it.
        batch_size: rows of a batch, on each process.
        shuffle: whether the order is random.
        seed: of the order.
        drop_last: whether an incomplete last batch is left out; None: when shuffling.

    Raises:
        ValueError: for an argument out of range, or a folder without latents or with a part of them.
    """
    batch_size, seed = check_whole("batch_size", batch_size, 1), check_whole("seed", seed, 0)
    folder = Path(folder).expanduser()
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"`folder` must hold latents that write_latents wrote; {folder} holds none."
        )
    manifest = json.loads((folder / MANIFEST).read_text())
    shards = math.ceil(manifest["rows"] / manifest["shard_rows"])
    if missing := [n for n in range(shards) if not (folder / _name(n)).exists()]:
        raise ValueError(
            f"`folder` must hold all latents of write_latents; {folder} lacks {len(missing)} of {shards} files. Call "
            "write_latents again with the same arguments: it goes on."
        )
    return row_loader(folder, batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last)


def _name(number: int) -> str:
    return f"train-{number:05}.parquet"


def _claim(folder: Path, manifest: dict[str, Any]) -> str | None:
    """Writes the manifest, unless it is there already; otherwise what is wrong with the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / MANIFEST
    if file.exists():
        found, wanted = json.loads(file.read_text()), json.loads(json.dumps(manifest))
        if found == wanted:
            return None
        other = [name for name in wanted if found.get(name) != wanted[name]]
        return (
            f"`folder` must be free or hold the same latents; {folder} differs in {', '.join(other)}. Name another, or "
            "remove it."
        )
    if next(folder.glob("*.parquet"), None) is not None:
        return f"`folder` must hold no other data; {folder} does. Name another."
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(manifest, indent=1))
    partial.replace(file)
    return None


def _digest(codec: Codec) -> str:
    """Of all weights of the codec, and of its scale and shift."""
    digest = blake2b(digest_size=16)
    for name, value in sorted(codec.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(
                value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()
