"""Batches whose rows noise chooses: the same ones wherever they are read, and noise that knows nothing of the class."""

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from fm_ext.coupling import SemidiscreteTransport
from fm_ext.data import assigned_loader, image_loader, load_images
from fm_ext.training import Trainer, TrainerConfig

ROWS = 24


@pytest.fixture(scope="module")
def source():
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 4, 4), np.uint8)
    columns = {"image": [Image.fromarray(p) for p in pixels], "label": [k % 3 for k in range(ROWS)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(3)})
    return datasets.DatasetDict(train=datasets.Dataset.from_dict(columns, features))


@pytest.fixture(params=[False, True], ids=["all", "classes"])
def transport(request, source):
    images, label = load_images(source, split="train")
    return SemidiscreteTransport(images, label=label if request.param else None)


def test_rows_are_those_that_the_noise_is_sent_to(source, transport):
    loader = assigned_loader(image_loader(source, batch_size=2), transport, batch_size=5)
    images, labels = load_images(source, split="train")
    batches = list(loader)
    assert len(batches) == ROWS // 5
    for number, batch in enumerate(batches):
        label = None if transport.label is None else transport.label[5 * number : 5 * number + 5]
        rows = transport.assign(batch["x_0"], label)
        assert torch.equal(batch["image"], images[rows]) and torch.equal(
            batch["label"], labels[rows]
        )
        assert label is None or torch.equal(batch["label"], label)


def test_batches_are_a_function_of_their_numbers(source, transport):
    loader = lambda seed=0: assigned_loader(
        image_loader(source, batch_size=2, flip=True, seed=3), transport, batch_size=6, seed=seed
    )
    epochs = [list(loader()), list(loader())]
    again = loader()
    again.dataset.set_epoch(1)
    later = list(again)
    first = loader()
    list(first)
    for a, b in zip([*epochs[0], *list(first)], [*epochs[1], *later], strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(epochs[0][0]["x_0"], later[0]["x_0"])
    for number, batch in enumerate(later):  # the flips are those of the rows in their epoch
        label = None if transport.label is None else transport.label[6 * number : 6 * number + 6]
        rows = transport.assign(batch["x_0"], label)
        read = again.dataset.data.__getitems__((ROWS + rows).tolist())
        assert torch.equal(batch["image"], read["image"])
    assert not torch.equal(epochs[0][0]["x_0"], next(iter(loader(1)))["x_0"])
    identity = loader().dataset.identity
    assert identity == loader().dataset.identity != loader(1).dataset.identity
    transport.potential[0] += 1
    assert identity != loader().dataset.identity


@pytest.mark.parametrize("change", ["potential", "seed"])
def test_a_resumed_run_has_the_same_transport(source, transport, tmp_path, change):
    """A little of the potential moves none of the first rows, so the first batch alone would not tell."""

    def loader(seed=0):
        return assigned_loader(
            image_loader(source, batch_size=2), transport, batch_size=4, seed=seed
        )

    def train(steps, seed=0):
        net = torch.nn.Conv2d(1, 1, 1)
        loss = lambda model, batch: (model(batch["x_0"]) - batch["image"]).square().mean()
        config = TrainerConfig(steps=steps, log_every=1, output_dir=tmp_path)
        Trainer(net, loss, loader(seed), config, Accelerator(cpu=True)).fit()

    train(2)
    train(3)
    first = next(iter(loader()))["image"]
    if change == "potential":
        transport.potential[3] += 1e-3
    assert torch.equal(next(iter(loader()))["image"], first)
    match = r"`assignment` is .* was trained with .*same transport.*load_state_dict"
    with pytest.raises(ValueError, match=match):
        train(4, seed=int(change == "seed"))


def test_bad_input(source):
    images, _ = load_images(source, split="train")
    loader, transport = image_loader(source, batch_size=2), SemidiscreteTransport(images)
    with pytest.raises(
        TypeError, match=r"`loader` must be one of fm_ext\.data .*StreamImageDataset"
    ):
        stream = image_loader(source, batch_size=2, streaming=True)
        assigned_loader(stream, transport, batch_size=2)
    with pytest.raises(ValueError, match=r"`loader` must hold the rows .*, 7; it holds 24"):
        assigned_loader(loader, SemidiscreteTransport(images[:7]), batch_size=2)
    with pytest.raises(ValueError, match=r"`batch_size` must be at most the 24 rows; got 25"):
        assigned_loader(loader, transport, batch_size=25)
