"""Laws of latents on disk: rows in order, whoever wrote them and however often they were killed."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fm_ext.data import latent_loader, latents, write_latents
from fm_ext.models import LatentCodec

ROWS = 22  # of `numbered`
OPTIONS = {"batch_size": 3, "shard_rows": 4}


class Halves(nn.Module):
    """A cell is the mean of its four pixels; `law` is what diffusers' Gaussian encoders answer with."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def encode(self, images):
        mean = nn.functional.avg_pool2d(images, 2) + self.bias
        return _Answer(mean)

    def decode(self, latents):
        return latents.repeat_interleave(2, -1).repeat_interleave(2, -2)


class _Answer:
    def __init__(self, mean):
        self.latent_dist, self.mean = self, mean

    def mode(self):
        return self.mean

    def sample(self, generator):
        return self.mean + torch.randn(self.mean.shape, generator=generator)


def codec(**options):
    return LatentCodec(Halves(), factor=2, **options)


def rows(folder, **options):
    batches = list(latent_loader(folder, batch_size=5, shuffle=False, **options))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def numbers(latent):
    return ((latent[:, 0, 0, 0] + 1) * 127.5 / 2).round().int().tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_row_i_is_row_i_of_the_source(numbered: Callable, tmp_path: Path, workers):
    assert write_latents(numbered(), codec(), tmp_path, num_workers=workers, **OPTIONS) == 6
    read = rows(tmp_path)
    assert numbers(read["latent"]) == list(range(ROWS))
    assert read["latent"].shape == (ROWS, 1, 4, 4) and read["latent"].dtype == torch.float32
    assert read["label"].tolist() == [i % 3 for i in range(ROWS)]
    shuffled = list(latent_loader(tmp_path, batch_size=5, seed=1))
    assert len(shuffled) == 4 and numbers(shuffled[0]["latent"]) != list(range(5))
    assert write_latents(numbered(), codec(), tmp_path, **OPTIONS) == 0  # all is there


def test_half_precision_halves_the_files(numbered: Callable, tmp_path: Path):
    write_latents(numbered(), codec(), tmp_path, dtype=torch.float16, **OPTIONS)
    read = rows(tmp_path)
    assert read["latent"].dtype == torch.float16 and numbers(read["latent"].float()) == [
        *range(ROWS)
    ]


def test_a_kill_and_other_processes_change_nothing(numbered: Callable, tmp_path: Path, monkeypatch):
    """One process in one go writes what one that is killed and then two write; drawn latents too."""
    write, some = latents.write_shard, tmp_path / "some"

    def killed(shard, file):
        if file.name == "train-00003.parquet":
            file.with_suffix(".partial").write_bytes(b"half a file")
            raise KeyboardInterrupt
        write(shard, file)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(latents, "write_shard", killed)
        write_latents(numbered(), codec(draw=True), some, **OPTIONS)
    assert len(list(some.glob("*.parquet"))) == 3
    with pytest.raises(ValueError, match=r"lacks 3 of 6 files\. Call write_latents again"):
        latent_loader(some, batch_size=1)
    for rank in (1, 0):
        group = SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: True,
            get_rank=lambda rank=rank: rank,
            get_world_size=lambda: 2,
            broadcast_object_list=lambda objects: None,
        )
        with monkeypatch.context() as patch:
            patch.setattr(latents, "dist", group)
            written = write_latents(numbered(), codec(draw=True), some, **OPTIONS)
        assert written == {0: 1, 1: 2}[rank]  # files 4, and 3 and 5
    write_latents(numbered(), codec(draw=True), tmp_path / "one", **OPTIONS)
    rows_of_some, rows_of_one = rows(some), rows(tmp_path / "one")
    assert all(torch.equal(rows_of_some[name], rows_of_one[name]) for name in rows_of_one)
    assert rows_of_one["latent"].std() > 0.9  # they were drawn


def other_codec():
    other = codec()
    other.vae.bias.data.fill_(0.5)
    return other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec": other_codec}, "differs in codec"),
        ({"shard_rows": 5}, "differs in shard_rows"),
        ({"dtype": torch.float16}, "differs in dtype"),
        ({"rows": 20}, "differs in rows, source"),
        ({"size": 4}, "differs in source"),
    ],
)
def test_other_latents_do_not_mix(numbered: Callable, tmp_path: Path, change, message):
    write_latents(numbered(), codec(), tmp_path, **OPTIONS)
    options = OPTIONS | change
    source, made = numbered(options.pop("rows", ROWS)), options.pop("codec", codec)()
    with pytest.raises(ValueError, match=message):
        write_latents(source, made, tmp_path, **options)


def test_bad_input(numbered: Callable, tmp_path: Path):
    for option in ({"flip": True}, {"shuffle": True}, {"on_error": "skip"}, {"crop": "random"}):
        with pytest.raises(ValueError, match=f"`{next(iter(option))}` must be"):
            write_latents(numbered(), codec(), tmp_path, **option)
    with pytest.raises(TypeError, match="`streaming` must be False"):
        write_latents(numbered(), codec(), tmp_path, streaming=True)
    with pytest.raises(ValueError, match="`shard_rows`"):
        write_latents(numbered(), codec(), tmp_path, shard_rows=0)
    with pytest.raises(ValueError, match="`folder` must hold latents that write_latents wrote"):
        latent_loader(tmp_path, batch_size=1)
    (tmp_path / "x.parquet").touch()
    with pytest.raises(ValueError, match="`folder` must hold no other data"):
        write_latents(numbered(), codec(), tmp_path)
    assert not (tmp_path / latents.MANIFEST).exists()
