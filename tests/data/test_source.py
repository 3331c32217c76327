from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from fm_ext.data import image_loader, load_images


@pytest.fixture
def write(numbered: Callable, tmp_path: Path) -> Callable[[str], object]:
    """The same two splits, 22 and 5 rows, in every form that is read."""

    def write(form: str):
        train, test = numbered(22), numbered(5)
        splits = {"train": train, "test": test}
        folder = tmp_path / form
        match form:
            case "parquet":
                folder.mkdir()
                for name, data in splits.items():
                    data.to_parquet(folder / f"{name}.parquet")
            case "arrow":
                datasets.DatasetDict(splits).save_to_disk(folder)
            case "imagefolder":
                for name, data in splits.items():
                    for row, values in enumerate(data):
                        file = folder / name / "abc"[values["label"]] / f"{row:03}.png"
                        file.parent.mkdir(parents=True, exist_ok=True)
                        values["image"].save(file)
            case "DatasetDict":
                return datasets.DatasetDict(splits)
            case "IterableDatasetDict":
                return datasets.IterableDatasetDict(
                    {name: data.to_iterable_dataset() for name, data in splits.items()}
                )
        return folder

    return write


FORMS = ("parquet", "arrow", "imagefolder", "DatasetDict", "IterableDatasetDict")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(
    form: str, streaming: bool, write: Callable, read_rows: Callable
) -> None:
    source = write(form)
    for split, rows in (("train", 22), ("test", 5)):
        loader = image_loader(
            source, split=split, batch_size=4, shuffle=False, num_workers=0, streaming=streaming
        )
        batches = list(loader)
        images = torch.cat([batch["image"] for batch in batches])
        labels = torch.cat([batch["label"] for batch in batches])
        numbers = [number for number, _ in read_rows(images)]
        assert sorted(numbers) == list(range(rows))
        assert labels.tolist() == [number % 3 for number in numbers]
        assert loader.dataset.classes == ["a", "b", "c"]
        assert loader.dataset.shape == (1, 8, 8)


def test_a_saved_split_and_a_split_slice(write: Callable, numbered: Callable, tmp_path) -> None:
    numbered(7).save_to_disk(tmp_path / "one")
    assert len(load_images(tmp_path / "one", split="any")[0]) == 7
    assert len(load_images(str(write("parquet")), split="train[:50%]")[0]) == 11


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_without_the_split_says_how_to_cut_one(streaming, numbered, tmp_path) -> None:
    for row, values in enumerate(numbered(7)):
        values["image"].save(tmp_path / f"{row:03}.png")
    with pytest.raises(ValueError, match=r"one of \['train'\].*; got 'test'.*train\[-100:\]"):
        image_loader(tmp_path, split="test", batch_size=2, num_workers=0, streaming=streaming)
    test, _ = load_images(tmp_path, split="train[-2:]")  # the advice
    assert len(test) == 2
    with pytest.raises(ValueError, match="no data"):  # an error of another kind stays what it is
        load_images(tmp_path, split="train[7:]")


def test_a_hub_name_goes_to_the_hub() -> None:
    with pytest.raises(ConnectionError, match=r"somebody/something.*Offline"):
        image_loader("somebody/something", batch_size=4)


def test_formats_and_other_columns_do_not_matter(numbered: Callable, read_rows: Callable) -> None:
    data = numbered(9).with_format("torch").select([8, 3, 5])
    images, labels = load_images(data)
    assert [number for number, _ in read_rows(images)] == [8, 3, 5]
    assert labels is not None and labels.tolist() == [2, 0, 2]


def test_photographs_are_turned_upright(encode: Callable) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, :3] = 255
    exif = PIL.Image.Exif()
    exif[PIL.Image.ExifTags.Base.Orientation] = 6  # to be turned right by a quarter
    value = encode(pixels, exif=exif)
    features = datasets.Features(image=datasets.Image())
    images, labels = load_images(datasets.Dataset.from_dict({"image": [value]}, features=features))
    assert labels is None and images.shape == (1, 3, 6, 4)
    assert (images[0, :, :3] == 1).all() and (images[0, :, 3:] == -1).all()


def test_what_is_not_there_is_named(write: Callable, numbered: Callable, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`source` must be an existing folder.*nowhere"):
        image_loader(tmp_path / "nowhere", batch_size=4)
    with pytest.raises(ValueError, match=r"`source` must be an existing folder.*nowhere"):
        image_loader("./nowhere", batch_size=4)
    with pytest.raises(ValueError, match=r"`split` must be one of \['test', 'train'\]; got 'val'"):
        image_loader(write("DatasetDict"), split="val", batch_size=4)
    with pytest.raises(ValueError, match=r"val.*train"):
        image_loader(write("parquet"), split="val", batch_size=4)
    with pytest.raises(ValueError, match="`split` must have at least one row"):
        image_loader(numbered(0), batch_size=4)
    with pytest.raises(ValueError, match="`split` must have at least one row"):
        load_images(numbered(0), streaming=True)
    nothing = datasets.IterableDataset.from_generator(
        lambda: iter(()), features=numbered().features
    )
    with pytest.raises(ValueError, match="`split` must have at least one row"):
        load_images(nothing)


def test_what_would_be_ignored_is_refused(numbered: Callable) -> None:
    with pytest.raises(ValueError, match=r"`source` must have no transform set.*with_format\(None"):
        image_loader(numbered().with_transform(lambda rows: rows), batch_size=4)
    with pytest.raises(TypeError, match=r"`source` must be a hub name.*got list.*from_dict"):
        image_loader({"train": [1, 2]}, batch_size=4)
