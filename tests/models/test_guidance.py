"""Laws of guidance, on data whose velocities have closed forms."""

import pytest
import torch
from flow_matching.path import CondOTProbPath
from flow_matching.path.scheduler import CondOTScheduler
from flow_matching.solver import ODESolver as UpstreamODESolver
from torch import nn
from torch.testing import assert_close

from fm_ext.models import (
    GuidedVelocityModel,
    MaskedVelocityModel,
    PredictionVelocityModel,
    SmallUNet,
    UNet,
    UNetWrapper,
)
from fm_ext.path import AffineProbPath, MaskedProbPath
from fm_ext.path.scheduler import CosineScheduler
from fm_ext.solver import ODESolver

MEANS, NULL = torch.tensor([[-2.0, 0.0], [1.0, 1.0], [2.0, -1.0]], dtype=torch.float64), 3
STD = 0.5


class Mixture(nn.Module):
    """The exact velocity of a mixture of Gaussians on the cosine path, or of one of them; remembers batch sizes."""

    def __init__(self, null_label=NULL):
        super().__init__()
        self.null_label, self.batches = null_label, []
        self.path = AffineProbPath(CosineScheduler())

    def expected(self, x, t, label):
        """The mean of X_1 and of X_0 at x."""
        at = self.path.scheduler(t.double().reshape(-1, 1))
        alpha, sigma = at.alpha_t, at.sigma_t
        variance = alpha**2 * STD**2 + sigma**2
        gaps = x[:, None] - alpha[..., None] * MEANS  # batch, class, 2
        weights = torch.softmax(-gaps.square().sum(-1) / (2 * variance), dim=1)
        chosen = torch.nn.functional.one_hot(label, NULL + 1)[:, :NULL].double()
        weights = torch.where((label == NULL)[:, None], weights, chosen)[..., None]
        gap = (weights * gaps).sum(1) / variance
        return (weights * MEANS).sum(1) + alpha * STD**2 * gap, sigma * gap

    def score(self, x, t, label):
        return self.path.epsilon_to_score(self.expected(x, t, label)[1], x, t)

    def forward(self, x, t, label):
        self.batches.append(len(x))
        x_1, x_0 = self.expected(x, t, label)
        at = self.path.scheduler(t.double().reshape(-1, 1))
        return at.d_alpha_t * x_1 + at.d_sigma_t * x_0


X, LABEL = torch.randn(6, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
TIMES = [torch.tensor(0.4), torch.rand(6), torch.rand(6, 1)]
nothing = torch.full_like(LABEL, NULL)


@pytest.mark.parametrize("t", TIMES, ids=lambda t: str(tuple(t.shape)))
@pytest.mark.parametrize("scale", [-0.5, 0.0, 0.3, 1.0, 2.5, 7.0])
def test_it_is_guidance_of_the_score(scale, t):
    """Velocities are affine in scores, so they extrapolate alike."""
    model = Mixture()
    guided = GuidedVelocityModel(model, scale)(x=X, t=t, label=LABEL)
    null, conditional = (model.score(X, t, label) for label in (nothing, LABEL))
    want = model.path.score_to_velocity(null + scale * (conditional - null), X, t)
    assert_close(guided, want)


def test_the_two_conventions_and_their_cost():
    model, t = Mixture(), torch.tensor(0.6)
    plain, null = model(X, t, LABEL), model(X, t, nothing)
    assert torch.equal(GuidedVelocityModel(model, 1.0)(x=X, t=t, label=LABEL), plain)
    assert torch.equal(GuidedVelocityModel(model, weight=0.0)(x=X, t=t, label=LABEL), plain)
    assert torch.equal(GuidedVelocityModel(model, 0.0)(x=X, t=t, label=LABEL), null)
    assert model.batches == [6] * 5
    w = 1.5  # upstream's cfg_scale
    got = GuidedVelocityModel(model, weight=w)(x=X, t=t, label=LABEL)
    assert_close(got, (1 + w) * plain - w * null)
    assert torch.equal(got, GuidedVelocityModel(model, guidance_scale=1 + w)(x=X, t=t, label=LABEL))
    assert model.batches[5:] == [12, 12]
    assert "guidance_scale=2.5, on=['label']" in repr(GuidedVelocityModel(model, weight=w))


def test_outside_the_interval_it_is_the_conditional_model():
    model = Mixture()
    guided, always = (GuidedVelocityModel(model, 3.0, interval=i) for i in ((0.2, 0.7), None))
    for t in (0.2, 0.45, 0.699):
        t = torch.tensor(t, dtype=torch.float64)
        assert torch.equal(guided(x=X, t=t, label=LABEL), always(x=X, t=t, label=LABEL))
    model.batches.clear()
    for t in (0.0, 0.19, 0.7, 1.0):
        t = torch.tensor(t, dtype=torch.float64)
        assert torch.equal(guided(x=X, t=t, label=LABEL), model(X, t, LABEL))
    assert model.batches == [6] * 8
    t = torch.tensor([0.1, 0.3, 0.5, 0.6, 0.8, 1.0])
    inside = torch.tensor([False, True, True, True, False, False])[:, None]
    want = torch.where(inside, always(x=X, t=t, label=LABEL), model(X, t, LABEL))
    assert_close(guided(x=X, t=t, label=LABEL), want)


def test_an_interval_to_the_end_holds_the_end():
    guided, always = (GuidedVelocityModel(Mixture(), 3.0, interval=i) for i in ((0.2, 1.0), None))
    end = torch.tensor(1.0, dtype=torch.float64)
    assert torch.equal(guided(x=X, t=end, label=LABEL), always(x=X, t=end, label=LABEL))


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun3"])
@pytest.mark.parametrize("grid", [[0.0, 0.25, 0.75, 1.0], [i / 8 for i in range(9)]], ids=len)
def test_an_interval_on_the_grid_is_integrated_exactly(method, grid):
    class Step(nn.Module):  # velocity 1 with the condition, 0 without
        null_label = 1

        def forward(self, x, t, label):
            return torch.where(label == NULL, 0.0, 1.0)[:, None] + 0 * x

    guided = GuidedVelocityModel(Step(), 3.0, null={"label": NULL}, interval=(0.25, 0.75))
    got = ODESolver(guided).sample(0 * X, method=method, time_grid=grid, label=LABEL)
    assert_close(got, torch.full_like(X, 0.5 * 3 + 0.5))


def test_extras_in_a_dict_are_doubled_with_the_batch():
    class Nested(nn.Module):
        def forward(self, x, t, label, extra):
            return x * (1 + (label == NULL))[:, None] + extra["shift"] * extra["gain"]

    extra = {"shift": torch.randn(6, 2, dtype=torch.float64), "gain": 2.0}
    guided = GuidedVelocityModel(Nested(), 3.0, null={"label": NULL})
    got = guided(x=X, t=TIMES[0], label=LABEL, extra=extra)
    assert_close(got, 2 * X + 3 * (X - 2 * X) + 2 * extra["shift"])


@pytest.mark.parametrize("mask", [torch.ones(6, 2), torch.ones(6, 7).bool(), "all"])
def test_rescale_lets_a_mask_that_is_none_of_entries_be_the_models_own_affair(mask):
    class Masked(Mixture):
        def forward(self, x, t, label, mask=None):
            return super().forward(x, t, label)

    guided = GuidedVelocityModel(Masked(), 3.0, rescale=0.5)
    got = guided(x=X, t=TIMES[0], label=LABEL, mask=mask)
    assert torch.equal(got, guided(x=X, t=TIMES[0], label=LABEL))


@pytest.mark.parametrize("masked", [False, True])
def test_rescale_restores_the_deviation_of_each_sample(masked):
    class Noise(nn.Module):
        def forward(self, x, t, label, mask=None):
            return torch.where((label == 9).view(-1, 1, 1, 1), x.flip(-1), 2 * x + 1)

    x, t = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.tensor(0.5)
    extras = {"label": torch.zeros(4, dtype=torch.long)}
    mask = torch.rand(4, 1, 8, 8) < 0.5
    if masked:
        extras["mask"] = mask
    guide = lambda phi: GuidedVelocityModel(Noise(), 4.0, null={"label": 9}, rescale=phi)(
        x=x, t=t, **extras
    )
    plain = Noise()(x, t, **extras)
    spread = lambda v: torch.stack(
        [
            s[(m if masked else m | True).expand_as(s)].std(correction=0)
            for s, m in zip(v, mask, strict=True)
        ]
    )
    assert_close(spread(guide(1.0)), spread(plain))
    assert_close(guide(0.7), 0.7 * guide(1.0) + 0.3 * guide(0.0))
    still = GuidedVelocityModel(
        UNetWrapper(
            UNet(1, 1, channels=8, multipliers=(1,), attention=(), head_channels=8, num_classes=9),
            null_label=9,
        ),
        4.0,
        rescale=0.7,
    )
    got = still(x=torch.randn(2, 1, 4, 4), t=t, label=torch.zeros(2, dtype=torch.long))
    assert got.eq(0).all()  # a new network's velocity, of no deviation


@pytest.mark.parametrize("solver", [UpstreamODESolver, ODESolver])
@pytest.mark.parametrize("method", ["euler", "heun3", "dopri5"])
def test_inside_the_solvers(solver, method):
    model = GuidedVelocityModel(Mixture(), 1.0)
    step = {"x_init": X, "method": method, "step_size": None if method == "dopri5" else 0.02}
    plain = solver(model).sample(**step, label=LABEL)
    far = solver(GuidedVelocityModel(Mixture(), 3.0)).sample(**step, label=LABEL)
    away = lambda x: (x - MEANS[LABEL]) @ (MEANS[LABEL] - MEANS.mean(0)).T
    assert away(far).diagonal().mean() > away(plain).diagonal().mean()  # from the other classes


def test_any_condition():
    class Context(nn.Module):
        def forward(self, x, t, context, table):
            return x + context.sum(1, keepdim=True) + table

    context, null = torch.randn(6, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    guided = GuidedVelocityModel(Context(), 2.0, null={"context": null})
    got = guided(x=X, t=torch.tensor(0.0), context=context, table=1.0)
    assert_close(got, X + 2 * context.sum(1, keepdim=True) - null.sum() + 1)


# ---- the known pixels as the condition -----------------------------------------------------------


class Look(nn.Module):
    """Remembers its input."""

    def forward(self, x, t):
        self.x = x
        return x[:, :1]


def test_hidden_pixels_are_in_no_channel():
    net = Look()
    model = UNetWrapper(net, concat=("mask", "image"))
    x, image, mask = torch.randn(4, 1, 5, 5), torch.randn(4, 1, 5, 5), torch.rand(4, 1, 5, 5) < 0.5
    hide = torch.tensor([True, False, True, False])
    model(x=x, t=torch.tensor(0.5), mask=mask, image=image, hide_known=hide)
    state, channel, shown = net.x.unbind(1)
    for i in range(4):
        m = mask[i, 0]
        assert torch.equal(state[i][m], x[i, 0][m]) and channel[i][m].eq(1).all()
        assert shown[i][m].eq(0).all()
        expected = (0, -1, 0) if hide[i] else (x[i, 0][~m], 0, image[i, 0][~m])
        for got, want in zip((state, channel, shown), expected, strict=True):
            assert got[i][~m].eq(want).all()


def test_mask_dropout_is_per_sample_and_in_training_only():
    net = Look()
    model = UNetWrapper(net, concat=("mask",), mask_dropout=0.3)
    x, mask = (
        torch.ones(5000, 1, 2, 1),
        torch.tensor([True, False]).view(1, 1, 2, 1).expand(5000, 1, 2, 1),
    )
    model.train()(x=x, t=torch.tensor(0.5), mask=mask)
    hidden = net.x[:, 1, 1, 0] == -1
    assert 0.27 < hidden.float().mean() < 0.33
    assert torch.equal(net.x[:, 0, 1, 0] == 0, hidden) and net.x[:, :, 0].eq(1).all()
    model(x=x, t=torch.tensor(0.5), mask=mask, hide_known=torch.zeros(5000, dtype=torch.bool))
    assert net.x[:, 0].eq(1).all()
    model.eval()(x=x, t=torch.tensor(0.5), mask=mask)
    assert net.x[:, 0].eq(1).all()


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("around", [None, PredictionVelocityModel])
def test_guidance_hides_what_it_says_in_training_mode_too(scale, around):
    """Dropped labels would leave some samples without guidance, and nobody would know."""

    class Sees(nn.Module):
        def forward(self, x, t, label):
            self.modes = self.training
            hidden = (x[:, 1:] == -1).any(3, keepdim=True).any(2, keepdim=True)
            return 10.0 * label.view(-1, 1, 1, 1) + hidden + 0 * x[:, :1]

    network = Sees()
    wrapper = UNetWrapper(
        network, concat=("mask",), label_dropout=0.5, null_label=3, mask_dropout=0.5
    )
    model = wrapper if around is None else around(wrapper, CosineScheduler())
    guided = GuidedVelocityModel(model, scale, null={"label": 3}, hide_known=True).train()
    x, mask = torch.randn(64, 1, 2, 2), torch.rand(64, 1, 2, 2) < 0.5
    label = torch.ones(64, dtype=torch.long)
    got = guided(x=x, t=torch.tensor(0.5), label=label, mask=mask)
    null = 30.0 + (~mask).any(3, keepdim=True).any(2, keepdim=True).float()
    expected = (null + scale * (10.0 - null)).expand_as(x)
    assert_close(got, expected if around is None else torch.where(mask, expected, 0))
    assert wrapper.training and network.modes, "the network keeps its mode"


def test_an_error_inside_leaves_the_mode_as_it_was():
    model = UNetWrapper(Look(), label_dropout=0.5, null_label=3).train()
    with pytest.raises(TypeError, match=r"`label` was given"):
        GuidedVelocityModel(model, 2.0)(
            x=torch.zeros(2, 1, 1, 1), t=TIMES[0], label=torch.zeros(2, dtype=torch.long)
        )
    assert model.training


CORRELATION = 0.8  # of two pixels with variance 1


def velocity_given(m, t, mean, variance):
    """Of data N(mean, variance) on the straight path, at the state m."""
    gain = (t * variance - (1 - t)) / (t**2 * variance + (1 - t) ** 2)
    return mean + gain * (m - t * mean)


class Pixels(nn.Module):
    """The best network for two correlated pixels, the second missing, with the first shown or hidden."""

    def forward(self, x, t):
        y, m, channel = x[:, 0, 0, :1], x[:, 0, 0, 1:], x[:, 1, 0, :1]
        t = t.view(-1, 1)
        shown = velocity_given(m, t, CORRELATION * y, 1 - CORRELATION**2)
        v = torch.where(channel == -1, velocity_given(m, t, 0 * y, 1.0), shown)
        return torch.stack([9 + 0 * v, v], dim=-1).view(x[:, :1].shape)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_guidance_on_the_mask_extrapolates_from_the_missing_pixels_alone(scale):
    """From p(x^m) through p(x^m | y), of the same state."""
    model = UNetWrapper(Pixels(), concat=("mask",))
    guided = MaskedVelocityModel(GuidedVelocityModel(model, scale, hide_known=True))
    x, t = torch.randn(6, 1, 1, 2, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    mask = torch.tensor([False, True]).view(1, 1, 1, 2).expand(6, 1, 1, 2)
    got = guided(x=x, t=t, mask=mask)
    y, m = x[..., 0].flatten(), x[..., 1].flatten()
    null = velocity_given(m, t, 0.0, 1.0)
    conditional = velocity_given(m, t, CORRELATION * y, 1 - CORRELATION**2)
    assert_close(got[..., 1].flatten(), null + scale * (conditional - null))
    assert got[..., 0].eq(0).all()
    for solver in (UpstreamODESolver, ODESolver):
        result = solver(guided).sample(x_init=x, step_size=0.1, mask=mask)
        assert torch.equal(result[..., 0], x[..., 0]) and result.isfinite().all()


def test_what_dropout_teaches_is_the_velocity_of_the_missing_pixels_alone():
    """Least squares over what the network sees: with the known pixel hidden, and with it shown."""
    n, t = 200_000, 0.4
    y = torch.randn(n, dtype=torch.float64)
    m = CORRELATION * y + (1 - CORRELATION**2) ** 0.5 * torch.randn_like(y)
    x_1 = torch.stack([y, m], dim=-1).view(n, 1, 1, 2)
    mask = torch.tensor([False, True]).view(1, 1, 1, 2).expand(n, 1, 1, 2)
    sample = MaskedProbPath(CondOTProbPath()).sample(
        torch.randn_like(x_1), x_1, torch.full((n,), t, dtype=torch.float64), mask=mask
    )
    net = Look()
    UNetWrapper(net, concat=("mask",), mask_dropout=0.5).train()(
        x=sample.x_t, t=sample.t, mask=mask
    )
    target = sample.dx_t[..., 1].flatten()
    for hidden in (True, False):
        rows = (net.x[:, 1, 0, 0] == -1) == hidden
        seen = net.x[rows, 0, 0]
        solution = torch.linalg.lstsq(seen, target[rows, None], driver="gelsd").solution
        probe = torch.tensor([[0.0 if hidden else 0.7, -1.2]], dtype=torch.float64)
        mean, variance = (0.0, 1.0) if hidden else (CORRELATION * 0.7, 1 - CORRELATION**2)
        assert_close(
            (probe @ solution).item(), velocity_given(-1.2, t, mean, variance), rtol=0, atol=0.02
        )


def test_one_network_under_labels_and_masks():
    net = UNet(2, 1, channels=8, multipliers=(1, 2), attention=(), head_channels=8, num_classes=3)
    model = UNetWrapper(net, concat=("mask",), label_dropout=0.1, null_label=3, mask_dropout=0.1)
    nn.init.normal_(net.conv_out.weight)  # a new network answers 0
    both = GuidedVelocityModel(model.eval(), 2.0, null={"label": 3}, hide_known=True)
    x, t, label = torch.randn(2, 1, 8, 8), torch.tensor(0.5), torch.tensor([0, 2])
    mask = torch.rand(2, 1, 8, 8) < 0.5
    plain = model(x=x, t=t, mask=mask, label=label)
    null = model(x=x, t=t, mask=mask, hide_known=torch.ones(2, dtype=torch.bool))
    assert not torch.allclose(plain, null)
    assert_close(both(x=x, t=t, mask=mask, label=label), 2 * plain - null, rtol=1e-4, atol=1e-4)


class Mean(nn.Module):
    """The velocity to one point, which knows no classes; remembers what it was asked."""

    def __init__(self, point):
        super().__init__()
        self.point, self.asked = point, []

    def forward(self, x, t, label=None, mask=None):
        self.asked.append(label)
        return self.point - x


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("labelled", [False, True])
def test_autoguidance_moves_away_from_the_worse_model_under_the_same_conditions(scale, labelled):
    model, worse, t = Mixture() if labelled else Mean(1.0), Mean(0.3), torch.tensor(0.4)
    extras = {"label": LABEL} if labelled else {}
    got = GuidedVelocityModel(model, scale, against=worse)(x=X, t=t, **extras)
    good, bad = model(x=X, t=t, **extras), worse(x=X, t=t)
    assert_close(got, bad + scale * (good - bad))
    assert len(worse.asked) == 1 + (scale != 1)
    if labelled and scale != 1:
        assert torch.equal(worse.asked[0], LABEL)
        GuidedVelocityModel(model, 2.0, against=worse, null={"label": NULL})(x=X, t=t, label=LABEL)
        assert worse.asked[-1].eq(NULL).all()  # both at once


@pytest.mark.parametrize("inside", [False, True])
def test_autoguidance_holds_known_entries(inside):
    mask = torch.tensor([True, False]).expand(6, 2)
    models = (Mean(1.0), Mean(0.3))
    if inside:
        guided = GuidedVelocityModel(MaskedVelocityModel(models[0]), 2.0, against=models[1])
    else:
        guided = MaskedVelocityModel(GuidedVelocityModel(models[0], 2.0, against=models[1]))
    v = guided(x=X, t=torch.tensor(0.5), mask=mask)
    assert_close(v, torch.where(mask, 1.7 - X, 0))


@pytest.mark.parametrize("masked", [False, True])
def test_optimized_scale_is_the_nearest_multiple(masked):
    """v = v_c + (s - 1) (v_c - p) with p the projection of v_c on the other velocity."""

    class Two(nn.Module):
        null_label, velocities = NULL, torch.randn(2, 6, 1, 2, 3).double()

        def forward(self, x, t, label, mask=None):
            return self.velocities[(label == NULL).long(), torch.arange(len(x)) % 6]

    x, mask = torch.zeros(6, 1, 2, 3).double(), torch.rand(6, 1, 2, 3) < 0.7
    mask[:, :, 0, :2] = True
    extras = {"mask": mask} if masked else {}
    guided = GuidedVelocityModel(Two(), 3.0, optimized_scale=True)
    got = guided(x=x, t=torch.tensor(0.4), label=LABEL, **extras)
    for v, (c, u), m in zip(got, Two.velocities.transpose(0, 1), mask, strict=True):
        m = m if masked else torch.ones_like(m)
        s = torch.linalg.lstsq(u[m][:, None], c[m][:, None]).solution
        assert_close(v, s * u + 3 * (c - s * u))
    Two.velocities = torch.stack([Two.velocities[0], torch.zeros_like(x)])
    assert_close(guided(x=x, t=torch.tensor(0.4), label=LABEL), 3 * Two.velocities[0])
    nested = PredictionVelocityModel(GuidedVelocityModel(Two(), 2.0), CosineScheduler(), "x_1")
    assert nested is not None
    with pytest.raises(ValueError, match="`prediction` = 'x_1' is what a network predicts"):
        PredictionVelocityModel(guided, CosineScheduler(), "x_1")


@pytest.mark.parametrize(
    "t", [torch.tensor(0.1), torch.linspace(0, 1, 6), torch.tensor(0.2)], ids=str
)
def test_zero_init_waits(t):
    model = Mixture()
    plain = GuidedVelocityModel(model, 2.0)(x=X, t=t, label=LABEL)
    asked = len(model.batches)
    got = GuidedVelocityModel(model, 2.0, zero_init=0.2)(x=X, t=t, label=LABEL)
    assert_close(got, torch.where(t.reshape(-1, 1) < 0.2, 0, plain))
    assert len(model.batches) == asked + bool((t >= 0.2).any())


def test_bad_input(untyped):
    model = Mixture()
    for arguments in ({}, {"guidance_scale": 1.0, "weight": 0.0}):
        with pytest.raises(TypeError, match=r"give either `guidance_scale` .* or `weight`"):
            GuidedVelocityModel(model, **arguments)
    with pytest.raises(ValueError, match=r"`interval` must be two times, first < last"):
        GuidedVelocityModel(model, 2.0, interval=(0.5, 0.5))
    with pytest.raises(ValueError, match=r"`rescale` must lie in \[0, 1\]; got 1.5"):
        GuidedVelocityModel(model, 2.0, rescale=1.5)
    with pytest.raises(ValueError, match=r"`null` must say what stands for no condition"):
        GuidedVelocityModel(SmallUNet(), 2.0)
    with pytest.raises(ValueError, match=r"`zero_init` must be a time in \[0, 1\); got 1"):
        GuidedVelocityModel(model, 2.0, zero_init=1)
    with pytest.raises(ValueError, match=r"`against` must answer as `model` does.*Wrap both alike"):
        converted = PredictionVelocityModel(model, CosineScheduler(), "x_1")
        GuidedVelocityModel(converted, 2.0, against=model)
    other = PredictionVelocityModel(model, CosineScheduler(), "x_1")
    straight = PredictionVelocityModel(model, CondOTScheduler(), "x_1")
    with pytest.raises(ValueError, match=r"`against` must be the schedule of the model inside"):
        GuidedVelocityModel(straight, 2.0, against=other)
    GuidedVelocityModel(other, 2.0, against=other)  # the advice
    guided = GuidedVelocityModel(model, 2.0)
    with pytest.raises(TypeError, match=r"`label` is guided on and was not given"):
        guided(x=X, t=TIMES[0])
    with pytest.raises(
        ValueError,
        match=r"`label` must hold one entry a sample, \(6, ...\); got \(1,\)",
    ):
        guided(x=X, t=TIMES[0], label=LABEL[:1])
    with pytest.raises(ValueError, match=r"`mask_dropout` must lie in \[0, 1\); got 1"):
        UNetWrapper(Look(), concat=("mask",), mask_dropout=1.0)
    with pytest.raises(ValueError, match=r"`mask_dropout` needs a 'mask' in `concat`"):
        UNetWrapper(Look(), concat=("image",), mask_dropout=0.1)
    with pytest.raises(TypeError, match=r"`hide_known` needs a 'mask' in `concat`"):
        UNetWrapper(Look())(x=torch.ones(1, 1, 2, 2), t=TIMES[0], hide_known=torch.ones(1).bool())
