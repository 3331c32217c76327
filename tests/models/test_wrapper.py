"""Every network of the field becomes v(x=x, t=t, **extras)."""

import pytest
import torch
from flow_matching.solver import ODESolver
from flow_matching.utils import ModelWrapper
from torch import nn

from fm_ext.models import SmallUNet, UNet, UNetWrapper
from fm_ext.solver import ODESolver as OurSolver
from fm_ext.utils import shared


class Probe(nn.Module):
    """Remembers what it was called with."""

    def forward(self, x, t, label=None):
        self.x, self.t, self.label = x, t, label
        return x[:, :1]


class TimeFirst(Probe):
    def forward(self, t, x, y=None, *args, **kwargs):
        return super().forward(x, t, y)


class WithExtra(Probe):
    def forward(self, x, timesteps, extra):
        out = super().forward(x, timesteps, extra.get("label"))
        self.extra = dict(extra)
        extra["label"] = "written by the network"
        return out


class Output:
    def __init__(self, sample):
        self.sample = sample


class WithOutputObject(Probe):
    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        return Output(super().forward(sample, timestep, class_labels))


class WithTuple(Probe):
    def forward(self, sample, timestep, class_labels=None):
        return (super().forward(sample, timestep, class_labels), "more")


NETS = [Probe, TimeFirst, WithExtra, WithOutputObject, WithTuple]
X = torch.randn(3, 1, 4, 4)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1, 1, 1)])
def test_every_convention_and_every_shape_of_t(net, shape):
    model = UNetWrapper(net(), time_scale=1000.0)
    label = torch.arange(3)
    t = torch.rand(shape)
    assert torch.equal(model(x=X, t=t, label=label), X)
    torch.testing.assert_close(model.model.t, (1000 * t).reshape(-1).expand(3))
    assert torch.equal(model.model.label, label) and torch.equal(model.model.x, X)
    assert isinstance(model, ModelWrapper)


@pytest.mark.parametrize(("net", "own"), [(TimeFirst, "y"), (WithOutputObject, "class_labels")])
def test_the_networks_own_name_for_the_label_is_the_label(net, own):
    model, label = UNetWrapper(net(), null_label=10, label_dropout=0.5), torch.tensor([3, 4, 5])
    model.eval()(x=X, t=torch.tensor(0.5), **{own: label})
    assert torch.equal(model.model.label, label)
    drawn = set()
    for _ in range(40):  # dropout is of it, too
        model.train()(x=X, t=torch.tensor(0.5), **{own: label})
        drawn |= set(model.model.label.tolist())
    assert drawn == {3, 4, 5, 10}
    with pytest.raises(TypeError, match=rf"`label` and `{own}`, .* were both given: give one"):
        model(x=X, t=torch.tensor(0.5), label=label, **{own: label})


def test_a_condition_of_the_labels_name_stays_a_condition():
    model = UNetWrapper(TimeFirst(), concat=("y",))
    model(x=X, t=torch.tensor(0.5), y=2 * X, label=torch.arange(3))
    assert torch.equal(model.model.x, torch.cat([X, 2 * X], dim=1))
    assert torch.equal(model.model.label, torch.arange(3))


def test_extra_dict_is_not_shared():
    model = UNetWrapper(WithExtra(), extra=("y",))
    extras = {"y": torch.ones(3)}
    model(x=X, t=torch.tensor(0.5), **extras)
    assert set(extras) == {"y"} and set(model.model.extra) == {"y"}


def test_upstreams_extra_dict_is_the_keywords():
    """`extra={"label": y}` is how upstream's example is called; nested once more it would mean no label at all."""
    model, label = UNetWrapper(WithExtra()), torch.tensor([3, 4, 5])
    given = {"label": label, "concat_conditioning": X}
    model(x=X, t=torch.tensor(0.5), extra=given)
    assert torch.equal(model.model.label, label) and set(model.model.extra) == set(given)
    assert torch.equal(given["label"], label)
    for wrong in ({"lable": label}, {"extra": {"lable": label}}):
        with pytest.raises(
            TypeError, match=r"`lable` is taken neither .* takes .*'label'"
        ) as error:
            model(x=X, t=torch.tensor(0.5), **wrong)
        advice = str(error.value).split("name it in ")[1].rstrip(".")
        net = WithExtra()
        eval(f"UNetWrapper(net, {advice})", {"UNetWrapper": UNetWrapper, "net": net})(
            x=X, t=torch.tensor(0.5), **wrong
        )
        assert torch.equal(net.extra["lable"], label)
    with pytest.raises(TypeError, match="`label` was given both as a keyword and in `extra`"):
        model(x=X, t=torch.tensor(0.5), extra={"label": label}, label=label)


@pytest.mark.parametrize("shape", [(3, 1, 5), (3, 1, 2, 4, 4), (3, 6, 2)])
def test_signals_video_and_sequences_are_concatenated_like_images(shape):
    axis = -1 if shape[-1] == 2 else 1
    x = torch.randn(shape)
    mask_shape = list(shape)
    mask_shape[axis], mask_shape[0] = 1, 1
    mask = torch.rand(mask_shape) < 0.5

    class Net(nn.Module):
        def forward(self, x, t):
            self.x = x
            return x.narrow(axis, 0, shape[axis])

    net = Net()
    model = UNetWrapper(net, concat=("mask",), channel_axis=axis)
    assert torch.equal(model(x=x, t=torch.tensor([0.5]), mask=mask), x)
    shown = net.x.select(axis, -1)
    assert torch.equal(shown.bool(), mask.select(axis, 0).expand_as(shown))


def test_flow_networks_of_diffusers_need_a_sign():
    diffusers = pytest.importorskip("diffusers", reason="a peer, not a dependency")
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
        pooled_projection_dim=16, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"`output_scale` must be given for SD3.*output_scale=-1"):
        UNetWrapper(net)
    x, text, pooled = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 16), torch.randn(2, 16)
    t = torch.tensor([0.2, 0.7])
    model = UNetWrapper(net, time_scale=lambda t: 1000 * (1 - t), output_scale=-1)
    given = {"encoder_hidden_states": text, "pooled_projections": pooled}
    noise_minus_data = net(x, timestep=1000 * (1 - t), **given).sample
    torch.testing.assert_close(model(x=x, t=t, **given), -noise_minus_data)


class AsDict(Probe):
    def forward(self, x, t, label=None):
        return {"sample": super().forward(x, t, label), "more": 1}


def test_outputs_without_a_tensor_and_of_another_shape():
    assert torch.equal(UNetWrapper(AsDict())(x=X, t=torch.tensor(0.5)), X)
    net = Probe()
    for answer, error, words in (
        ({"logits": X}, TypeError, r"answered with a dict with \['logits'\]"),
        (None, TypeError, "answered with NoneType"),
        (X[..., :1], ValueError, r"shape of its state, \(3, 1, 4, 4\).*\(3, 1, 4, 1\)"),
    ):
        net.forward = lambda x, t, answer=answer: answer
        with pytest.raises(error, match=words):
            UNetWrapper(net)(x=X, t=torch.tensor(0.5))


def test_extras_hold_one_entry_a_sample_or_are_shared():
    class Net(nn.Module):
        def forward(self, x, t, table):
            self.table = table
            return x

    model, table = UNetWrapper(Net()), torch.randn(5, 2)
    with pytest.raises(ValueError, match=r"`table` must .*\(3, ...\); got \(5, 2\)") as error:
        model(x=X, t=torch.tensor(0.5), table=table)
    assert "table=shared(table), from fm_ext.utils" in str(error.value)
    for solver in (ODESolver, OurSolver):
        solver(model).sample(X, step_size=0.5, table=shared(table))
        assert model.model.table is table


def test_time_scale_may_be_a_function():
    model = UNetWrapper(Probe(), time_scale=lambda t: 999 * (1 - t))
    model(x=X, t=torch.tensor(0.25))
    torch.testing.assert_close(model.model.t, torch.full((3,), 749.25))


def test_concat_in_order_with_the_hole_of_the_image_zeroed():
    model = UNetWrapper(Probe(), concat=("mask", "image"))
    mask = torch.rand(3, 1, 4, 4) < 0.5
    image = torch.randn(3, 2, 4, 4)
    model(x=X, t=torch.tensor(0.5), image=image, mask=mask)
    x, m, i = model.model.x.split([1, 1, 2], dim=1)
    assert torch.equal(x, X) and torch.equal(m, mask.float())
    assert torch.equal(i, image * ~mask)
    leaked = torch.where(mask, torch.randn(3, 2, 4, 4), image)
    model(x=X, t=torch.tensor(0.5), image=leaked, mask=mask)
    assert torch.equal(model.model.x, torch.cat([x, m, i], dim=1))


def test_image_alone_is_masked_too():
    model = UNetWrapper(Probe(), concat=("image",))
    mask = torch.rand(3, 1, 4, 4) < 0.5
    model(x=X, t=torch.tensor(0.5), image=X, mask=mask)
    assert torch.equal(model.model.x[:, 1:], X * ~mask)


def test_label_dropout_is_per_sample_and_in_training_only():
    model = UNetWrapper(Probe(), label_dropout=0.3, null_label=10)
    label = torch.arange(10).repeat(500)
    x = torch.zeros(5000, 1, 1, 1)
    model.train()(x=x, t=torch.tensor(0.0), label=label)
    dropped = model.model.label == 10
    assert 0.27 < dropped.float().mean() < 0.33
    assert torch.equal(model.model.label[~dropped], label[~dropped])
    model.eval()(x=x, t=torch.tensor(0.0), label=label)
    assert torch.equal(model.model.label, label)
    model(x=x, t=torch.tensor(0.0))
    assert model.model.label.eq(10).all()


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun3", "dopri5"])
def test_through_upstreams_solver(method):
    net = UNet(2, 1, channels=8, multipliers=(1, 2), attention=(1,), head_channels=8)
    solver = ODESolver(UNetWrapper(net, concat=("mask",)))
    step_size = None if method == "dopri5" else 0.25
    mask = torch.ones(3, 1, 4, 4, dtype=torch.bool)
    result = solver.sample(x_init=X, step_size=step_size, method=method, mask=mask)
    torch.testing.assert_close(result, X)  # the network starts at zero


def test_compiled_networks_keep_their_arguments():
    model = UNetWrapper(torch.compile(TimeFirst(), backend="eager"))
    assert torch.equal(model(x=X, t=torch.tensor(0.5)), X)


def test_peers_networks():
    diffusers = pytest.importorskip("diffusers", reason="a peer, not a dependency")
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    x, t = torch.randn(2, 1, 8, 8), torch.rand(2)
    expected = net(x, 1000 * t).sample
    torch.testing.assert_close(UNetWrapper(net, time_scale=1000)(x=x, t=t), expected)


def test_state_dict_prefix_is_upstreams():
    assert all(name.startswith("model.") for name in UNetWrapper(SmallUNet()).state_dict())


class Nameless(nn.Module):
    def forward(self, a, b):
        return a * b.reshape(-1, 1, 1, 1)


def test_arguments_by_hand():
    model = UNetWrapper(Nameless(), arguments={"x": "a", "t": "b"})
    torch.testing.assert_close(model(x=X, t=torch.tensor(0.5)), X / 2)


def test_bad_input():
    t = torch.tensor(0.5)
    with pytest.raises(
        TypeError, match=r"no argument of Nameless.forward\(a, b\) is called one of \('x'"
    ):
        UNetWrapper(Nameless())
    with pytest.raises(ValueError, match=r"`label_dropout` must lie in \[0, 1\); got 1.0"):
        UNetWrapper(Probe(), label_dropout=1.0, null_label=10)
    with pytest.raises(ValueError, match="`label_dropout` needs `null_label`"):
        UNetWrapper(Probe(), label_dropout=0.1)
    with pytest.raises(TypeError, match="`concat` must be a tuple of names"):
        UNetWrapper(Probe(), concat="mask")
    model = UNetWrapper(Probe(), concat=("mask",))
    with pytest.raises(TypeError, match="`mask` is named by `concat` and was not given"):
        model(x=X, t=t)
    with pytest.raises(
        ValueError, match=r"`mask` must be of x's shape but for the channels.*\(3, 1, 2, 2\)"
    ):
        model(x=X, t=t, mask=torch.ones(3, 1, 2, 2))
    with pytest.raises(TypeError, match="`time_steps` is taken neither by `concat`"):
        UNetWrapper(Probe())(x=X, t=t, time_steps=torch.zeros(2))
    with pytest.raises(TypeError, match="`label` was given, but SmallUNet has no argument for it"):
        UNetWrapper(SmallUNet())(x=X, t=t, label=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"`t` must be 0-d"):
        UNetWrapper(Probe())(x=X, t=torch.rand(2))
