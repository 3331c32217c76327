"""Each schedule against its formula as the paper writes it, in float64 where nothing cancels."""

import math

import pytest
import torch
from flow_matching.path import scheduler as upstream
from flow_matching.path.scheduler import CondOTScheduler
from scipy.interpolate import PchipInterpolator
from torch.testing import assert_close

from fm_ext.path.scheduler import (
    BetaTableScheduler,
    CosineScheduler,
    EDMScheduler,
    IDDPMCosineScheduler,
    LinearVPScheduler,
    ShiftedScheduler,
    SigmoidScheduler,
    VEScheduler,
    VPScheduler,
)

T = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (CosineScheduler(), upstream.CosineScheduler()),
        (VPScheduler(), upstream.VPScheduler()),
        (VPScheduler(0.5, 7.0), upstream.VPScheduler(0.5, 7.0)),
        (LinearVPScheduler(), upstream.LinearVPScheduler()),
    ],
)
def test_agrees_with_upstream_away_from_the_ends(ours, theirs):
    assert_close(vars(ours(T)), vars(theirs(T)), rtol=1e-10, atol=1e-12)
    snr = theirs(T).alpha_t / theirs(T).sigma_t
    assert_close(ours.snr_inverse(snr), theirs.snr_inverse(snr), rtol=0, atol=1e-10)


@pytest.mark.parametrize("s", [0.008, 0.1])
def test_iddpm_cosine(s):
    phase = ((1 - T) + s) / (1 + s) * math.pi / 2
    want = torch.cos(phase) / math.cos(s / (1 + s) * math.pi / 2)
    out = IDDPMCosineScheduler(s)(T)
    assert_close(out.alpha_t, want, rtol=1e-13, atol=0)
    assert_close(out.sigma_t, (1 - want**2).sqrt(), rtol=1e-11, atol=0)
    assert IDDPMCosineScheduler(0.008).end_slope == pytest.approx(0.0194, abs=5e-5)


@pytest.mark.parametrize("start, end", [(-3.0, 3.0), (0.0, 6.0), (-8.0, 1.0)])
def test_sigmoid(start, end):
    low, high = torch.sigmoid(torch.tensor([start, end], dtype=torch.float64))
    want = (torch.sigmoid(start + T * (end - start)) - low) / (high - low)
    assert_close(SigmoidScheduler(start, end)(T).alpha_t, want, rtol=1e-11, atol=0)


def test_edm_noise_levels():
    scheduler, steps = EDMScheduler(), torch.arange(18, dtype=torch.float64)
    root = 80 ** (1 / 7) + steps / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))
    assert_close(scheduler.noise_level(steps / 17), root**7)
    out = scheduler(steps / 17)
    assert_close(out.sigma_t / out.alpha_t, root**7)


def test_exploding_noise_levels_are_geometric():
    noise = VEScheduler(0.01, 50.0).noise_level(torch.linspace(0, 1, 11, dtype=torch.float64))
    assert_close(noise[1:] / noise[:-1], torch.full((10,), (0.01 / 50) ** 0.1, dtype=torch.float64))
    assert noise[0].item() == pytest.approx(50) and noise[-1].item() == pytest.approx(0.01)


@pytest.mark.parametrize("shift", [0.25, 1.0, 3.0])
def test_shift_divides_the_snr_of_the_linear_path(shift):
    out = ShiftedScheduler(CondOTScheduler(), shift)(T)
    assert_close(out.alpha_t / out.sigma_t, T / (1 - T) / shift)
    noise = 1 - T  # the papers' time
    assert_close(out.sigma_t, shift * noise / (1 + (shift - 1) * noise))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_table_is_met_at_its_knots(dtype):
    products = torch.cumprod(1 - BETAS, 0)
    k = torch.arange(1000, dtype=dtype)
    for scheduler in (BetaTableScheduler(BETAS), BetaTableScheduler(alphas_cumprod=products)):
        out = scheduler(scheduler.time(k))
        tolerance = (
            {"rtol": 5e-13, "atol": 0} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 0}
        )
        assert_close(out.alpha_t, products.sqrt().to(dtype), **tolerance)
        assert_close(out.sigma_t, (1 - products).sqrt().to(dtype), **tolerance)
        assert_close(
            scheduler.index(scheduler.time(k)), k, rtol=0, atol=1e3 * torch.finfo(dtype).eps
        )
    assert scheduler.time(k)[[0, -1]].tolist() == [1.0, 0.0]


def test_table_is_interpolated_monotonely_in_log_snr():
    scheduler = BetaTableScheduler(BETAS[::50])
    products = torch.cumprod(1 - BETAS[::50], 0).flip(0)
    log_snr = (products / (1 - products)).log() / 2
    interpolant = PchipInterpolator(torch.linspace(0, 1, 20).double().numpy(), log_snr.numpy())
    out = scheduler(T)
    assert_close((out.alpha_t / out.sigma_t).log(), torch.from_numpy(interpolant(T.numpy())))


def test_a_table_with_a_jump_stays_monotone():
    products = torch.tensor([0.999, 0.998, 0.3, 0.299, 0.01, 0.0099], dtype=torch.float64)
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)
    scheduler = BetaTableScheduler(alphas_cumprod=products)
    out = scheduler(t)
    assert bool((out.alpha_t.diff() > 0).all()) and bool((out.d_alpha_t >= 0).all())
    assert_close(scheduler.snr_inverse(out.alpha_t / out.sigma_t), t, rtol=0, atol=1e-13)


def test_zero_terminal_snr_is_the_affine_map_of_its_paper():
    alpha = torch.cumprod(1 - BETAS, 0).sqrt()
    want = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    scheduler = BetaTableScheduler(BETAS, zero_terminal_snr=True)
    k = torch.arange(1000, dtype=torch.float64)
    out = scheduler(scheduler.time(k))
    assert_close(out.alpha_t, want, rtol=1e-11, atol=1e-15)
    assert out.alpha_t[-1] == 0 and out.sigma_t[-1] == 1
    # A table that was rescaled before comes out the same at its knots.
    again = BetaTableScheduler(alphas_cumprod=want**2)
    assert_close(again(again.time(k)).alpha_t, want, rtol=1e-11, atol=1e-15)
    t = torch.linspace(0, 2e-3, 50, dtype=torch.float64)
    for table in (scheduler, again):
        assert bool((table(t).alpha_t.diff() > 0).all()) and bool((table(t).d_alpha_t > 0).all())


def test_what_the_tables_of_the_field_leave_at_the_source():
    stable_diffusion = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()
    zero = torch.zeros(())
    assert BetaTableScheduler(BETAS)(zero).alpha_t.item() == pytest.approx(0.0064, abs=5e-5)
    assert BetaTableScheduler(stable_diffusion)(zero).alpha_t.item() == pytest.approx(
        0.068, abs=5e-4
    )
    assert VPScheduler()(zero).alpha_t.item() == pytest.approx(0.0066, abs=5e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: IDDPMCosineScheduler(0.0), r"`s` must be positive; got 0.0"),
        (lambda: VPScheduler(20.0, 0.1), r"0 < beta_min <= beta_max; got 20.0 and 0.1"),
        (lambda: VPScheduler(0.0, 1.0), r"0 < beta_min"),
        (lambda: SigmoidScheduler(3.0, -3.0), r"start < end <= 40; got 3.0 and -3.0"),
        (lambda: EDMScheduler(sigma_min=0.0), r"0 < sigma_min < sigma_max; got 0.0 and 80.0"),
        (lambda: EDMScheduler(rho=0.0), r"`rho` must be positive and finite; got 0.0"),
        (lambda: VEScheduler(2.0, 1.0), r"0 < sigma_min < sigma_max; got 2.0 and 1.0"),
        (lambda: BetaTableScheduler(), r"exactly one of `betas` and `alphas_cumprod`"),
        (lambda: BetaTableScheduler([0.1, 1.0]), r"`betas` must lie in \(0, 1\); got 0.1 to 1.0"),
        (lambda: BetaTableScheduler([0.1]), r"at least 2 steps; got 1"),
        (
            lambda: BetaTableScheduler(alphas_cumprod=[0.1, 0.5]),
            r"`alphas_cumprod` must fall strictly.*got 0.1 ... 0.5",
        ),
    ],
)
def test_impossible_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
