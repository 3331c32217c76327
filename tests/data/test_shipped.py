"""The data sets in examples/data, as the examples use them."""

from pathlib import Path

import datasets
import pytest
import torch

from fm_ext.data import image_loader, load_images

FOLDER = Path(__file__).parents[2] / "examples" / "data"
SHAPES = {
    "fashion_mnist": (6000, 1000, (1, 28, 28)),
    "mnist": (6000, 1000, (1, 28, 28)),
    "portraits": (889, 90, (3, 64, 64)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_they_load_as_from_the_hub(name: str) -> None:
    splits = datasets.load_dataset(str(FOLDER / name))
    assert {split: len(data) for split, data in splits.items()} == {
        "train": SHAPES[name][0],
        "test": SHAPES[name][1],
    }
    for data in splits.values():
        assert isinstance(data.features["image"], datasets.Image)
        assert isinstance(data.features["label"], datasets.ClassLabel)
    assert sum(file.stat().st_size for file in (FOLDER / name).iterdir()) < 5e6


@pytest.mark.parametrize("name", SHAPES)
def test_they_are_what_they_say(name: str) -> None:
    rows, test_rows, shape = SHAPES[name]
    loader = image_loader(FOLDER / name, batch_size=rows, shuffle=False)
    (batch,) = loader
    assert batch["image"].shape == (rows, *shape)
    assert batch["image"].min() == -1 and batch["image"].max() == 1
    images, labels = load_images(FOLDER / name)
    assert images.shape == (test_rows, *shape) and labels is not None
    if name != "portraits":
        assert torch.equal(batch["label"].bincount(), torch.full((10,), 600))
        assert torch.equal(labels.bincount(), torch.full((10,), 100))
        assert loader.dataset.classes[0] == {"mnist": "0", "fashion_mnist": "T - shirt / top"}[name]
    else:
        assert (images[:, :, 0, 0] > 0.9).all()  # on white


def test_the_code_of_the_docs_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    root = FOLDER.parents[1]
    monkeypatch.chdir(root)
    code = (root / "docs/content/guides/data.md").read_text().split("```python\n")[1]
    variables: dict = {}
    exec(code.split("```")[0], variables)
    assert variables["batch"]["image"].shape == (64, 1, 28, 28)
    assert variables["images"].shape == (100, 1, 28, 28)


def test_no_portrait_design_is_on_both_sides() -> None:
    splits = datasets.load_dataset(str(FOLDER / "portraits"))
    assert not set(splits["train"]["name"]) & set(splits["test"]["name"])


def test_the_stories_are_what_they_say() -> None:
    splits = datasets.load_dataset(str(FOLDER / "stories"))
    assert {split: len(data) for split, data in splits.items()} == {"train": 187, "test": 20}
    train, test = (set(splits[split]["text"]) for split in ("train", "test"))
    assert not train & test
    assert any(chapter.startswith("In the beginning God created") for chapter in train)
    assert all(chapter.isascii() and "`" not in chapter for chapter in train | test)
    assert sum(file.stat().st_size for file in (FOLDER / "stories").iterdir()) < 1e6
