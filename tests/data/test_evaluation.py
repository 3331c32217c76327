from collections.abc import Callable

import pytest
import torch

from fm_ext.data import image_loader, load_images


def test_a_split_as_tensors(numbered: Callable) -> None:
    images, labels = load_images(numbered())
    (batch,) = image_loader(numbered(), batch_size=22, shuffle=False)
    assert torch.equal(images, batch["image"])
    assert labels is not None and torch.equal(labels, batch["label"])
    assert load_images(numbered(), label_column=False)[1] is None


@pytest.mark.parametrize("streaming", [False, True])
def test_limit(streaming: bool, numbered: Callable, read_rows: Callable) -> None:
    """Rows spread evenly over a split, which may be sorted by class; the first ones of a stream."""
    images, labels = load_images(numbered(), limit=4, size=8, streaming=streaming)
    wanted = [0, 1, 2, 3] if streaming else [0, 5, 11, 16]
    assert [number for number, _ in read_rows(images)] == wanted
    assert labels is not None and labels.tolist() == [row % 3 for row in wanted]
    assert len(load_images(numbered(), limit=99, streaming=streaming)[0]) == 22
    with pytest.raises(ValueError, match="`limit` must be at least 1, got 0"):
        load_images(numbered(), limit=0)


def test_errors_name_the_row_of_the_split(numbered: Callable) -> None:
    with pytest.raises(ValueError, match="row 16, column 'image'"):
        load_images(numbered(bad=(16,)), limit=4)
    with pytest.warns(UserWarning, match="1 of 4 rows cannot be used, first: row 16"):
        images, _ = load_images(numbered(bad=(16,)), limit=4, on_error="skip")
    assert len(images) == 3
