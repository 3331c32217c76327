"""The identity of data, which a trainer records: equal where the rows of every epoch are, and only there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from fm_ext.data import image_loader, image_pair_loader, pair_loader, write_pairs
from fm_ext.solver import simulate_pairs

WAYS = {
    "memory": {"in_memory": True},
    "lazy": {"in_memory": False},
    "stream": {"streaming": True},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_it_is_equal_for_equal_data_and_json_keeps_it(
    way: dict, numbered: Callable, tmp_path: Path
) -> None:
    """In another process, another folder, another cache, with files of another age; held in memory or not."""
    identity = image_loader(numbered(), batch_size=4, num_workers=0, **way).dataset.identity
    assert json.loads(json.dumps(identity)) == identity
    assert identity["rows"] == (None if "streaming" in way else 22)
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        numbered().to_parquet(tmp_path / place / "train.parquet")
        loader = image_loader(tmp_path / place, batch_size=8, num_workers=0, **way)
        assert loader.dataset.identity == identity


CHANGES = {
    "a row less": lambda data: data.select(range(21)),
    "another first row": lambda data: data.select([1, *range(1, 22)]),
    "another label": lambda data: data.map(lambda row: {"label": 2 - row["label"]}),
    "another class": lambda data: data.cast_column(
        "label", datasets.ClassLabel(names=["a", "b", "d"])
    ),
    "another name": lambda data: data.rename_column("image", "photo"),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("change", CHANGES)
def test_it_differs_where_the_data_do(way: dict, change: str, numbered: Callable) -> None:
    identity, other = (
        image_loader(data, batch_size=4, num_workers=0, **way).dataset.identity
        for data in (numbered(), CHANGES[change](numbered()))
    )
    if not (change == "a row less" and "streaming" in way):  # a stream tells its length to nobody
        assert other != identity


@pytest.mark.parametrize(
    "argument",
    [
        {"seed": 1},
        {"shuffle": False},
        {"flip": True},
        {"crop": None},
        {"size": 6},
        {"channels": 3},
        {"label_column": False},
        {"pixel_range": (0, 1)},
    ],
)
def test_it_differs_where_the_reading_does(argument: dict, numbered: Callable) -> None:
    identity, other = (
        image_loader(numbered(), batch_size=4, **arguments).dataset.identity
        for arguments in ({}, argument)
    )
    assert (other != identity and other["fingerprint"] == identity["fingerprint"]) or (
        argument == {"label_column": False}
    )


def test_a_stream_that_each_process_shuffles_anew_is_another_one(numbered: Callable) -> None:
    def identity(seed: int | None) -> dict:
        stream = numbered().to_iterable_dataset().shuffle(seed=seed)
        return image_loader(stream, batch_size=4, shuffle=False, num_workers=0).dataset.identity

    assert identity(3) == identity(3)
    np.random.seed(0)
    assert len({identity(None)["fingerprint"] for _ in range(5)}) > 1


def test_files_are_read_and_not_named(encode: Callable, tmp_path: Path) -> None:
    def identity(folder: Path) -> dict:
        paths = [str(folder / f"{k}.png") for k in range(3)]
        data = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
        return image_loader(data, batch_size=1).dataset.identity

    for k in range(3):
        (tmp_path / "one").mkdir(exist_ok=True)
        file = tmp_path / "one" / f"{k}.png"
        file.write_bytes(encode(np.full((4, 4), k, np.uint8))["bytes"])
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert identity(tmp_path / "one") == identity(tmp_path / "two")
    (tmp_path / "two" / "1.png").write_bytes(encode(np.full((4, 4), 9, np.uint8))["bytes"])
    assert identity(tmp_path / "one") != identity(tmp_path / "two")


def test_pairs_have_one_too(numbered: Callable, tmp_path: Path) -> None:
    first = image_pair_loader(numbered(22), numbered(12), batch_size=4).dataset.identity
    assert first == image_pair_loader(numbered(22), numbered(12), batch_size=4).dataset.identity
    assert first != image_pair_loader(numbered(21), numbered(12), batch_size=4).dataset.identity

    class Still(torch.nn.Module):
        def forward(self, x, t):
            return torch.zeros_like(x)

    identities = []
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        write_pairs(simulate_pairs(Still(), [{"x_0": torch.full((5, 2), value)}]), tmp_path / name)
        dataset = pair_loader(tmp_path / name, batch_size=5).dataset
        identities.append(dataset.identity)  # pyright: ignore[reportAttributeAccessIssue]
    assert identities[0] == identities[1] != identities[2]
    assert json.loads(json.dumps(identities[0])) == identities[0]
