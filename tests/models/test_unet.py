"""Laws of the networks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap

from fm_ext.models import MLP, SmallUNet, UNet
from fm_ext.models.blocks import Attention, ResBlock, Upsample, attend, zero


def tiny(**changes) -> UNet:
    return UNet(
        **(
            {"in_channels": 1, "channels": 8, "multipliers": (1, 2, 2), "head_channels": 8}
            | changes
        )
    )


def awake(net: nn.Module) -> nn.Module:
    """Gives the zero-initialised convolutions weights, as after some training."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.05)
    return net


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (17, 30), (1, 5)])
@pytest.mark.parametrize(
    "net", [tiny(), tiny(multipliers=(1,), attention=()), tiny(patch_size=2), SmallUNet()]
)
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


def test_patches_are_channels_of_a_network_at_a_fraction_of_the_resolution():
    net = awake(tiny(in_channels=2, out_channels=1, patch_size=3))
    inner = awake(UNet(18, 9, channels=8, multipliers=(1, 2, 2), head_channels=8))
    inner.load_state_dict(net.state_dict())
    x, t = torch.randn(2, 2, 24, 36), torch.rand(2)
    expected = F.pixel_shuffle(inner(F.pixel_unshuffle(x, 3), t), 3)
    torch.testing.assert_close(net(x, t), expected)


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
    features = tiny().time.features(torch.linspace(0, 1, 101), torch.float32)
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


def double_net(**changes) -> UNet:
    return awake(tiny(multipliers=(1, 2), num_classes=2, **changes)).double().eval()


def test_networks_hold_no_constant():
    """A buffer would be cast with the weights, and left uninitialised by a construction on the meta device."""
    for net in (tiny(num_classes=3), SmallUNet(), MLP()):
        assert not list(net.buffers())


def test_half_precision_rounds_weights_and_not_times():
    embedding = tiny(channels=32, head_channels=32).time
    t = torch.linspace(0, 1, 101)
    seen = []
    embedding.net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    embedding(t)
    embedding.bfloat16()(t)
    torch.testing.assert_close(seen[1].float(), seen[0], rtol=0, atol=2**-8)
    assert embedding.half()(t).dtype == torch.float16


def test_built_on_meta_and_loaded_strictly():
    net = awake(tiny(num_classes=3))
    with torch.device("meta"):
        twin = tiny(num_classes=3)
    twin.load_state_dict(net.state_dict(), assign=True)
    x, t, label = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 2])
    assert torch.equal(twin(x, t, label), net(x, t, label))


def test_the_state_dict_is_weights_by_their_old_names():
    keys = tiny(multipliers=(1, 2), num_classes=2).state_dict().keys()
    assert {"time.net.0.weight", "label.weight", "down.2.1.qkv.weight", "up.2.conv.bias"} <= keys
    assert not any("frequencies" in key or "fold" in key for key in keys)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula, which torch differentiates as it likes."""
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


def everything(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v).pow(3).sum()


@pytest.mark.parametrize("tokens", [7, 300])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_attention_is_the_fused_one(tokens, dtype):
    inputs = [torch.randn(2, 3, tokens, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    g = torch.randn(2, 3, tokens, 8, dtype=dtype)
    fused, ours = F.scaled_dot_product_attention(*inputs), attend(*inputs)
    assert torch.equal(fused, ours)
    for create_graph in (False, True):
        slopes = torch.autograd.grad(ours, inputs, g, create_graph=create_graph, retain_graph=True)
        expected = torch.autograd.grad(fused, inputs, g, retain_graph=True)
        torch.testing.assert_close(slopes, expected)


def test_attention_has_derivatives_of_every_kind():
    inputs = [torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    gradcheck(attend, inputs, check_forward_ad=True, check_batched_grad=True)
    gradgradcheck(attend, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize(
    "orders",
    [
        (jacfwd,),
        (jacrev,),
        (jacfwd, jacfwd),
        (jacfwd, jacrev),
        (jacrev, jacfwd),
        (jacrev, jacrev),
        (jacfwd, jacfwd, jacrev),
        (jacfwd, jacfwd, jacfwd),
    ],
)
def test_attention_under_nested_transforms(orders):
    """Forward over forward loses a term where a custom `jvp` answers it."""
    q, k, v = (torch.randn(1, 1, 2, 3, dtype=torch.float64) for _ in range(3))
    ours, expected = everything, lambda *qkv: softmax_attention(*qkv).pow(3).sum()
    for transform in orders:
        ours, expected = transform(ours), transform(expected)
    torch.testing.assert_close(ours(q, k, v), expected(q, k, v))


@pytest.mark.parametrize("dims", [(0, 0, 0), (1, None, None), (None, 0, 2)])
def test_attention_under_vmap(dims):
    inputs = [torch.randn(2, 3, 5, 8, dtype=torch.float64) for _ in range(3)]
    inputs = [
        x if d is None else torch.stack([x, -x, 2 * x], d)
        for x, d in zip(inputs, dims, strict=True)
    ]
    mapped = vmap(attend, dims)(*inputs)
    torch.testing.assert_close(mapped, vmap(softmax_attention, dims)(*inputs))


def test_the_jvp_is_the_finite_difference_and_the_dual_of_the_vjp():
    net, label = double_net(), torch.tensor([0, 2])
    x, t = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    dx, dt, g = torch.randn_like(x), 1e-2 * torch.randn_like(t), torch.randn_like(x)
    value, slope = jvp(lambda x, t: net(x, t, label), (x, t), (dx, dt))
    torch.testing.assert_close(value, net(x, t, label))
    h = 1e-5
    up, down = (net(x + s * dx, t + s * dt, label) for s in (h, -h))
    torch.testing.assert_close(slope, (up - down) / (2 * h), rtol=1e-6, atol=1e-7)
    _, pull = vjp(lambda x, t: net(x, t, label), x, t)
    gx, gt = pull(g)
    torch.testing.assert_close((g * slope).sum(), (gx * dx).sum() + (gt * dt).sum())


def test_second_derivatives_in_every_order():
    """One Hessian-vector product by grad of grad, forward over reverse, and finite differences."""
    net = double_net()
    x, d = torch.randn(2, 2, 1, 8, 8, dtype=torch.float64).unbind()
    t, h = torch.rand(2, dtype=torch.float64), 1e-5

    def slope(x: Tensor, create_graph: bool) -> Tensor:
        return torch.autograd.grad(net(x, t).square().sum(), x, create_graph=create_graph)[0]

    at = x.clone().requires_grad_()
    first = slope(at, True)
    twice = torch.autograd.grad((first * d).sum(), at)[0]
    _, forward = jvp(grad(lambda x: net(x, t).square().sum()), (x,), (d,))
    torch.testing.assert_close(forward, twice)
    up, down = (slope((x + s * d).requires_grad_(), False) for s in (h, -h))
    difference = (up - down) / (2 * h)
    torch.testing.assert_close(twice, difference, rtol=1e-6, atol=1e-7)


def test_vmap_over_networks_and_inputs():
    net = double_net()
    x, t = torch.randn(3, 2, 1, 8, 8, dtype=torch.float64), torch.rand(3, 2, dtype=torch.float64)
    label = torch.tensor([[0, 1], [2, 2], [1, 0]])
    expected = torch.stack([net(*inputs) for inputs in zip(x, t, label, strict=True)])
    torch.testing.assert_close(vmap(net)(x, t, label), expected)


def test_compiles_without_a_break(untyped):
    net = awake(tiny(multipliers=(1, 2), num_classes=2))
    x, t, label = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 2])
    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t, label), net(x, t, label))


@pytest.mark.parametrize("size", [28, 32, 64, 128, 256])
def test_presets_build(size):
    with torch.device("meta"):
        net = UNet.preset(size, 4, 3, channels=64)
    x = torch.empty(1, 4, size, size, device="meta")
    assert net(x, torch.empty(1, device="meta")).shape == (1, 3, size, size)


@pytest.mark.parametrize("size", [28, 32, 64])
def test_lean_presets_are_smaller(size):
    lean, usual = (UNet.preset(size, 1, lean=lean) for lean in (True, False))
    weights = [sum(p.numel() for p in net.parameters()) for net in (lean, usual)]
    assert weights[0] < weights[1]
    x = torch.randn(1, 1, size, size)
    assert lean(x, torch.rand(1)).shape == x.shape


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
    with pytest.raises(ValueError, match=r"`patch_size` must be at least 1, .*; got 0"):
        UNet(1, patch_size=0)
    with pytest.raises(ValueError, match=r"`num_classes` must be at least 1, .*; got 0"):
        UNet(1, num_classes=0)
    with pytest.raises(ValueError, match="`channels` must divide into heads"):
        UNet(1, channels=48, head_channels=32)
    with pytest.raises(ValueError, match="`size` must be 28, 32, 64, 128 or 256; got 100"):
        UNet.preset(100)
    with pytest.raises(ValueError, match="`size` must be 28, 32 or 64 for a lean network; got 128"):
        UNet.preset(128, lean=True)
    x = torch.randn(2, 1, 8, 8)
    with pytest.raises(ValueError, match="`x` must have in_channels = 2 channels"):
        UNet(2, channels=8, head_channels=8)(x, torch.rand(2))
    with pytest.raises(ValueError, match="`label` was given to a UNet without classes"):
        tiny()(x, torch.rand(2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"`t` must be 0-d, .*got \(3,\)"):
        tiny()(x, torch.rand(3))


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_the_lowest_level_attends_by_default(levels):
    net = UNet(3, channels=8, multipliers=(1,) * (levels - 1) + (2,), head_channels=8)
    attending = {m.qkv.in_features for m in net.modules() if isinstance(m, Attention)}
    assert attending == {16}
    x = torch.randn(1, 3, 8, 8)
    assert net(x, torch.rand(1)).shape == x.shape


def test_bad_labels(untyped):
    net, x, t = tiny(num_classes=3), torch.randn(2, 1, 8, 8), torch.rand(2)
    good = torch.tensor([1, 3])
    assert net(x, t, good).shape == x.shape
    for bad in (torch.tensor([1, -1]), torch.tensor([1, 4])):
        with pytest.raises(
            ValueError, match=r"`label` must lie in .* = \[0, 3\], of which 3 .*; got"
        ):
            net(x, t, bad)
    with pytest.raises(
        TypeError, match=r"`label` must be int64; got torch.float32.*label.long\(\)"
    ):
        net(x, t, good.float())
    assert torch.equal(net(x, t, good.float().long()), net(x, t, good))
    one_hot = F.one_hot(good, 4).float()
    with pytest.raises(TypeError, match=r"`label.argmax\(1\)` for one-hot"):
        net(x, t, one_hot)
    assert torch.equal(net(x, t, one_hot.argmax(1)), net(x, t, good))
    with pytest.raises(ValueError, match=r"here \(2,\); got \(2, 1\).*label.flatten\(\)"):
        net(x, t, good[:, None])
    with pytest.raises(ValueError, match=r"`label` must be \(batch,\).*got \(\)"):
        net(x, t, good[0])
    with pytest.raises(ValueError, match=r"`label` must be \(batch,\).*got \(2, 4\)"):
        net(x, t, F.one_hot(good, 4))


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (tiny(), torch.randn(2, 1, 8, 8)),
        (SmallUNet(), torch.randn(2, 1, 8, 8)),
        (MLP(), torch.randn(2, 2)),
    ],
)
def test_another_dtype_than_the_weights(net, x, untyped):
    t = torch.rand(2)
    for dtype in (torch.float64, torch.bfloat16, torch.int64):
        with pytest.raises(
            TypeError, match=rf"`x` must have the dtype .* torch.float32.*; got {dtype}"
        ):
            net(x.to(dtype), t)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x.bfloat16(), t).dtype == torch.bfloat16
        with pytest.raises(TypeError, match=r"`x` must have the dtype .*; got torch.float64"):
            net(x.double(), t)
