"""DDPM is a flow: diffusers' networks and schedules under flow_matching's solver, and the other way round."""

import pytest
import torch
from flow_matching.path.scheduler import CondOTScheduler
from flow_matching.solver import ODESolver

from fm_ext.models import PredictionVelocityModel, UNetWrapper
from fm_ext.path import AffineProbPath
from fm_ext.path.scheduler import BetaTableScheduler, ScheduleTransformedModel
from fm_ext.solver import ExponentialSolver

diffusers = pytest.importorskip("diffusers")

TABLES = {
    "linear": {"beta_start": 1e-4, "beta_end": 0.02},  # DDPM
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012},  # Stable Diffusion
    "squaredcos_cap_v2": {},  # improved DDPM
}
SPACINGS = ("leading", "trailing")
STEPS = 20


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return (
        diffusers.UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
        .double()
        .eval()
    )


def make_ddim(table, spacing, **options):
    ddim = diffusers.DDIMScheduler(
        beta_schedule=table,
        clip_sample=False,
        timestep_spacing=spacing,
        **TABLES[table],
        **{"set_alpha_to_one": False, **options},
    )
    ddim.set_timesteps(STEPS)
    return ddim


def loop(network, scheduler, x, **options):
    """The loop of diffusers' pipelines."""
    with torch.no_grad():
        for k in scheduler.timesteps:
            x = scheduler.step(network(x, k), k, x, **options).prev_sample
    return x


def as_velocity(unet, ddim):
    """A diffusers epsilon network and its table as a velocity model, and the times that its loop stands on."""
    scheduler = BetaTableScheduler(alphas_cumprod=ddim.alphas_cumprod.double())
    velocity = PredictionVelocityModel(
        UNetWrapper(unet, time_scale=scheduler.index), scheduler, prediction="epsilon"
    )
    indices = ddim.timesteps.double()
    if indices[-1] > 0:
        indices = torch.cat([indices, indices.new_zeros(1)])
    return velocity, scheduler, scheduler.time(indices)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("table", TABLES)
def test_ddim_is_the_exponential_step(unet, table, spacing):
    ddim = make_ddim(table, spacing)
    velocity, _, grid = as_velocity(unet, ddim)
    noise = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    sample = ExponentialSolver(velocity).sample(noise, None, grid)
    expected = loop(lambda x, k: unet(x, k).sample, ddim, noise)
    torch.testing.assert_close(sample, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("table", TABLES)
def test_ddim_with_fresh_noise_is_the_exponential_step_with_eta(unet, table, eta):
    """At 1 it is DDPM's own sampler."""
    ddim = make_ddim(table, "trailing")
    velocity, _, grid = as_velocity(unet, ddim)
    noise = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    ours, theirs = (torch.Generator().manual_seed(0) for _ in range(2))
    sample = ExponentialSolver(velocity).sample(noise, None, grid, eta=eta, generator=ours)
    expected = loop(lambda x, k: unet(x, k).sample, ddim, noise, eta=eta, generator=theirs)
    torch.testing.assert_close(sample, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("table", TABLES)
def test_ddim_is_eulers_method_on_the_straight_path(unet, table, spacing):
    ddim = make_ddim(table, spacing)
    velocity, scheduler, grid = as_velocity(unet, ddim)
    straight = ScheduleTransformedModel(velocity, scheduler, CondOTScheduler())
    noise = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    at = scheduler(grid)
    scale = at.alpha_t + at.sigma_t
    sample = ODESolver(straight).sample(
        noise / scale[0], step_size=None, method="euler", time_grid=at.alpha_t / scale
    )
    expected = loop(lambda x, k: unet(x, k).sample, ddim, noise)
    torch.testing.assert_close(sample * scale[-1], expected, rtol=1e-5, atol=1e-5)


def test_the_last_step_of_diffusers_default_is_the_predicted_data(unet):
    ddim = make_ddim("linear", "leading", set_alpha_to_one=True)
    velocity, _, grid = as_velocity(unet, ddim)
    noise = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    sample = ExponentialSolver(velocity).sample(noise, None, grid)
    with torch.no_grad():
        _, x_1 = velocity.ends(sample, grid[-1])
    expected = loop(lambda x, k: unet(x, k).sample, ddim, noise)
    torch.testing.assert_close(x_1, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4"])
def test_every_solver_looks_at_a_diffusers_network_in_single_precision(unet, method):
    ddim = make_ddim("linear", "leading")
    velocity, scheduler, _ = as_velocity(unet, ddim)
    straight = ScheduleTransformedModel(velocity, scheduler, CondOTScheduler())
    noise = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = ODESolver(straight).sample(noise, step_size=0.1, method=method)
    unet.float()
    sample = ODESolver(straight).sample(noise.float(), step_size=0.1, method=method)
    unet.double()
    torch.testing.assert_close(sample.double(), expected, rtol=1e-3, atol=1e-3)


def flow(x, t):
    """A velocity model on the straight path, for data N(0.7, 0.4^2)."""
    return 0.7 + (x - t * 0.7) * (0.16 * t - (1 - t)) / (0.16 * t**2 + (1 - t) ** 2)


def test_a_flow_in_diffusers_flow_matching_loop():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    noise = torch.randn(2, 3, 8, 8)
    # Its time runs from 1000 at the noise to 0, so the velocity has the other sign.
    sample = loop(lambda x, k: -flow(x, 1 - k / 1000), scheduler, noise)
    expected = ODESolver(flow).sample(noise, step_size=None, time_grid=1 - scheduler.sigmas)
    torch.testing.assert_close(sample, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("table", TABLES)
def test_a_flow_as_the_epsilon_network_of_ddim(table):
    ddim = make_ddim(table, "trailing")
    scheduler = BetaTableScheduler(alphas_cumprod=ddim.alphas_cumprod.double())
    path = AffineProbPath(scheduler)
    on_table = ScheduleTransformedModel(flow, CondOTScheduler(), scheduler)

    def epsilon(x, k):
        t = scheduler.time(k.double())
        return path.velocity_to_epsilon(on_table(x=x, t=t), x, t)

    noise = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    sample = loop(epsilon, ddim, noise)
    at = scheduler(scheduler.time(torch.cat([ddim.timesteps, torch.zeros(1)]).double()))
    scale = at.alpha_t + at.sigma_t
    expected = ODESolver(flow).sample(
        noise / scale[0], step_size=None, time_grid=at.alpha_t / scale
    )
    torch.testing.assert_close(sample, expected * scale[-1], rtol=1e-5, atol=1e-5)
