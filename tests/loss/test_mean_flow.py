"""Laws of the average velocity: its loss, its model and its solver, on Gaussian data, where it has a closed form."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from flow_matching.path.scheduler import CondOTScheduler, PolynomialConvexScheduler
from torch import nn
from torch.testing import assert_close

from fm_ext.loss import LogitNormalTime, TimePairs, UniformTime, mean_flow_loss
from fm_ext.models import MLP, MaskedVelocityModel, MeanFlowModel, UNet, UNetWrapper
from fm_ext.path import AffineProbPath, MaskedProbPath
from fm_ext.path.scheduler import CosineScheduler, ScheduleTransformedModel
from fm_ext.solver import MeanFlowSolver, ODESolver

MEAN, NULL = 0.7, 2
STDS = torch.tensor([0.4, 2.0, 1.3], dtype=torch.float64)  # of two classes, and of all
SCHEDULERS = [CondOTScheduler(), PolynomialConvexScheduler(2.0), CosineScheduler()]


class Gaussian(nn.Module):
    """The flow from N(0, 1) to N(mean, std^2), entry by entry, and its average velocity, guided or not.

    The deviation of x_t is s(t) = (alpha^2 std^2 + sigma^2)^(1/2), and the flow maps x_t to alpha_r mean +
    s(r) / s(t) (x_t - alpha_t mean). With mean 0 the guided velocity is that of the deviation s_c^w s_u^(1 - w).
    """

    null_label = NULL

    def __init__(self, scheduler=SCHEDULERS[0], mean=MEAN):
        super().__init__()
        self.scheduler, self.mean = scheduler, mean
        self.off = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.asked = []

    def at(self, t, label, scale, like):
        shape = (-1, *(1 for _ in like.shape[1:]))
        out = self.scheduler(t.view(shape))
        label, scale = label.view(shape), scale.view(shape)

        def log_deviation(std):
            variance = out.alpha_t**2 * std**2 + out.sigma_t**2
            slope = (out.alpha_t * out.d_alpha_t * std**2 + out.sigma_t * out.d_sigma_t) / variance
            return torch.stack([variance.log() / 2, slope])

        log, slope = scale * log_deviation(STDS[label]) + (1 - scale) * log_deviation(STDS[NULL])
        return out.alpha_t * self.mean, log, out.d_alpha_t * self.mean, slope

    def forward(self, x, t, r=None, label=None, guidance_scale=None):
        t = t.expand(len(x))
        r = t if r is None else r.expand(len(x))
        label = torch.zeros(len(x), dtype=torch.int64) if label is None else label
        scale = torch.ones_like(t) if guidance_scale is None else torch.as_tensor(guidance_scale)
        self.asked.append(len(x))
        mean, log, d_mean, slope = self.at(t, label, scale.expand(len(x)), x)
        end, log_r, _, _ = self.at(r, label, scale.expand(len(x)), x)
        velocity = d_mean + slope * (x - mean)
        span = (r - t).view(mean.shape)
        average = (end + (log_r - log).exp() * (x - mean) - x) / torch.where(span == 0, 1, span)
        return torch.where(span == 0, velocity, average) + self.off * x.cos()


def small_unet() -> UNet:
    """Of two times, two classes, and the scale of guidance."""
    kind = {"num_classes": 2, "second_time": True, "guidance_input": True}
    return UNet(1, channels=8, multipliers=(1, 2), head_channels=8, **kind)


def shake(net):
    """Fills what starts at zero, so that every layer has a say."""
    for parameter in net.parameters():
        if parameter.eq(0).all():
            nn.init.normal_(parameter, std=0.1)
    return net


def batch(scheduler, masked=False, n=64, mean=MEAN, std=STDS[0]):
    """A path sample of Gaussian data with second times; its conditional velocity."""
    path = AffineProbPath(scheduler)
    x_0, x_1 = torch.randn(2, n, 1, 2, 3, dtype=torch.float64)
    t, r = 0.05 + 0.9 * torch.rand(2, n, dtype=torch.float64)
    r[::4] = t[::4]
    mask = torch.rand(n, 1, 2, 3) < 0.6 if masked else None
    return MaskedProbPath(path).sample(x_0, mean + std * x_1, t, mask=mask), r


def exact(model, sample, **extras):
    """The sample with the marginal velocity in the place of the conditional one."""
    velocity = model(sample.x_t, sample.t, **extras).detach()
    return replace(sample, dx_t=velocity if sample.mask is None else velocity * sample.mask)


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_the_identity(scheduler):
    """u = v + (r - t) du/dt along the flow, for spans of either sign."""
    model, (sample, r) = Gaussian(scheduler), batch(scheduler)
    x, t, v = sample.x_t, sample.t, model(sample.x_t, sample.t)
    ask = lambda x, t: model(x, t, r)
    u, slope = torch.func.jvp(ask, (x, t), (v, torch.ones_like(t)))
    assert_close(u, v + (r - t).view(-1, 1, 1, 1) * slope)


@pytest.mark.parametrize("tangent", ["marginal", "conditional"])
@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_no_loss_at_the_truth(scheduler, masked, power, tangent):
    model, (sample, r) = Gaussian(scheduler), batch(scheduler, masked)
    wanted = {"power": power, "tangent": tangent, "reduction": "none"}
    if masked:  # known entries stay, and a network of its own says what it likes there
        model = MeanFlowModel(Noisy(model))
    losses = mean_flow_loss(model, exact(model, sample), r, **wanted)
    assert losses.shape == r.shape and losses.max() < 1e-20
    off = mean_flow_loss(model, replace(exact(model, sample), dx_t=sample.dx_t), r, **wanted)
    assert off.min() > 1e-5


class Noisy(nn.Module):
    """Rubbish at the known entries, which a network's loss does not see."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, t, r=None, mask=None):
        return self.model(x, t, r) if mask is None else self.model(x, t, r).where(mask, 3 * x + 5)


def test_known_entries_do_not_move_under_the_derivative():
    """Data whose mean is the first, known entry: what a bare network says there must not enter."""

    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Gaussian()

        def forward(self, x, t, r=None, mask=None):
            known = x[..., :1, :1]
            answer = self.inner(x - t.view(-1, 1, 1, 1) * known, t, r) + known
            return torch.where(mask, answer, 3 * x + 5)

    model, (sample, r) = Conditional(), batch(SCHEDULERS[0], masked=True)
    mask = sample.mask.clone()
    mask[..., 0, 0] = False
    moved = torch.where(
        mask, sample.x_t + sample.t.view(-1, 1, 1, 1) * sample.x_1[..., :1, :1], sample.x_1
    )
    velocity = torch.where(mask, model(moved, sample.t, mask=mask), 0).detach()
    sample = replace(sample, x_t=moved, dx_t=velocity, mask=mask)
    losses = mean_flow_loss(model, sample, r, mask=mask, power=0, reduction="none")
    assert losses.max() < 1e-20


@pytest.mark.parametrize("tangent", ["marginal", "conditional"])
def test_the_truth_is_stationary_under_the_conditional_velocity(tangent):
    """The noise of the path's velocity has mean 0 in the gradient; a wrong span would show."""
    model, (sample, r) = Gaussian(), batch(SCHEDULERS[0], n=20_000)
    losses = mean_flow_loss(model, sample, r, tangent=tangent, power=0, reduction="none")
    parts = torch.stack(
        [
            torch.autograd.grad(part.mean(), model.off, retain_graph=True)[0]
            for part in losses.split(200)
        ]
    )
    assert parts.mean().abs() < 4 * parts.std() / len(parts) ** 0.5
    model.off.data += 0.05
    losses = mean_flow_loss(model, sample, r, tangent=tangent, power=0)
    (moved,) = torch.autograd.grad(losses, model.off)
    assert moved > 10 * parts.std() / len(parts) ** 0.5


@pytest.mark.parametrize("tangent", ["marginal", "conditional"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_guided_no_loss_at_the_guided_truth(scale, tangent):
    model = Gaussian(mean=0.0)
    sample, r = batch(SCHEDULERS[0], mean=0.0)
    label = torch.arange(len(r)) % 2
    sample = exact(model, sample, label=label)
    # Dropped samples must see the velocity without condition, so there is no dropout here.
    guidance = {"guidance_scale": scale, "label": label, "dropout": 0.0, "reduction": "none"}
    assert mean_flow_loss(model, sample, r, tangent=tangent, **guidance).max() < 1e-20
    assert mean_flow_loss(model, sample, r, **guidance | {"label": 1 - label}).min() > 1e-7


def test_dropped_samples_learn_the_flow_without_condition():
    class Seen(Gaussian):
        def forward(self, x, t, r=None, label=None, guidance_scale=None):
            self.seen = label, guidance_scale
            return super().forward(x, t, r, label, guidance_scale)

    model, (sample, r) = Seen(mean=0.0), batch(SCHEDULERS[0], mean=0.0)
    label, scale = torch.arange(len(r)) % 2, torch.full_like(r, 3.0)
    null = torch.full_like(label, NULL)
    given = {"guidance_scale": scale, "label": label, "dropout": 0.25, "reduction": "none"}
    conditional, marginal = (exact(model, sample, label=y) for y in (label, null))
    losses = mean_flow_loss(model, conditional, r, **given)
    dropped = model.seen[0] == NULL
    assert dropped.sum() == 16 and model.seen[1].eq(torch.where(dropped, 1.0, 3.0)).all()
    assert losses[~dropped].max() < 1e-20 and losses[dropped].min() > 1e-7
    torch.manual_seed(1)
    losses = mean_flow_loss(model, marginal, r, **given)
    assert losses[model.seen[0] == NULL].max() < 1e-20


def test_rows_of_one_time_take_no_derivative():
    model, (sample, r) = Gaussian(), batch(SCHEDULERS[0])
    mean_flow_loss(model, sample, r)
    assert model.asked == [48, 48, 64]  # the tangent, the derivative, the loss
    mean_flow_loss(model, sample, sample.t)
    assert model.asked[3:] == [64]


def test_reductions_weights_and_power():
    model, (sample, r) = Gaussian(), batch(SCHEDULERS[0])
    plain = mean_flow_loss(model, sample, r, power=0, reduction="none")
    weight = torch.rand(len(r), dtype=torch.float64)
    want = weight * plain / (plain + 0.01) ** 0.75
    given = {"power": 0.75, "eps": 0.01, "weight": weight}
    assert_close(mean_flow_loss(model, sample, r, **given, reduction="none"), want)
    assert_close(mean_flow_loss(model, sample, r, **given), want.mean())
    assert_close(mean_flow_loss(model, sample, r, **given, reduction="sum"), want.sum())
    loss = mean_flow_loss(model, sample, r, **given)
    (got,) = torch.autograd.grad(loss, model.off)
    plain = mean_flow_loss(model, sample, r, power=0, reduction="none")
    factor = (weight / (plain + 0.01) ** 0.75).detach()
    (wanted,) = torch.autograd.grad((factor * plain).mean(), model.off)
    assert_close(got, wanted)  # the weights are held


@pytest.mark.parametrize("grid", [[0.0, 1.0], [0.0, 0.3, 1.0], [1.0, 0.8, 0.1]])
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_every_grid_of_jumps_is_the_flow(scheduler, grid):
    model = MeanFlowModel(Gaussian(scheduler))
    x = torch.randn(5, 1, 2, 3, dtype=torch.float64)
    solver = MeanFlowSolver(model)
    states = solver.sample(x, time_grid=grid, return_intermediates=True)
    assert solver.nfe == len(grid) - 1 and torch.equal(states[0], x)
    ends = scheduler(torch.tensor([grid[0], grid[-1]], dtype=torch.float64))
    first, last = (ends.alpha_t**2 * STDS[0] ** 2 + ends.sigma_t**2).sqrt()
    want = ends.alpha_t[1] * MEAN + last / first * (x - ends.alpha_t[0] * MEAN)
    assert_close(states[-1], want)
    if grid == [0.0, 1.0]:
        assert_close(solver.sample(x, 7, batch_size=2), want)
        assert solver.nfe == 3 * 7
        t = torch.rand(5, dtype=torch.float64)
        middle = model.jump(x, torch.zeros(()), t)
        assert_close(model.jump(middle, t, torch.ones(5, dtype=torch.float64)), want)


def test_other_solvers_see_the_velocity():
    network = Gaussian()
    model, x = MeanFlowModel(network), torch.randn(5, 1, 2, 3, dtype=torch.float64)
    t = torch.rand(5, dtype=torch.float64)
    assert torch.equal(model(x=x, t=t), network(x, t))
    jumped = MeanFlowSolver(model).sample(x)
    assert_close(ODESolver(model).sample(x, method="rk4", steps=40), jumped, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fills_hold_what_is_known(dtype):
    network = UNetWrapper(
        UNet(2, 1, channels=8, multipliers=(1, 2), head_channels=8, second_time=True), ("mask",)
    ).to(dtype)
    shake(network)
    x, mask = torch.randn(3, 1, 8, 8, dtype=dtype), torch.rand(3, 1, 8, 8) < 0.5
    model = MeanFlowModel(network)
    fills = MeanFlowSolver(model).sample(x, 2, mask=mask)
    assert fills.dtype == dtype and torch.equal(fills[~mask], x[~mask])
    assert fills[mask].isclose(x[mask]).float().mean() < 0.2
    jumped = model.jump(x, torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype), mask=mask)
    assert torch.equal(jumped[~mask], x[~mask])
    assert torch.equal(
        MaskedVelocityModel(model)(x, torch.ones(3), mask=mask), model(x, torch.ones(3), mask=mask)
    )


@pytest.mark.parametrize("kind", ["unet", "mlp"])
def test_networks_of_two_times(kind):
    if kind == "mlp":
        net, x = (
            MLP(2, 16, activation=nn.SiLU, second_time=True).double(),
            torch.randn(6, 2).double(),
        )
    else:
        net = small_unet()
        net, x = net.double(), torch.randn(6, 1, 8, 8).double()
        shake(net)
    model = MeanFlowModel(UNetWrapper(net))
    t, r = torch.rand(2, 6).double()
    velocity = model(x=x, t=t)
    assert torch.equal(velocity, net(x, t)) and torch.equal(velocity, net(x, t, r=t))
    assert not net(x, t, r=r).isclose(velocity).all()
    half = UNetWrapper(net, time_scale=lambda t: t / 2)(x, t, r=r)
    assert torch.equal(half, net(x, t / 2, r=r / 2))
    step = 1e-6
    ask = lambda x, t: model(x=x, t=t, r=r)
    _, slope = torch.func.jvp(ask, (x, t), (velocity, torch.ones_like(t)))
    ahead, behind = (ask(x + h * velocity, t + h) for h in (step, -step))
    assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-5)
    if kind == "unet":
        other = net(x, t, r=r, guidance_scale=2.0)
        assert torch.equal(other, net(x, t, r=r, guidance_scale=torch.full((6,), 2.0)))
        assert torch.equal(net(x, t, guidance_scale=1.0), velocity) and not torch.equal(
            other, net(x, t, r=r)
        )


def test_a_step_of_training_reaches_every_parameter_in_bfloat16():
    net = small_unet()
    shake(net)
    x, label = torch.randn(8, 1, 8, 8), torch.arange(8) % 2
    t, r = TimePairs()(8)
    sample = AffineProbPath(CondOTScheduler()).sample(torch.randn_like(x), x, t)
    model = Accelerator(mixed_precision="bf16", cpu=True).prepare(UNetWrapper(net))
    given = {"label": label, "guidance_scale": 2.0}
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x=x, t=t, **given).dtype == torch.float32
        loss = mean_flow_loss(model, sample, r, **given)
    loss.backward()
    assert loss.dtype == torch.float32 and all(p.grad.isfinite().all() for p in net.parameters())
    assert all(p.grad.abs().sum() > 0 for p in net.span.parameters())


@pytest.mark.parametrize("distinct", [0.0, 0.3, 1.0])
def test_pairs_of_times(distinct):
    pairs = TimePairs(times=UniformTime(), distinct=distinct)
    t, r = pairs(1001)
    assert (t <= r).all() and abs((t < r).sum() - 1001 * distinct) <= 1
    if distinct:
        assert abs(t[t < r].mean() - 1 / 3) < 0.05 and abs(r[t < r].mean() - 2 / 3) < 0.05
    if distinct < 1:
        assert abs(t[t == r].mean() - 1 / 2) < 0.05
    assert TimePairs().times == LogitNormalTime(mean=0.4) and TimePairs()(0)[1].shape == (0,)


def test_an_empty_batch():
    model, (sample, r) = Gaussian(), batch(SCHEDULERS[0], n=0)
    assert mean_flow_loss(model, sample, r) == 0


def test_bad_input(untyped):
    (sample, r), model, label = batch(SCHEDULERS[0], n=4), Gaussian(), torch.arange(4) % 2
    for given, message in [
        ({"tangent": "own"}, r"`tangent` must be 'marginal' or 'conditional'; got 'own'"),
        ({"dropout": 1.0}, r"`dropout` must lie in \[0, 1\); got 1.0"),
        ({"power": -1.0}, r"`power` must be at least 0 and `eps` positive; got -1.0 and 0.001"),
        ({"reduction": "most"}, r"`reduction` must be 'mean', 'sum' or 'none'; got 'most'"),
        ({"guidance_scale": 0.5, "label": label}, r"`guidance_scale` must be at least 1; got 0.5"),
        (
            {"guidance_scale": torch.ones(3), "label": label},
            r"one number or one a sample, \(4,\); got \(3,\)",
        ),
        ({"label": label[:3]}, r"`label` must hold one entry a sample, \(4, \.\.\.\); got \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            mean_flow_loss(model, sample, r, **given)
    with pytest.raises(TypeError, match=r"`label` is guided on and must be given"):
        mean_flow_loss(model, sample, r, guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"`null` must say what .* null=\{'label': 10\}"):
        mean_flow_loss(lambda **_: None, sample, r, guidance_scale=2.0, label=label)
    with pytest.raises(ValueError, match=r"`t` must be 0-d.*got \(3,\)"):
        mean_flow_loss(model, sample, r[:3])
    dropping = UNetWrapper(Gaussian(), label_dropout=0.1)
    with pytest.raises(
        ValueError, match=r"`model` must not drop.*got label_dropout=0.1.*dropout=0.1\)"
    ):
        mean_flow_loss(dropping, sample, r, label=label)
    mean_flow_loss(dropping.eval(), sample, r, label=label)
    with pytest.raises(ValueError, match=r"`distinct` must lie in \[0, 1\]; got 2"):
        TimePairs(distinct=2)


def test_models_that_cannot_jump(untyped):
    x, t = torch.randn(4, 1, 2, 3, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    with pytest.raises(
        TypeError,
        match=r"`model` must take a second time `r`; SmallNet takes no extras.*second_time",
    ):
        MeanFlowModel(SmallNet())
    one = UNet(1, channels=8, multipliers=(1,), head_channels=8)
    with pytest.raises(ValueError, match=r"`r` was given to a UNet .* UNet\(second_time=True\)"):
        MeanFlowModel(one)(x=torch.randn(4, 1, 8, 8), t=torch.rand(4))
    with pytest.raises(
        ValueError, match=r"`guidance_scale` was given to a UNet .* UNet\(guidance_input=True\)"
    ):
        one(torch.randn(4, 1, 8, 8), torch.rand(4), guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"`r` was given to an MLP .* MLP\(second_time=True\)"):
        MLP(2)(torch.randn(4, 2), torch.rand(4), torch.rand(4))
    schedules = {"original_scheduler": CondOTScheduler(), "new_scheduler": CosineScheduler()}
    with pytest.raises(ValueError, match=r"ScheduleTransformedModel\(MeanFlowModel\(network\)"):
        MeanFlowModel(ScheduleTransformedModel(Gaussian(), **schedules))
    outside = ScheduleTransformedModel(MeanFlowModel(Gaussian()), **schedules)  # the advice
    assert_close(outside(x=x, t=t), Gaussian(CosineScheduler())(x, t))
    with pytest.raises(
        TypeError, match=r"`model` must be a MeanFlowModel.*got ScheduleTransformedModel"
    ):
        MeanFlowSolver(outside)
    with pytest.raises(ValueError, match=r"`r` is given by the solver"):
        MeanFlowSolver(MeanFlowModel(Gaussian())).sample(x, r=t)
    with pytest.raises(
        TypeError, match=r"`step_size` is no keyword of the solver: did you mean `steps`"
    ):
        MeanFlowSolver(MeanFlowModel(Gaussian())).sample(x, step_size=0.1)


class SmallNet(nn.Module):
    def forward(self, x, t):
        return x
