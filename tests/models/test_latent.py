"""Laws of the codec: scales of every autoencoder, masks of latents, known pixels, and training-free fills."""

import pytest
import torch
from flow_matching.path.scheduler import CondOTScheduler
from torch import nn

from fm_ext.metrics import seam_gradient
from fm_ext.models import LatentCodec
from fm_ext.solver import InpaintingSolver


class Blocks(nn.Module):
    """An exact autoencoder: a cell is its pixels, twice as large and moved by 3."""

    def __init__(self, side=4):
        super().__init__()
        self.down, self.up = nn.PixelUnshuffle(side), nn.PixelShuffle(side)

    def encode(self, images):
        return 2 * self.down(images) + 3

    def decode(self, latents):
        return self.up((latents - 3) / 2)


class Blurred(Blocks):
    """Cells see the pixels beside them, and the decoder is too bright by 0.2."""

    def encode(self, images):
        return super().encode(nn.functional.avg_pool2d(images, 5, stride=1, padding=2))

    def decode(self, latents):
        return super().decode(latents) + 0.2


def hole(batch=2, size=16):
    mask = torch.zeros(batch, 1, size, size, dtype=torch.bool)
    mask[..., 5:11, 4:9] = True
    return mask


def autoencoders():
    diffusers = pytest.importorskip("diffusers")
    kl = lambda **more: diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4), norm_num_groups=2, latent_channels=4, **more,
    )  # fmt: skip
    return {
        "KL": (kl(), 0.18215, 0.0),
        "KL of SD3": (kl(scaling_factor=1.5305, shift_factor=0.0609), 1.5305, 0.0609),
        "KL of means": (
            kl(scaling_factor=0.5, latents_mean=[1.0, 0, 0, 0], latents_std=[2.0, 1, 1, 1]),
            torch.tensor([0.25, 0.5, 0.5, 0.5]).view(-1, 1, 1),
            torch.tensor([1.0, 0, 0, 0]).view(-1, 1, 1),
        ),
        "DC": (
            diffusers.AutoencoderDC(
                latent_channels=4, attention_head_dim=4, encoder_block_out_channels=(4, 4, 4),
                decoder_block_out_channels=(4, 4, 4), encoder_layers_per_block=(1, 1, 1),
                decoder_layers_per_block=(1, 1, 1), encoder_block_types="ResBlock",
                decoder_block_types="ResBlock", encoder_qkv_multiscales=((), (), ()),
                decoder_qkv_multiscales=((), (), ()), scaling_factor=0.41407,
            ),
            0.41407,
            0.0,
        ),
        "tiny": (
            diffusers.AutoencoderTiny(
                encoder_block_out_channels=(4, 4, 4), decoder_block_out_channels=(4, 4, 4),
                num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1),
            ),
            1.0,
            0.0,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["KL", "KL of SD3", "KL of means", "DC", "tiny"])
def test_diffusers_autoencoders_tell_scale_shift_and_factor(name):
    vae, scale, shift = autoencoders()[name]
    codec = LatentCodec(vae, batch_size=1)
    assert codec.factor == 4 and not vae.training
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    latents = codec.encode(images)
    assert latents.shape == (2, 4, 4, 6) and not latents.requires_grad
    with torch.no_grad():
        own = vae.encode(images)
        own = own.latent_dist.mode() if hasattr(own, "latent_dist") else next(iter(own.values()))
        torch.testing.assert_close(latents, (own - shift) * scale, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            codec.decode(latents), vae.decode(own).sample, rtol=1e-4, atol=1e-4
        )
    half = LatentCodec(vae.to(torch.bfloat16))
    assert half.encode(images).dtype == torch.float32
    torch.testing.assert_close(half.encode(images), latents, rtol=0.1, atol=0.1)


def test_a_gaussian_encoder_is_drawn_from_or_its_mode_is_taken_and_tiles_bound_the_memory():
    vae, images = autoencoders()["KL"][0], torch.rand(2, 3, 16, 16)
    draw = LatentCodec(vae, draw=True)
    first, again, other = (
        draw.encode(images, generator=torch.Generator().manual_seed(n)) for n in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.allclose(first, other)
    mode = LatentCodec(vae)
    assert torch.equal(mode.encode(images), mode.encode(images))
    assert not vae.use_tiling and LatentCodec(vae, tile=True) and vae.use_tiling


def test_a_cell_is_missing_if_any_of_its_pixels_is_and_dilation_adds_a_rim():
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[0, 0, 7, 8] = True  # one pixel, of the cell (1, 2)
    expected = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    expected[0, 0, 1, 2] = True
    assert torch.equal(LatentCodec(Blocks(), factor=4).mask(mask), expected)
    expected[0, 0, 0:3, 1:4] = True
    assert torch.equal(LatentCodec(Blocks(), factor=4, dilation=1).mask(mask), expected)
    random = torch.rand(8, 1, 16, 16) < 0.03
    cells = LatentCodec(Blocks(), factor=4).mask(random)
    covered = cells.repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert (covered | ~random).all()
    assert torch.equal(cells, random.unflatten(-1, (4, 4)).any(-1).unflatten(-2, (4, 4)).any(-2))


def test_missing_pixels_do_not_reach_the_latents():
    codec, images, mask = LatentCodec(Blurred(), factor=4), torch.rand(2, 3, 16, 16), hole()
    one, other = (codec.encode(images.masked_fill(mask, v), mask) for v in (7.0, torch.nan))
    assert torch.equal(one, other) and one.isfinite().all()


def test_contamination_ends_where_the_encoder_sees_no_hole():
    images, mask = torch.rand(2, 3, 32, 32), torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    mask[..., 12:20, 12:20] = True
    blurred = LatentCodec(Blurred(), factor=4).contamination(images, mask, cells=2)
    assert blurred[0] > 0.05 and blurred[1] == 0  # it sees two pixels, less than a cell
    assert (LatentCodec(Blocks(), factor=4).contamination(images, mask, cells=2) == 0).all()


def test_standardized_latents_have_unit_variance_and_decode_to_the_same():
    images = torch.rand(16, 3, 16, 16)
    codec = LatentCodec(Blocks(), factor=4)
    standard = codec.standardized(images)
    latents = standard.encode(images)
    torch.testing.assert_close(latents.mean(), torch.tensor(0.0), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std(), torch.tensor(1.0), rtol=0, atol=1e-4)
    torch.testing.assert_close(standard.decode(latents), images, rtol=0, atol=1e-5)
    assert codec.scale == 1 and codec.shift == 0


@pytest.mark.parametrize("blend", [False, True])
def test_known_pixels_come_back_bit_for_bit(blend):
    codec = LatentCodec(Blurred(), factor=4, blend=blend)
    image, mask = torch.rand(2, 3, 16, 16), hole()
    pasted = codec.paste(codec.decode(codec.encode(image)), image, mask)
    assert torch.equal(pasted.masked_fill(mask, 0), image.masked_fill(mask, 0))
    assert not torch.equal(pasted, image)


def test_a_blended_fill_has_no_seam_and_keeps_its_laplacian():
    codec, plain = LatentCodec(Blocks(), factor=4, blend=True), LatentCodec(Blocks(), factor=4)
    row = torch.linspace(-1, 1, 16)
    image = (row[:, None] * 0.3 + row**2 * 0.2).expand(2, 3, 16, 16).contiguous()
    slope = torch.linspace(0, 1, 16).view(-1, 1)
    fill, mask = (
        image + 0.2 + slope,
        hole(),
    )  # too bright, and more so below: harmonic, so all of it goes
    torch.testing.assert_close(codec.paste(fill, image, mask), image, rtol=0, atol=1e-5)
    assert seam_gradient(plain.paste(fill, image, mask), mask) > 3
    assert seam_gradient(codec.paste(fill, image, mask), mask) < 1.5
    texture = torch.randn(2, 3, 16, 16)
    blended = codec.paste(texture, image, mask).double()
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).double().expand(3, 1, 3, 3)
    laplacian = lambda x: nn.functional.conv2d(x, kernel, groups=3, padding=1)
    there = mask.expand_as(image)
    torch.testing.assert_close(
        laplacian(blended)[there], laplacian(texture.double())[there], rtol=0, atol=1e-4
    )


def test_a_hole_without_a_border_is_not_blended():
    codec = LatentCodec(Blocks(), factor=4, blend=True)
    image, fill = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    assert torch.equal(codec.paste(fill, image, torch.ones(1, 1, 8, 8, dtype=torch.bool)), fill)


class Still(nn.Module):
    """The exact velocity for data that are one point, and it notes what it is asked."""

    def __init__(self, point):
        super().__init__()
        self.point = point

    def forward(self, x, t):
        return (self.point - x) / (1 - t).clamp(min=1e-3)


@pytest.mark.parametrize("fills", [None, 3])
def test_latents_are_filled_and_known_pixels_pasted_back(fills):
    codec = LatentCodec(Blocks(), factor=4, scale=0.5, shift=3.0)
    point = torch.rand(3, 16, 16)
    image = point.expand(2, 3, 16, 16) + 0.01 * torch.randn(2, 3, 16, 16)
    model = Still(codec.encode(point[None]))
    solver = InpaintingSolver(model, CondOTScheduler(), "flower", codec=codec, gamma=0.0)
    mask = hole()
    seen = image.masked_fill(mask, torch.nan)
    result = solver.sample(seen, mask=mask, steps=8, fills=fills)
    assert result.shape == ((2, 3, 16, 16) if fills is None else (3, 2, 3, 16, 16))
    known = ~mask.expand_as(image)
    for filled in result.unbind(0) if fills else [result]:
        assert torch.equal(filled[known], image[known])
        torch.testing.assert_close(filled, point.expand_as(image), rtol=0, atol=0.1)


def codec_of(vae=None, **options):
    return LatentCodec(Blocks() if vae is None else vae, **({"factor": 4} | options))


def solver_of(codec):
    return InpaintingSolver(lambda x, t: -x, CondOTScheduler(), "flower", codec=codec)


class Wrong(Blocks):
    def encode(self, images):
        return "latents"


IMAGE, EVERY = torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16, dtype=torch.bool)
COLOURED = EVERY.clone()
COLOURED[:, 0] = False
ERRORS = {
    "no autoencoder": (lambda: LatentCodec(nn.Identity()), TypeError, "`vae` must have `encode`"),
    "no factor": (lambda: LatentCodec(Blocks()), ValueError, "`factor` must be given for a Blocks"),
    "no tiles": (lambda: codec_of(tile=True), TypeError, "`tile` needs a `vae` with"),
    "dilation": (lambda: codec_of(dilation=-1), ValueError, "`dilation` must be a whole number"),
    "batch": (lambda: codec_of(batch_size=0), ValueError, "`batch_size` must be a whole number"),
    "scale": (lambda: codec_of(scale=0.0), ValueError, "`scale` must be positive"),
    "sides": (lambda: codec_of().encode(torch.zeros(1, 3, 18, 16)), ValueError, "multiples of 4"),
    "another factor": (lambda: codec_of(factor=2).encode(IMAGE), ValueError, "`factor` must be the autoencoder's"),
    "an answer": (lambda: codec_of(Wrong()).encode(IMAGE), TypeError, "`vae.encode` must answer"),
    "a decoded": (lambda: codec_of().paste(IMAGE[..., :8], IMAGE, EVERY), ValueError, "`decoded` must be of"),
    "noise": (lambda: solver_of(codec_of()).sample(IMAGE, mask=EVERY[:, :1], noise_std=0.1), ValueError,
              "`noise_std` must be 0 with a `codec`"),
    "colours": (lambda: solver_of(codec_of()).sample(IMAGE, mask=COLOURED), ValueError,
                "`mask` must be the same for all channels"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_to_write(case):
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()
