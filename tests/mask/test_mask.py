"""Laws of every mask."""

import re
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fm_ext.mask import (
    CenterBox,
    FreeForm,
    Hybrid,
    Irregular,
    RandomBox,
    RandomEntries,
    RandomSpans,
)
from fm_ext.mask.mask import pixel_bounds

ANY = (0.01, 1.0)
KINDS = {
    "center": lambda area: CenterBox(side=ANY, area=area),
    "box": lambda area: RandomBox(side=ANY, area=area),
    "freeform": lambda area: FreeForm(area=area),
    "irregular": lambda area: Irregular(area=area),
    "entries": lambda area: RandomEntries(area=area),
    "spans": lambda area: RandomSpans(area=area),
    "hybrid": lambda area: Hybrid(
        masks=(RandomBox(side=ANY, area=area), FreeForm(area=area)), area=area
    ),
}
DEFAULTS = [
    CenterBox(),
    RandomBox(),
    FreeForm(),
    Irregular(),
    RandomEntries(),
    RandomSpans(),
    Hybrid(),
]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

kinds = pytest.mark.parametrize("kind", KINDS)
defaults = pytest.mark.parametrize("mask", DEFAULTS, ids=lambda mask: type(mask).__name__)
devices = pytest.mark.parametrize("device", DEVICES)


def missing(masks: torch.Tensor) -> list[int]:
    return masks.sum((1, 2, 3)).tolist()


def allowed(count: int, total: int, area: tuple[float, float]) -> bool:
    """The law of the bounds, read off its statement."""
    empty_or_full = count in (0, total) and area not in ((0, 0), (1, 1))
    return area[0] <= count / total <= area[1] and not empty_or_full


@defaults
@devices
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (17, 90)])
def test_shape_type_and_device(mask, device, size):
    for batch in (0, 1, 5):
        drawn = mask(batch, size, device=device)
        assert drawn.shape == (batch, 1, *size)
        assert drawn.dtype == torch.bool
        assert drawn.device.type == device
        assert drawn.is_contiguous()
        assert all(allowed(n, size[0] * size[1], mask.area) for n in missing(drawn))


@defaults
@devices
def test_the_generator_decides(mask, device):
    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator(device).manual_seed(seed)
        return mask(8, (32, 40), device=device, generator=generator)

    assert torch.equal(draw(0), draw(0))
    assert torch.equal(draw(0), draw(1)) == isinstance(mask, CenterBox)


@defaults
@devices
def test_a_generator_leaves_the_global_state_alone(mask, device, generator):
    state = torch.Generator(device).manual_seed(3)
    before = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
    mask(4, (32, 32), device=device, generator=state)
    after = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
    assert torch.equal(before, after)


@defaults
def test_a_generator_of_another_device(mask, generator):
    """Numbers are drawn on the generator's device, and the masks moved to the data's."""
    drawn = mask(4, (32, 32), device="meta", generator=generator)
    assert drawn.device.type == "meta" and drawn.shape == (4, 1, 32, 32)
    moved = generator.get_state()
    twin = torch.Generator().manual_seed(0)
    mask(4, (32, 32), generator=twin)
    assert torch.equal(moved, twin.get_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device with data")
@defaults
def test_the_device_does_not_matter_beside_the_generator(mask):
    here, there = (
        mask(4, (32, 32), device=d, generator=torch.Generator().manual_seed(0))
        for d in ("cpu", "cuda")
    )
    assert torch.equal(here, there.cpu())


@defaults
def test_compiled_masks_are_the_same_masks(mask, generator, untyped):
    """At changing batches and sizes, where a traced draw fails."""
    torch.compiler.reset()
    compiled = torch.compile(mask, backend="eager")
    for seed, (batch, size) in enumerate([(4, (32, 40)), (7, (32, 40)), (5, (28, 28))]):
        torch.manual_seed(seed)
        expected = mask(batch, size)
        torch.manual_seed(seed)
        assert torch.equal(compiled(batch, size), expected)
        expected = mask(batch, size, generator=generator.manual_seed(seed))
        drawn = compiled(batch, size, generator=generator.manual_seed(seed))
        assert torch.equal(drawn, expected)


def test_masks_inside_a_compiled_step(untyped):
    @torch.compile(backend="eager")
    def step(x: torch.Tensor) -> torch.Tensor:
        return torch.where(RandomBox()(len(x), x.shape[-2:]), 0, x + 1)

    for batch in (3, 4, 6):
        x = torch.ones(batch, 1, 16, 16)
        torch.manual_seed(batch)
        expected = torch.where(RandomBox()(batch, (16, 16)), 0, x + 1)
        torch.manual_seed(batch)
        assert torch.equal(step(x), expected)


@defaults
def test_without_a_generator_the_global_seed_decides(mask):
    torch.manual_seed(5)
    first = mask(4, (32, 32))
    torch.manual_seed(5)
    assert torch.equal(first, mask(4, (32, 32)))


@defaults
def test_masks_of_a_batch_differ(mask):
    different = len(mask(32, (64, 64)).flatten(1).unique(dim=0))
    assert different == (1 if isinstance(mask, CenterBox) else 32)


@defaults
def test_nothing_is_read_back_from_the_device(mask):
    """A device without data: what needs a value from it raises there, and stalls a GPU."""
    assert mask(4, (40, 70), device="meta").shape == (4, 1, 40, 70)


@defaults
def test_the_default_dtype_does_not_matter(mask):
    torch.manual_seed(0)
    expected = mask(8, (100, 300))
    torch.set_default_dtype(torch.bfloat16)
    try:
        torch.manual_seed(0)
        assert torch.equal(mask(8, (100, 300)), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@kinds
@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(8, 96), st.integers(8, 96)),
    low=st.floats(0, 1),
    width=st.sampled_from([0.0, 1e-3, 0.02, 0.1, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_area_bounds_always_hold(kind, size, low, width, seed):
    area, total = (low, min(1.0, low + width)), size[0] * size[1]
    counts = range(total + 1)
    if kind in ("center", "box", "hybrid"):
        rows, columns = (range(n, 0, -2 if kind == "center" else -1) for n in size)
        counts = {a * b for a in rows for b in columns}
    elif kind == "spans":
        counts = range(0, total + 1, size[0])
    if any(allowed(n, total, area) for n in counts):
        generator = torch.Generator().manual_seed(seed)
        drawn = missing(KINDS[kind](area)(6, size, generator=generator))
        assert all(allowed(n, total, area) for n in drawn), (drawn, area)
    else:
        with pytest.raises(
            ValueError, match=r"`area` must hold a fraction that .* the nearest are"
        ):
            KINDS[kind](area)(6, size)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("center", "spans")])
@pytest.mark.parametrize("area", [(0.0, 1.0), (0.2, 0.3), (0.6, 0.7), (0.25, 0.25), (0.01, 0.02)])
@pytest.mark.parametrize("size", [(8, 8), (1024, 1024), (8, 512)])
def test_area_bounds_hold_at_the_extremes(kind, area, size):
    total = size[0] * size[1]
    assert all(allowed(n, total, area) for n in missing(KINDS[kind](area)(3, size)))


@pytest.mark.parametrize("kind", ["freeform", "irregular", "entries", "spans"])
@pytest.mark.parametrize("area", [(0.0, 0.0), (1.0, 1.0)])
def test_empty_and_full_if_asked_for(kind, area):
    assert missing(KINDS[kind](area)(3, (8, 12))) == [area[0] * 96] * 3


@given(low=st.floats(0, 1), high=st.floats(0, 1), total=st.integers(2, 5000))
def test_pixel_bounds_are_the_tightest(low, high, total):
    area = (min(low, high), max(low, high))
    inside = [n for n in range(total + 1) if allowed(n, total, area)]
    if inside:
        assert pixel_bounds(area, total) == (inside[0], inside[-1])
    else:
        with pytest.raises(ValueError, match="`area` must hold a fraction"):
            pixel_bounds(area, total)


def test_unreachable_bounds_name_the_nearest_fractions():
    with pytest.raises(ValueError, match=r"0.2 to 0.2; the nearest are 12/64 = 0.1875 and 13/64"):
        FreeForm(area=(0.2, 0.2))(1, (8, 8))
    with pytest.raises(ValueError, match=r"0.5 to 0.5; the nearest are 30/64 .* and 35/64"):
        RandomBox(side=(0.5, 0.9), area=(0.5, 0.5))(1, (8, 8))


@defaults
@pytest.mark.parametrize("length", [8, 64, 1000])
def test_masks_of_sequences(mask, length):
    """A sequence is an image of height 1."""
    torch.manual_seed(0)
    drawn = mask(5, (length,))
    assert drawn.shape == (5, 1, length) and drawn.dtype == torch.bool
    assert all(allowed(n, length, mask.area) for n in drawn.sum((1, 2)).tolist())
    torch.manual_seed(0)
    assert torch.equal(drawn, mask(5, (1, length)).squeeze(2))
    torch.manual_seed(0)
    assert torch.equal(drawn, mask(5, torch.Size((length,))))


@defaults
def test_arguments_out_of_range(mask):
    with pytest.raises(ValueError, match="`batch` must be a whole number of at least 0; got -1"):
        mask(-1, (8, 8))
    with pytest.raises(ValueError, match="`size` must be a whole number of at least 1; got 0"):
        mask(1, (0, 8))
    assert mask(1, 8).shape == (1, 1, 8, 8)
    with pytest.raises(FrozenInstanceError):
        mask.area = (0.1, 0.2)


@defaults
@pytest.mark.parametrize(
    ("batch", "size", "error", "message"),
    [
        (
            2.0,
            (8, 8),
            TypeError,
            r"`batch` must be a whole number of at least 0; got 2\.0 of type fl",
        ),
        (
            2,
            (8.0, 8),
            TypeError,
            r"`size` must be a whole number of at least 1; got 8\.0 of type flo",
        ),
        (2, 8.0, TypeError, r"`size` must be a whole number of at least 1; got 8\.0"),
        (2, "8x", ValueError, r"`size` must be pixels, one number or \(height, width\); got '8x'"),
        (2, (3, 8, 9), ValueError, r"`size` must be .* got \(3, 8, 9\)\. Fix: `\(8, 9\)`"),
        (2, torch.Size((2, 3, 8, 9)), ValueError, r"Fix: `\(8, 9\)`"),
    ],
)
def test_arguments_of_another_kind(mask, batch, size, error, message, untyped):
    with pytest.raises(error, match=message) as got:
        mask(batch, size)
    if "Fix" in str(got.value):
        assert mask(2, eval(str(got.value).split("`")[-2])).shape == (2, 1, 8, 9)


@kinds
@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    low=st.floats(0, 1),
    width=st.sampled_from([0.0, 0.02, 1.0]),
)
def test_the_advice_on_the_area_works(kind, size, low, width):
    """Also for 0..1, which no bound widens: an image of one pixel has masks that are empty or full.

    A kind that cannot have every number of pixels may go on to say what it can have.
    """
    area = (low, min(1.0, low + width)) if width < 1 else (0.0, 1.0)
    for _ in range(3):
        try:
            assert KINDS[kind](area)(2, size).shape == (2, 1, *size)
            return
        except ValueError as error:
            message = str(error)
        assert "`area` must hold a fraction that" in message
        (advice,) = re.findall(r"`area=(\([^)]*\))`", message)
        area = eval(advice)
    raise AssertionError(message)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (CenterBox, "area", (0.5, 0.2)),
        (RandomBox, "area", (-0.1, 0.2)),
        (Hybrid, "area", (0.1, 1.2)),
        (CenterBox, "side", (0.0, 0.5)),
        (RandomBox, "side", (0.5, 1.5)),
        (FreeForm, "strokes", (0, 3)),
        (RandomSpans, "spans", (0, 3)),
        (RandomSpans, "spans", (2, 1)),
        (RandomSpans, "spans", (1, 2.5)),
        (Irregular, "segments", (4, 3)),
        (FreeForm, "strokes", (1.5, 3)),
        (FreeForm, "area", 0.3),
        (FreeForm, "area", ("0", "1")),
        (FreeForm, "length", (-0.1, 0.3)),
        (Irregular, "length", (float("nan"), 0.3)),
        (FreeForm, "width", (0.0, 0.1)),
        (Irregular, "width", (0.5, 1.1)),
        (FreeForm, "turn", (0.0, 4.0)),
    ],
)
def test_parameters_out_of_range(kind, field, value, untyped):
    with pytest.raises(
        ValueError, match=rf"`{field}` must be \(smallest, largest\).* with .*; got"
    ):
        kind(**{field: value})


def test_turn_of_irregular_out_of_range():
    with pytest.raises(ValueError, match="`turn` must be"):
        Irregular(turn=-1.0)


def test_the_page_on_masks_runs(request):
    page = (request.config.rootpath / "docs/content/guides/masks.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        if "--8<--" not in block:  # an example, which has its own test
            exec(block, names)
    own = names["LeftPart"]
    masks = own(area=(0.2, 0.4))(20, (10, 30))
    assert all(allowed(n, 300, (0.2, 0.4)) for n in missing(masks))
    mixed = Hybrid(masks=(own(), RandomBox()), area=(0.2, 0.4))(20, (10, 30))
    assert all(allowed(n, 300, (0.2, 0.4)) for n in missing(mixed))
