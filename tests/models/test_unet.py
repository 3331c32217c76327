"""Laws of the networks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fm_ext.models import SmallUNet, UNet
from fm_ext.models.blocks import Attention, ResBlock, Upsample, zero


def tiny(**changes) -> UNet:
    return UNet(1, **({"channels": 8, "multipliers": (1, 2, 2), "head_channels": 8} | changes))


def awake(net: nn.Module) -> nn.Module:
    """Gives the zero-initialised convolutions weights, as after some training."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.05)
    return net


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (17, 30), (1, 5)])
@pytest.mark.parametrize("net", [tiny(), tiny(multipliers=(1,), attention=()), SmallUNet()])
def test_any_image_size(net, size):
    x = torch.randn(2, 1, *size)
    assert net(x, torch.rand(2)).shape == x.shape


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("blocks", [1, 2])
def test_any_depth(levels, blocks):
    widths = (1,) * levels
    net = UNet(
        3,
        2,
        channels=8,
        multipliers=widths,
        attention=(levels - 1,),
        blocks=blocks,
        head_channels=8,
    )
    x = torch.randn(2, 3, 16, 16)
    assert net(x, torch.tensor(0.5)).shape == (2, 2, 16, 16)
    attends = sum(isinstance(m, Attention) for m in net.modules())
    assert attends == 2 * blocks + 2


def test_starts_at_zero():
    assert not tiny()(torch.randn(2, 1, 8, 8), torch.rand(2)).any()


def test_padding_does_not_change_divisible_images_and_crops_the_rest():
    net = awake(tiny())
    x = torch.randn(1, 1, 13, 13)
    padded = F.pad(x, (0, 3, 0, 3), mode="replicate")
    t = torch.rand(1)
    torch.testing.assert_close(net(x, t), net(padded, t)[..., :13, :13])


def test_every_residual_block_feels_time_and_class():
    """A norm of one channel a group, after an embedding that is added, would erase it."""
    net = awake(UNet(1, channels=32, multipliers=(1, 2), attention=(1,), num_classes=3))
    net(torch.randn(4, 1, 8, 8), torch.rand(4), torch.arange(4)).square().sum().backward()
    blocks = [m for m in net.modules() if isinstance(m, ResBlock)]
    assert len(blocks) > 4
    for block in blocks:
        assert block.modulation.weight.grad.abs().max() > 0
    assert net.label.weight.grad.abs().sum(dim=1).gt(0).all()


def test_time_is_resolved_over_the_whole_interval():
    embedding = tiny().time
    t = torch.linspace(0, 1, 101)
    angles = t[:, None] * embedding.frequencies
    features = torch.cat([angles.cos(), angles.sin()], dim=1)
    distance = (features[1:] - features[:-1]).norm(dim=1)
    assert distance.min() > 0.5


def test_scalar_time_is_the_batched_one():
    net = awake(tiny())
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(net(x, torch.tensor(0.3)), net(x, torch.full((3,), 0.3)))
    torch.testing.assert_close(net(x, torch.tensor(0.3)), net(x, torch.full((3, 1, 1, 1), 0.3)))


def test_samples_do_not_mix():
    net = awake(tiny()).eval()
    x, t = torch.randn(4, 1, 8, 8), torch.rand(4)
    torch.testing.assert_close(net(x, t)[2:3], net(x[2:3], t[2:3]))


def test_no_label_is_the_null_class():
    net = awake(tiny(num_classes=10))
    x, t = torch.randn(3, 1, 8, 8), torch.rand(3)
    torch.testing.assert_close(net(x, t), net(x, t, torch.full((3,), 10)))
    assert not torch.allclose(net(x, t), net(x, t, torch.full((3,), 4)))


def test_upsample_is_nearest_copy_and_convolution():
    up = Upsample(6).double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(up(x), up.conv(F.interpolate(x, scale_factor=2, mode="nearest")))


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_against_softmax(heads):
    attention = Attention(16, 16 // heads).double()
    attention.out = nn.Linear(16, 16).double()
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    tokens = attention.norm(x).flatten(2).mT
    q, k, v = attention.qkv(tokens).reshape(2, 15, 3, heads, 16 // heads).unbind(2)
    weights = (torch.einsum("bihd,bjhd->bhij", q, k) / (16 // heads) ** 0.5).softmax(-1)
    h = attention.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))
    torch.testing.assert_close(attention(x), x + h.mT.reshape(2, 16, 3, 5))


@pytest.mark.parametrize("size", [28, 32, 64, 128, 256])
def test_presets_build(size):
    with torch.device("meta"):
        net = UNet.preset(size, 4, 3, channels=64)
    x = torch.empty(1, 4, size, size, device="meta")
    assert net(x, torch.empty(1, device="meta")).shape == (1, 3, size, size)


def test_gradients_reach_every_parameter():
    for net in (awake(tiny(num_classes=2)), SmallUNet()):
        label = (torch.zeros(2, dtype=torch.long),) if isinstance(net, UNet) else ()
        net(torch.randn(2, 1, 12, 12), torch.rand(2), *label).square().sum().backward()
        assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    net = awake(tiny(num_classes=2)).to(dtype)
    x = torch.randn(2, 1, 8, 8, dtype=dtype)
    out = net(x, torch.rand(2))
    assert out.dtype == dtype
    reference = net.double()(x.double(), torch.zeros(2))
    torch.testing.assert_close(
        net.to(dtype)(x, torch.zeros(2)).double(), reference, rtol=0.1, atol=0.1
    )


def test_small_unet_is_the_practical_works():
    net = SmallUNet()
    convolutions = [
        (type(m).__name__, m.in_channels, m.out_channels, m.kernel_size[0])
        for m in net.modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    ]
    assert convolutions == [
        ("Conv2d", 2, 32, 3), ("Conv2d", 32, 32, 3),
        ("Conv2d", 32, 64, 3), ("Conv2d", 64, 64, 3),
        ("Conv2d", 64, 64, 3), ("Conv2d", 64, 64, 3),
        ("ConvTranspose2d", 64, 64, 2),
        ("Conv2d", 64, 32, 3), ("Conv2d", 32, 32, 3),
        ("ConvTranspose2d", 32, 32, 2),
        ("Conv2d", 32, 32, 3), ("Conv2d", 32, 32, 3),
        ("Conv2d", 32, 1, 1),
    ]  # fmt: skip
    assert sum(p.numel() for p in net.parameters()) == 205_953
    x = torch.randn(2, 1, 28, 28)
    assert not torch.allclose(net(x, torch.tensor(0.0)), net(x, torch.tensor(1.0)))


def test_zero_keeps_the_module():
    conv = nn.Conv2d(2, 2, 1)
    assert zero(conv) is conv and not conv.weight.any() and not conv.bias.any()


def test_bad_input():
    with pytest.raises(ValueError, match="`multipliers` must name 1 to 6 levels"):
        UNet(1, multipliers=())
    with pytest.raises(ValueError, match=r"`attention` must name levels from 0 to 2.*\(3,\)"):
        UNet(1, multipliers=(1, 2, 2), attention=(3,))
    with pytest.raises(ValueError, match="`channels` must divide into heads"):
        UNet(1, channels=48, head_channels=32)
    with pytest.raises(ValueError, match="`size` must be 28, 32, 64, 128 or 256; got 100"):
        UNet.preset(100)
    x = torch.randn(2, 1, 8, 8)
    with pytest.raises(ValueError, match="`x` must have in_channels = 2 channels"):
        UNet(2, channels=8, head_channels=8)(x, torch.rand(2))
    with pytest.raises(ValueError, match="`label` was given to a UNet without classes"):
        tiny()(x, torch.rand(2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"`t` must be 0-d, \(batch,\).*got \(3,\)"):
        tiny()(x, torch.rand(3))
