"""Strokes against the distance to a segment, and the search for their scale."""

import pytest
import torch
from torch import Tensor

import fm_ext.mask.brush
import fm_ext.mask.irregular
from fm_ext.mask import FreeForm, Irregular, bitmap
from fm_ext.mask.paint import paint, scaled
from fm_ext.mask.raster import rasterise
from fm_ext.mask.stroke import Strokes, share_out

brushes = pytest.mark.parametrize("kind", [FreeForm, Irregular])


def distances(strokes: Strokes, size: tuple[int, int]) -> Tensor:
    """From each pixel's centre to the segment, less the radius: (batch, segment, height, width)."""
    start, end, radius = (part.double()[:, :, None, None] for part in strokes)
    y, x = torch.meshgrid(*(torch.arange(n).double() + 0.5 for n in size), indexing="ij")
    pixel = torch.stack([x, y], -1)
    along = end - start
    part = ((pixel - start) * along).sum(-1) / along.square().sum(-1).clamp_min(1e-12)
    nearest = start + part.clamp(0, 1)[..., None] * along
    return (pixel - nearest).norm(dim=-1) - radius


def assert_painted(mask: Tensor, strokes: Strokes, size: tuple[int, int]) -> None:
    distance = distances(strokes, size).where(strokes.radius[:, :, None, None] > 0, 1.0).amin(1)
    clear = distance.abs() > 1e-3  # pixels on the very rim may go either way
    assert clear.float().mean() > 0.99
    assert torch.equal(mask[clear], (distance < 0)[clear])


def random_strokes(batch: int, segments: int, size: tuple[int, int]) -> Strokes:
    border = torch.tensor([size[1], size[0]])
    start, end = (torch.rand(2, batch, segments, 2) * 1.4 - 0.2) * border
    return Strokes(start, end, torch.rand(batch, segments) * 0.2 * min(size))


@pytest.mark.parametrize("size", [(8, 8), (32, 40), (30, 64), (65, 65), (13, 200)])
@pytest.mark.parametrize("segments", [1, 2, 5, 8])
@pytest.mark.parametrize("selective", [True, False])
def test_strokes_are_the_pixels_nearer_than_the_radius(size, segments, selective):
    strokes = random_strokes(20, segments, size)
    strokes.start[0, 0, 1] = strokes.end[0, 0, 1]  # level
    strokes.start[1, 0, 0] = strokes.end[1, 0, 0]  # upright
    strokes.start[2, 0] = strokes.end[2, 0]  # a point
    strokes.start[3, 0, 1] = strokes.end[3, 0, 1] + 1e-4  # almost level
    strokes.radius[4] = 0  # nothing
    table = bitmap.prefixes(size[1], strokes.radius.device)
    words = rasterise(strokes, size, table, selective=selective)
    assert_painted(bitmap.unpack(words, size[1]), strokes, size)
    assert not words[4].any()


@pytest.mark.parametrize("selective", [True, False])
@pytest.mark.parametrize("batch", [0, 1, 2, 11])
def test_how_much_is_painted_at_once_does_not_matter(selective, batch, monkeypatch):
    strokes, size = random_strokes(batch, 4, (40, 70)), (40, 70)
    table = bitmap.prefixes(size[1], strokes.radius.device)
    whole = rasterise(strokes, size, table, selective=selective)
    monkeypatch.setattr("fm_ext.mask.raster.BAND", 8)
    monkeypatch.setattr("fm_ext.mask.raster.BANDS", 5)
    monkeypatch.setattr("fm_ext.mask.raster.GPU_BYTES", 4 * 2 * 40 * 4 * 16)
    assert torch.equal(whole, rasterise(strokes, size, table, selective=selective))


@pytest.fixture
def draw(monkeypatch):
    """Draws masks of a kind and returns what was painted as well."""

    def draw(kind: type, batch: int, size: tuple[int, int], **fields) -> tuple[Tensor, Strokes]:
        painted = []
        module = {FreeForm: fm_ext.mask.brush, Irregular: fm_ext.mask.irregular}[kind]
        with monkeypatch.context() as patch:
            patch.setattr(
                module, "paint", lambda s, *a, **k: painted.append(s) or paint(s, *a, **k)
            )
            mask = kind(**fields)(batch, size)
        return mask, painted[0]

    return draw


@brushes
@pytest.mark.parametrize("size", [(28, 28), (48, 96)])
def test_a_mask_is_its_strokes(kind, size, draw):
    mask, strokes = draw(kind, 40, size)
    assert_painted(mask[:, 0], strokes, size)
    border = torch.tensor([size[1], size[0]])
    for vertex in (strokes.start, strokes.end):
        assert ((vertex >= -1e-3) & (vertex <= border + 1e-3)).all()


@brushes
def test_numbers_lengths_and_widths_fill_their_ranges(kind, draw):
    _, strokes = draw(kind, 400, (100, 400))
    unit, used = 200, strokes.radius > 0
    assert tuple(x.item() for x in used.sum(1).aminmax()) == kind().segments
    for values, bounds in (
        (2 * strokes.radius[used] / unit, kind().width),
        ((strokes.end - strokes.start).norm(dim=-1)[used] / unit, (0.0, kind().length[1])),
    ):
        assert values.min() >= bounds[0]
        assert values.max() <= bounds[1] + 1e-5
        assert values.max() - values.min() > 0.9 * (bounds[1] - bounds[0])


@brushes
def test_strokes_hang_together(kind, draw):
    """A segment starts where the one before ended, but for as many lifts as there are strokes."""
    _, (start, end, _) = draw(kind, 50, (64, 64), strokes=(2, 3), segments=(8, 8))
    lifts = ((start[:, 1:] - end[:, :-1]).norm(dim=-1) > 1e-3).sum(1)
    assert set(lifts.tolist()) == {1, 2}


def headings(strokes: Strokes, size: int) -> Tensor:
    """Directions (image, stroke, segment) of two strokes, for images with none at the border."""
    inner = (strokes.start > 0.2 * size) & (strokes.start < 0.8 * size)
    step = (strokes.end - strokes.start)[inner.all((1, 2))]
    assert len(step) > 20
    return torch.atan2(step[..., 1], step[..., 0]).unflatten(1, (2, -1))


def turned(angle: Tensor) -> Tensor:
    """An angle in (-pi, pi]."""
    return torch.atan2(angle.sin(), angle.cos())


def test_free_form_strokes_zigzag_at_one_width(draw):
    fields = {"strokes": (2, 2), "segments": (8, 8), "length": (0.01, 0.02), "turn": (0.5, 0.5)}
    _, strokes = draw(FreeForm, 200, (100, 100), **fields)
    angle = headings(strokes, 100)
    sign = torch.tensor([-1.0, 1.0, -1.0])
    torch.testing.assert_close(turned(angle.diff(dim=2)), sign.expand(len(angle), 2, 3))
    apart = turned(angle[:, 1, 0] - angle[:, 0, 0])
    assert apart.std() > 1  # every stroke has a heading of its own
    radius = strokes.radius.unflatten(1, (2, 4))
    assert torch.equal(radius, radius[..., :1].expand_as(radius))
    assert (radius[:, 0] != radius[:, 1]).all()


def test_irregular_chains_keep_near_their_heading_at_many_widths(draw):
    fields = {"strokes": (2, 2), "segments": (8, 8), "length": (0.01, 0.02), "turn": 0.3}
    _, strokes = draw(Irregular, 200, (100, 100), **fields)
    angle = headings(strokes, 100)
    bend = turned(angle.diff(dim=2)).abs()
    assert 0.5 < bend.max() < 0.6 + 1e-3
    assert turned(angle[:, 1, 0] - angle[:, 0, 0]).std() > 1
    assert all(len(row.unique()) == 8 for row in strokes.radius)


def test_segments_are_shared_out_evenly():
    first, used = share_out(500, (1, 4), (4, 12), torch.device("cpu"), None)
    for row, inside in zip(first.tolist(), used.tolist(), strict=True):
        row = row[: sum(inside)]
        lengths = [row.count(i) for i in sorted(set(row))]
        assert row == sorted(row)
        assert max(lengths) - min(lengths) <= 1
        assert 1 <= len(lengths) <= 4


@pytest.mark.parametrize("pixels", [(1, 2000), (100, 300), (500, 500), (1900, 1950), (0, 0)])
def test_both_ways_to_search_agree(pixels):
    """On a CPU images drop out of the search as they are done; on a GPU all go through it."""
    strokes, wish = random_strokes(30, 5, (40, 50)), torch.rand(30)
    masks = [paint(strokes, (40, 50), pixels, wish, selective=way) for way in (True, False)]
    assert torch.equal(*masks)
    assert torch.equal(masks[0], paint(strokes, (40, 50), pixels, wish))
    counts = masks[0].sum((1, 2, 3))
    assert ((counts >= pixels[0]) & (counts <= pixels[1])).all()


def test_shapes_inside_the_bounds_are_left_alone():
    strokes, wish = random_strokes(30, 5, (40, 50)), torch.rand(30)
    free = paint(strokes, (40, 50), (1, 1999), wish)
    bound = paint(strokes, (40, 50), (500, 900), wish)
    counts = free.sum((1, 2, 3))
    inside = (counts >= 500) & (counts <= 900)
    assert 3 < inside.sum() < 27
    assert torch.equal(free[inside], bound[inside])
    # Too small a shape grows out of itself.
    assert (free & ~bound)[counts < 500].sum() == 0


def test_a_shape_outside_the_bounds_comes_close_to_its_wish():
    strokes = random_strokes(200, 5, (100, 100))
    wish = torch.rand(200)
    counts = paint(strokes, (100, 100), (6000, 8000), wish).sum((1, 2, 3))
    moved = paint(strokes, (100, 100), (1, 9999), wish).sum((1, 2, 3)) < 6000
    assert moved.sum() > 50
    error = (counts - (6000 + 2000 * wish))[moved]
    assert error.abs().mean() < 400


@brushes
@pytest.mark.parametrize("scale", [-3.0, -1.0, 0.0, 0.5, 4.0])
def test_scaled_strokes_keep_their_shape_and_stay_inside(kind, scale, draw):
    size = (60, 90)
    _, strokes = draw(kind, 50, size)
    images = torch.arange(50)
    start, end, radius = scaled(strokes, size, torch.full((50,), scale), images)
    torch.testing.assert_close(radius, strokes.radius * 2**scale)
    if scale == 0:
        assert torch.equal(start, strokes.start)
        assert torch.equal(end, strokes.end)
    before, after = ((p[:, :, None] - p[:, None]).norm(dim=-1) for p in (strokes.start, start))
    ratio = after.sum((1, 2)) / before.sum((1, 2))  # of all distances of an image
    torch.testing.assert_close(after, before * ratio[:, None, None], atol=1e-2, rtol=1e-3)
    vertices = torch.cat([start, end], 1) / torch.tensor([90.0, 60.0])
    assert (vertices > -1e-4).all()
    assert (vertices < 1 + 1e-4).all()
    full = (vertices.amax(1) - vertices.amin(1)).amax(1) > 0.999
    torch.testing.assert_close(ratio[~full], torch.full_like(ratio[~full], 2**scale))
    assert (ratio[full] <= 2**scale + 1e-3).all()
    assert full.any() == (scale > 0)
