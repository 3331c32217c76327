from collections.abc import Callable

import numpy as np
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
    """A fixed random choice of a split, in its order, the fewer among the more; the first ones of a stream."""
    images, labels = load_images(numbered(), limit=4, size=8, streaming=streaming)
    order = np.random.default_rng(0).permutation(22)
    wanted = [0, 1, 2, 3] if streaming else sorted(order[:4].tolist())
    assert [number for number, _ in read_rows(images)] == wanted
    assert labels is not None and labels.tolist() == [row % 3 for row in wanted]
    assert len(load_images(numbered(), limit=99, streaming=streaming)[0]) == 22
    with pytest.raises(ValueError, match="`limit` must be a whole number of at least 1; got 0"):
        load_images(numbered(), limit=0)


def test_errors_name_the_row_of_the_split(numbered: Callable) -> None:
    bad = int(np.random.default_rng(0).permutation(22)[0])
    with pytest.raises(ValueError, match=f"row {bad}, column 'image'"):
        load_images(numbered(bad=(bad,)), limit=4)
    with pytest.warns(UserWarning, match=f"1 of 4 rows cannot be used, first: row {bad}"):
        images, _ = load_images(numbered(bad=(bad,)), limit=4, on_error="skip")
    assert len(images) == 3
