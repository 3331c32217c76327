"""The exact field of a finite data set: everything about it has a closed form."""

import math
from functools import partial

import pytest
import torch
from flow_matching.path import AffineProbPath
from flow_matching.path.scheduler import (
    CondOTScheduler,
    LinearVPScheduler,
    PolynomialConvexScheduler,
    VPScheduler,
)
from flow_matching.solver import ODESolver as UpstreamODESolver
from torch.autograd.functional import jacobian
from torch.testing import assert_close

from fm_ext.metrics import energy_distance
from fm_ext.models import MLP, EmpiricalVelocityModel, GuidedVelocityModel, MaskedVelocityModel
from fm_ext.path.scheduler import CosineScheduler, ScheduleTransformedModel
from fm_ext.solver import InpaintingSolver, ODESolver

SCHEDULERS = [
    CondOTScheduler(),
    CosineScheduler(),
    LinearVPScheduler(),
    PolynomialConvexScheduler(n=2.0),
    VPScheduler(),
]
IDS = [type(s).__name__ for s in SCHEDULERS]
every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS, ids=IDS)
DATA = torch.tensor([[-1.5, 0.2], [0.3, 1.0], [0.4, -0.8], [1.9, 0.1]], dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 0.5], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 2, 2])


def field(scheduler=SCHEDULERS[0], bandwidth=0.3, **options):
    return EmpiricalVelocityModel(DATA, scheduler, bandwidth, **options)


def states(count=6, *shape):
    return torch.randn(count, *(shape or (2,)), dtype=torch.float64)


def draw(count, bandwidth, scheduler, t):
    """States and velocities of the path, from data drawn by WEIGHTS."""
    index = torch.multinomial(WEIGHTS, count, replacement=True)
    x_1 = DATA[index] + bandwidth * torch.randn(count, 2, dtype=torch.float64)
    x_0 = torch.randn(count, 2, dtype=torch.float64)
    return AffineProbPath(scheduler).sample(x_0=x_0, x_1=x_1, t=torch.full((count,), t).double())


@every_scheduler
@pytest.mark.parametrize("bandwidth", [0.0, 0.3])
@pytest.mark.parametrize("block", [1, 3, 4096])
def test_score_is_the_gradient_of_the_log_density(scheduler, bandwidth, block):
    model = field(scheduler, bandwidth, weights=WEIGHTS, labels=LABELS, block=block)
    x, t = states().requires_grad_(), torch.linspace(0.05, 0.9, 6, dtype=torch.float64)
    for label in (None, torch.tensor([0, 2, 3, 0, 2, 3])):
        log_density = model.log_density(x, t, label=label)
        (gradient,) = torch.autograd.grad(log_density.sum(), x)
        assert_close(gradient, model.score(x, t, label=label), rtol=1e-9, atol=1e-9)


def test_log_density_is_normalised():
    grid = torch.linspace(-8, 8, 201, dtype=torch.float64)
    x = torch.cartesian_prod(grid, grid)
    for t in (0.0, 0.6, 1.0):
        density = field(weights=WEIGHTS, labels=LABELS).log_density(
            x, torch.tensor(t), label=torch.tensor(2)
        )
        assert_close((density.exp().sum() * 0.08**2).item(), 1.0, rtol=1e-6, atol=0)


@every_scheduler
@pytest.mark.parametrize("bandwidth", [0.0, 0.3])
def test_velocity_and_density_obey_the_continuity_equation(scheduler, bandwidth):
    model = field(scheduler, bandwidth, weights=WEIGHTS)
    for t in (0.1, 0.5, 0.8):
        t = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        for x in states(4):
            x = x[None]
            (change,) = torch.autograd.grad(model.log_density(x, t).sum(), t)
            divergence = jacobian(partial(model, t=t), x)[0][:, 0].trace()
            transport = (model(x=x, t=t) * model.score(x, t)).sum()
            assert_close(
                change + divergence + transport, torch.zeros(()).double(), atol=1e-7, rtol=0
            )


@every_scheduler
@pytest.mark.parametrize("bandwidth", [0.0, 0.3])
def test_velocity_and_target_are_conditional_means_of_the_path(scheduler, bandwidth):
    # E[f(X_t) (dX_t - u(X_t))] = 0 for every f, which holds for nothing but u = E[dX_t | X_t].
    model = field(scheduler, bandwidth, weights=WEIGHTS)
    for t in (0.3, 0.8):
        s = draw(40_000, bandwidth, scheduler, t)
        for wanted, got in (
            (s.dx_t, model(x=s.x_t, t=s.t)),
            (s.x_1, model.target(s.x_t, s.t)),
        ):
            rest = wanted - got
            for f in (torch.ones_like(s.x_t), s.x_t, s.x_t.flip(1), (3 * s.x_t).sin()):
                values = f * rest
                z = values.mean(0) / (values.std(0) / len(values) ** 0.5 + 1e-12)
                assert z.abs().max() < 4.5


@every_scheduler
def test_at_the_source_the_data_are_their_mean(scheduler):
    if not math.isclose(float(scheduler(torch.zeros(()).double()).alpha_t), 0, abs_tol=1e-12):
        pytest.skip("the schedule starts with some of the data")
    x, t = states(), torch.zeros((), dtype=torch.float64)
    for bandwidth in (0.0, 0.3):
        model = field(scheduler, bandwidth, weights=WEIGHTS)
        mean = (WEIGHTS / WEIGHTS.sum()) @ DATA
        out = scheduler(t)
        assert_close(model.posterior_weights(x, t), (WEIGHTS / WEIGHTS.sum()).expand(6, 4))
        assert_close(model(x=x, t=t), out.d_alpha_t * mean + out.d_sigma_t * x)
        assert_close(model.target(x, t), mean.expand(6, 2))
        assert_close(model.score(x, t), -x)


@every_scheduler
def test_at_the_data_all_is_finite_with_a_bandwidth(scheduler):
    model, x = field(scheduler), states()
    one = torch.ones((), dtype=torch.float64)
    velocity = model(x=x, t=one)
    assert velocity.isfinite().all()
    near = [model(x=x, t=one - step) for step in (1e-9, 2e-9)]  # extrapolated to 0
    assert_close(velocity, 2 * near[0] - near[1], rtol=1e-4, atol=1e-4)
    assert_close(model.target(x, one), x, rtol=0, atol=1e-12)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_density(x, one).sum(), x)
    assert_close(model.score(x, one), gradient)


@every_scheduler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_data_points_are_the_nearest(scheduler, dtype):
    model, one = field(scheduler, 0.0).to(dtype), torch.ones((), dtype=dtype)
    x = states(20).to(dtype)
    nearest = torch.cdist(x, model.data).argmin(1)
    assert_close(model.target(x, one), model.data[nearest])
    assert_close(model.posterior_weights(x, one).argmax(1), nearest)
    twice = EmpiricalVelocityModel(torch.cat([DATA, DATA + 5, DATA]), scheduler)
    weights = twice.posterior_weights(DATA, torch.ones(()).double())
    expected = torch.eye(4, dtype=torch.float64) / 2
    assert_close(weights, torch.cat([expected, 0 * expected, expected], 1), rtol=0.01, atol=1e-9)


@every_scheduler
def test_at_the_data_points_have_no_velocity_and_the_advice_works(scheduler):
    model, x = field(scheduler, 0.0), states().float()
    for call in (lambda: model(x=x, t=torch.ones(())), lambda: model(x=x, t=torch.tensor(1.2))):
        with pytest.raises(ValueError, match="at `t` = 1 is infinite with `bandwidth=0`"):
            call()
    for call in (model.score, model.log_density):
        with pytest.raises(ValueError, match="there is no density at `t` = 1"):
            call(x, torch.ones(()))
    solver = ODESolver(model)
    for method in ("euler", "midpoint"):
        assert solver.sample(x, step_size=0.1, method=method).isfinite().all()
    grid = torch.tensor([0.0, 0.5, 0.99])
    assert solver.sample(x, step_size=None, method="dopri5", time_grid=grid).isfinite().all()
    solver = ODESolver(field(scheduler, 0.1))
    assert solver.sample(x, step_size=None, method="dopri5").isfinite().all()


def test_the_flow_ends_at_the_data_in_their_proportions():
    model = EmpiricalVelocityModel(DATA, CondOTScheduler(), weights=WEIGHTS)
    noise = torch.randn(2000, 2, dtype=torch.float64)
    end = UpstreamODESolver(model).sample(noise, step_size=0.02, method="euler")
    gaps = torch.cdist(end, DATA)
    assert gaps.amin(1).max() < 1e-3
    share = torch.bincount(gaps.argmin(1), minlength=4) / 2000
    expected = (WEIGHTS / WEIGHTS.sum()).float()
    assert ((share - expected).abs() < 5 * (expected * (1 - expected) / 2000).sqrt() + 0.01).all()


def test_likelihood_of_the_flow_is_the_density():
    model, x = field(bandwidth=0.5), states()
    _, log_likelihood = ODESolver(model).compute_likelihood(
        x_1=x,
        log_p0=lambda x: torch.distributions.Normal(0, 1).log_prob(x).sum(1),
        step_size=0.02,
        method="rk4",
        exact_divergence=True,
    )
    assert_close(log_likelihood, model.log_density(x, torch.ones(()).double()), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1, 1, 1), (3, 2, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_shape_of_time_and_dtype(shape, dtype):
    data = torch.randn(5, 2, 3, 3)
    model = EmpiricalVelocityModel(data, CosineScheduler(), 0.2)
    x, t = torch.randn(3, 2, 3, 3).to(dtype), torch.full(shape, 0.75, dtype=dtype)
    exact = model(x=x.double(), t=torch.tensor(0.75))
    for got in (model(x=x, t=t), UpstreamODESolver(model).velocity_model(x=x, t=t)):
        assert got.dtype == dtype
        assert_close(got, exact.to(dtype))
    assert model.target(x, t).dtype == model.score(x, t).dtype == dtype


def test_time_may_differ_from_entry_to_entry():
    model, x = field(weights=WEIGHTS), states().requires_grad_()
    t = torch.rand(6, 2, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(model.log_density(x, t).sum(), x)
    assert_close(model.score(x, t), gradient)
    s = torch.stack([t[:, 0], t[:, 0]], 1)
    assert_close(model(x=x, t=s), model(x=x, t=t[:, 0]))


@pytest.mark.parametrize("block", [1, 2, 3])
def test_blocks_change_neither_values_nor_derivatives(block):
    whole, parts = field(labels=LABELS), field(labels=LABELS, block=block)
    t, label = torch.tensor(0.6), torch.tensor([0, 2, 3, 0, 2, 3])
    results = []
    for model in (whole, parts):
        x = torch.ones(6, 2, dtype=torch.float64)
        x = (x * torch.arange(1, 7)[:, None] / 6).requires_grad_()
        v = model(x=x, t=t, label=label)
        (first,) = torch.autograd.grad(v.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        results.append((v.detach(), first.detach(), second, model.posterior_weights(x, t)))
    assert_close(results[0], results[1])


def test_forward_derivatives_agree_with_backward_ones():
    model, x, u = field(), states(), states()
    _, forward = torch.func.jvp(lambda x: model(x=x, t=torch.tensor(0.4)), (x,), (u,))
    x.requires_grad_()
    # the derivative is symmetric: the field is a gradient
    (backward,) = torch.autograd.grad((model(x=x, t=torch.tensor(0.4)) * u).sum(), x)
    assert_close(forward, backward)


def test_a_class_is_the_field_of_its_data():
    model = field(weights=WEIGHTS, labels=LABELS)
    x, t = states(), torch.tensor(0.7)
    for label in (0, 2):
        chosen = LABELS == label
        part = EmpiricalVelocityModel(DATA[chosen], CondOTScheduler(), 0.3, weights=WEIGHTS[chosen])
        for given in (torch.tensor(label), torch.full((6,), label)):
            assert_close(model(x=x, t=t, label=given), part(x=x, t=t))
            assert_close(model.log_density(x, t, label=given), part.log_density(x, t))
    assert model.null_label == 3
    assert_close(model(x=x, t=t, label=torch.tensor(3)), model(x=x, t=t))
    label = torch.tensor([0, 2, 0, 2, 0, 2])
    guided = GuidedVelocityModel(model, guidance_scale=2.0)(x=x, t=t, label=label)
    assert_close(guided, 2 * model(x=x, t=t, label=label) - model(x=x, t=t))


def test_on_another_schedule_it_is_the_field_of_that_schedule():
    cosine, straight = field(CosineScheduler()), field(CondOTScheduler())
    transformed = ScheduleTransformedModel(cosine, CosineScheduler(), CondOTScheduler())
    x = states()
    for t in (0.0, 0.4, 1.0):
        t = torch.tensor(t, dtype=torch.float64)
        assert_close(transformed(x=x, t=t), straight(x=x, t=t), rtol=1e-6, atol=1e-6)


def test_with_a_mask_the_flow_draws_from_the_posterior():
    model = field(weights=WEIGHTS)
    mask = torch.tensor([[False, True]])
    image = torch.tensor([[0.35, torch.nan]], dtype=torch.float64).expand(4000, 2)
    start = torch.where(mask, torch.randn_like(image), image)
    end = ODESolver(model).sample(start, step_size=0.02, method="midpoint", mask=mask)
    assert torch.equal(end[:, 0], image[:, 0])
    exact = model.sample_posterior(image, mask=mask)
    assert energy_distance(end, exact) < 0.004
    held = MaskedVelocityModel(model)(x=start, t=torch.tensor(0.5), mask=mask)
    assert_close(held, model(x=start, t=torch.tensor(0.5), mask=mask))
    assert_close(model.target(start, torch.tensor(0.5), mask=mask)[:, 0], image[:, 0])


@pytest.mark.parametrize("noise_std", [0.0, 0.4])
def test_posterior_draws_against_rejection(noise_std):
    model, y = field(weights=WEIGHTS), 0.35
    index = torch.multinomial(WEIGHTS, 1_000_000, replacement=True)
    x = DATA[index] + 0.3 * torch.randn(1_000_000, 2, dtype=torch.float64)
    if noise_std:
        accept = torch.rand(len(x)) < (-((x[:, 0] - y) ** 2) / (2 * noise_std**2)).exp()
    else:
        accept = (x[:, 0] - y).abs() < 0.005
    accepted = x[accept][:8000]
    image = torch.tensor([[y, torch.nan]], dtype=torch.float64)
    mask = torch.tensor([[False, True]])
    drawn = model.sample_posterior(image, mask=mask, fills=8000, noise_std=noise_std)[:, 0]
    if noise_std == 0:
        assert (drawn[:, 0] == y).all()
    assert energy_distance(drawn, accepted) < 0.003  # 0.4 for the prior
    share = torch.bincount(index[accept], minlength=4).double() / accept.sum()
    weights = model.inpainting_weights(image, mask=mask, noise_std=noise_std)[0]
    assert_close(weights, share, rtol=0, atol=0.02)


def test_posterior_draws_of_points_are_the_nearest_points(generator):
    model = field(bandwidth=0.0)
    image = DATA.masked_fill(torch.tensor([[False, True]]), torch.nan)
    mask = torch.tensor([[False, True]])
    assert_close(model.sample_posterior(image, mask=mask, generator=generator), DATA)
    fills = model.sample_posterior(image, mask=torch.ones(1, 2, dtype=torch.bool), fills=4000)
    assert fills.shape == (4000, 4, 2)
    share = (fills[:, 0, None] == DATA).all(-1).double().mean(0)
    assert_close(share, torch.full((4,), 0.25, dtype=torch.float64), rtol=0, atol=0.04)


def test_posterior_draws_with_noise_denoise_the_known_entries():
    model = EmpiricalVelocityModel(torch.zeros(1, 2), CondOTScheduler(), 2.0)
    image, mask = torch.tensor([[3.0, 0.0]]), torch.tensor([[False, True]])
    drawn = model.sample_posterior(image, mask=mask, fills=20_000, noise_std=1.0)[:, 0]
    # N(0, 4) seen with noise 1: mean 4/5 y, variance 4/5.
    assert_close(drawn.mean(0), torch.tensor([2.4, 0.0]), rtol=0, atol=0.06)
    assert_close(drawn.var(0), torch.tensor([0.8, 4.0]), rtol=0.06, atol=0)


def test_inpainting_solver_takes_it():
    model = field(bandwidth=0.4, weights=WEIGHTS)
    image = torch.tensor([[0.35, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[False, True]])
    fills = InpaintingSolver(model, CondOTScheduler()).sample(
        image, mask=mask, fills=2000, steps=100
    )
    exact = model.sample_posterior(image, mask=mask, fills=2000)
    prior = model.sample_posterior(image, mask=torch.ones_like(mask), fills=2000)
    assert energy_distance(fills[:, 0], exact[:, 0]) < 0.03
    assert energy_distance(prior[:, 0], exact[:, 0]) > 0.08


def test_marginal_and_conditional_losses_have_one_gradient():
    # grad E|v - u_t(X_t)|^2 = grad E|v - dX_t|^2: the difference of both is an average whose mean is 0.
    model, network = field(bandwidth=0.0, weights=WEIGHTS), MLP().double()
    s = draw(80_000, 0.0, CondOTScheduler(), 0.6)
    v = network(s.x_t, s.t)
    parameters = list(network.parameters())

    def gradient(target):
        loss = (v - target).square().sum(1)
        grads = torch.autograd.grad(loss.mean(), parameters, retain_graph=True)
        return torch.cat([g.flatten() for g in grads])

    marginal, conditional = gradient(model(x=s.x_t, t=s.t)), gradient(s.dx_t)
    assert (marginal - conditional).norm() < 0.06 * marginal.norm()
    wrong = gradient(s.dx_t + 0.2)
    assert (marginal - wrong).norm() > 0.1 * marginal.norm()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"scheduler": "condot"}, TypeError, "`scheduler` must be a flow_matching"),
        ({"data": torch.zeros(3, 2, dtype=torch.uint8)}, TypeError, "`data` must be floating"),
        ({"data": torch.zeros(3)}, ValueError, "`data` must be .count"),
        ({"data": torch.zeros(0, 2)}, ValueError, "`data` must be .count"),
        ({"data": torch.full((3, 2), torch.nan)}, ValueError, "`data` must be finite"),
        ({"bandwidth": -1.0}, ValueError, "`bandwidth` must be finite and at least 0"),
        ({"bandwidth": torch.inf}, ValueError, "`bandwidth` must be finite and at least 0"),
        ({"block": 0}, ValueError, "`block` must be at least 1"),
        ({"weights": torch.ones(2)}, ValueError, "`weights` must hold one positive number"),
        ({"weights": torch.tensor([0.0, 1, 1])}, ValueError, "`weights` must hold one positive"),
        ({"labels": torch.zeros(3)}, TypeError, "`labels` must be integers"),
        ({"labels": torch.tensor([-1, 0, 0])}, ValueError, "`labels` must hold one class"),
        ({"labels": torch.tensor([1, 0])}, ValueError, "`labels` must hold one class"),
    ],
)
def test_errors_of_construction(untyped, change, error, message):
    arguments = {"data": torch.zeros(3, 2), "scheduler": CondOTScheduler()} | change
    with pytest.raises(error, match=message):
        EmpiricalVelocityModel(**arguments)
    EmpiricalVelocityModel(torch.zeros(3)[:, None], CondOTScheduler())  # the advice for numbers


def test_errors_of_calls(untyped):
    model, t, x = field(labels=LABELS), torch.tensor(0.5), states()
    with pytest.raises(ValueError, match=r"`x` must be \(batch, 2\)"):
        model(x=states(4, 3), t=t)
    with pytest.raises(ValueError, match="`label` must be a class of the data, or 3 for all; got"):
        model(x=x, t=t, label=torch.full((6,), 1))
    with pytest.raises(ValueError, match=r"`label` must be \(6,\) or 0-d"):
        model(x=x, t=t, label=torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match="`label` was given to data without classes"):
        field()(x=x, t=t, label=torch.tensor(0))
    mask = torch.tensor([[True, False]])
    with pytest.raises(ValueError, match=r"`image` must be \(batch, 2\)"):
        model.sample_posterior(states(4, 3), mask=mask)
    with pytest.raises(ValueError, match="`noise_std` must be finite and at least 0"):
        model.sample_posterior(x, mask=mask, noise_std=-1.0)
    with pytest.raises(ValueError, match="`fills` must be at least 1"):
        model.sample_posterior(x, mask=mask, fills=0)
    with pytest.raises(TypeError, match="`mask` must be bool"):
        model(x=x, t=t, mask=mask.float())
