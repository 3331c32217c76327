"""The parts of the page, without the page."""

import io

import numpy as np
import PIL.Image
import pytest
import torch

from fm_ext.app.brush import paint
from fm_ext.app.fill import spread
from fm_ext.app.hole import KINDS, draw_hole, show_hole, shrink_mask
from fm_ext.app.model import load_files
from fm_ext.app.picture import LONGEST, enlarge, fitting_examples, shrink
from fm_ext.app.sampling import FRAMES, Progress
from fm_ext.hub import FlowModel


def stroke(*points, radius=0.1, erase=False):
    return {"points": points, "radius": radius, "erase": erase}


@pytest.mark.parametrize("size", [(28, 28), (64, 40), (30, 100)])
def test_a_stroke_paints_the_pixels_whose_centres_are_within_its_radius(size):
    height, width = size
    a, b, radius = (0.2, 0.1), (0.7, 0.25), 0.08
    painted = paint([stroke(a, b, radius=radius)], size)
    y, x = np.mgrid[:height, :width] + 0.5
    along = np.linspace(0, 1, 1001)[:, None, None]
    distance = np.hypot(
        x - width * (a[0] + along * (b[0] - a[0])), y - width * (a[1] + along * (b[1] - a[1]))
    ).min(axis=0)
    clear = abs(distance - radius * width) > 0.01
    assert (painted.numpy() == (distance <= radius * width))[clear].all() and painted.any()


@pytest.mark.parametrize("point", [(0.5, 0.5), (0.001, 0.001), (0.5, 0.52)])
def test_a_touch_paints_the_pixel_that_it_touches(point):
    painted = paint([stroke(point, radius=1e-3)], (28, 28))
    assert painted[int(28 * point[1]), int(28 * point[0])] and painted.sum() <= 4


def test_the_eraser_takes_back_what_it_passes_and_outside_is_nothing():
    line = (0.1, 0.5), (0.9, 0.5)
    assert not paint([stroke(*line), stroke(*line, erase=True)], (28, 28)).any()
    assert paint([stroke(*line, erase=True), stroke(*line)], (28, 28)).any()
    assert not paint([stroke((-3, -3), (5, -3)), stroke((9, 9))], (28, 28)).any()
    assert not paint([], (28, 28)).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(28, 28), (64, 64), (70, 100)])
def test_every_kind_of_hole_takes_about_its_share(kind, size):
    for share in (0.05, 0.25, 0.7):
        hole = draw_hole(kind, share, size, seed=0)
        assert hole.shape == size and abs(hole.float().mean() - share) < 0.2 * share + 0.06
    if kind != "CenterBox":
        assert not torch.equal(draw_hole(kind, 0.25, size, 1), draw_hole(kind, 0.25, size, 2))


def test_a_picture_and_its_mask_are_scaled_down_together():
    picture = PIL.Image.new("RGB", (3000, 1500))
    chosen = shrink("large", picture)
    assert chosen.picture.size == (LONGEST, LONGEST // 2) and chosen.size == (1500, 3000)
    mask = torch.zeros(1500, 3000, dtype=torch.bool)
    mask[750, 1500] = True  # one pixel is not lost
    small = shrink_mask(mask, (LONGEST // 2, LONGEST))
    assert small.shape == (LONGEST // 2, LONGEST) and 1 <= small.sum() <= 4
    assert shrink("small", PIL.Image.new("L", (28, 28))).picture.size == (28, 28)
    assert enlarge(PIL.Image.new("L", (28, 28))).size == (280, 280)
    assert enlarge(picture).size == picture.size


def test_the_hole_alone_is_coloured():
    picture = PIL.Image.new("L", (4, 4), 100)
    mask = torch.eye(4, dtype=torch.bool)
    shown = np.asarray(show_hole(picture, mask))
    assert (shown[~mask.numpy()] == 100).all() and (shown[mask.numpy()] != 100).all()


def test_spread_is_the_deviation_over_the_fills():
    values = torch.randint(0, 256, (5, 6, 6), dtype=torch.uint8).numpy()
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[2:4, 2:4] = True
    values[:, ~mask.numpy()] = 50
    values[:, 2, 2] = 7  # all agree
    heat, highest = spread([PIL.Image.fromarray(v) for v in values], mask)
    assert highest == pytest.approx(values.astype(float).std(axis=0, ddof=1).max(), rel=1e-5)
    assert heat.getpixel((2, 2)) == (0, 0, 0)
    brightest = np.unravel_index(values.astype(float).std(axis=0).argmax(), (6, 6))
    assert heat.getpixel(brightest[::-1]) == (255, 255, 180)


class Bar:
    def __init__(self):
        self.told = []

    def progress(self, value, text):
        self.told.append(value)


@pytest.mark.parametrize("calls", [1, 7, 1000])
def test_the_film_has_few_frames_and_ends_with_the_result(calls):
    bar = Bar()
    progress = Progress(bar)
    for i in range(1, calls + 1):
        progress(i / calls, torch.full((3, 1, 4, 4), i / calls))
    for _ in range(3):  # a method that goes the way again
        progress(1.0, torch.zeros(3, 1, 4, 4))
    film = PIL.Image.open(io.BytesIO(progress.film()))
    assert min(calls, FRAMES // 2) <= len(progress.frames) <= FRAMES + 1
    assert film.n_frames == len(progress.frames) and bar.told[-1] == 1
    film.seek(film.n_frames - 1)
    assert film.convert("L").getextrema()[1] == 255  # the first arrival at 1


def test_uploaded_files_are_read_as_their_folder_is(folders):
    files = {path.name: path.read_bytes() for path in folders["digits"].iterdir()}
    flow = load_files({f"digits/{name}": content for name, content in files.items()})
    expected = FlowModel.from_pretrained(folders["digits"])
    for got, wanted in zip(
        flow.velocity_model.parameters(), expected.velocity_model.parameters(), strict=True
    ):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"config.json": None}, "config.json"),
        ({"model.safetensors": None}, "model.safetensors"),
        ({"model.safetensors": b"short"}, "model.safetensors"),
        ({"weights.bin": b"pickle"}, "pickle"),
        ({"config.json": b"{}"}, "config.json"),
        ({"config.json": b"\xff\xfe"}, "config.json"),
    ],
)
def test_bad_uploads_of_a_model_are_told_without_the_folder_s_name(folders, change, said):
    files = {path.name: path.read_bytes() for path in folders["digits"].iterdir()} | change
    with pytest.raises(ValueError, match=said) as caught:
        load_files({name: content for name, content in files.items() if content is not None})
    assert "/tmp" not in str(caught.value)


def test_examples_have_the_model_s_colours(folders):
    flows = {name: FlowModel.from_pretrained(folder) for name, folder in folders.items()}
    assert all(name.startswith("portrait") for name in fitting_examples(flows["portraits"], "fill"))
    assert fitting_examples(flows["digits"], "fill")[0].startswith("digit")
    assert fitting_examples(flows["garments"], "translate")[0].startswith("garment")
