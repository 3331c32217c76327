"""Laws of the Brownian bridge path."""

import pytest
import torch
from flow_matching.path import CondOTProbPath

from fm_ext.path import BridgeProbPath, bridge


def ends(batch=200_000):
    return torch.full((batch, 1), -1.0), torch.full((batch, 1), 2.0)


@pytest.mark.parametrize("time", [0.1, 0.5, 0.8])
def test_moments_are_the_bridges(time):
    x_0, x_1 = ends()
    s = BridgeProbPath(0.7).sample(x_0, x_1, torch.full((len(x_0),), time))
    assert abs(s.x_t.mean().item() - (-1 + 3 * time)) < 5e-3
    assert abs(s.x_t.var().item() - 0.49 * time * (1 - time)) < 5e-3
    assert abs(s.dx_t.mean().item() - 3) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_velocity_is_the_derivative_at_the_same_noise(dtype):
    x_0, x_1 = torch.randn(2, 16, 3, 4, dtype=dtype)
    path, t = BridgeProbPath(0.7), 0.1 + 0.8 * torch.rand(16, dtype=torch.float64)
    at = lambda time: path.sample(x_0, x_1, time, generator=torch.Generator().manual_seed(0))
    h = 1e-6 if dtype == torch.float64 else 1e-2
    slope = (at(t + h).x_t - at(t - h).x_t) / (2 * h)
    tolerance = 1e-6 if dtype == torch.float64 else 0.02
    torch.testing.assert_close(at(t).dx_t, slope, rtol=tolerance, atol=tolerance)


def test_velocity_given_the_place_is_tongs_formula():
    x_0, x_1 = torch.randn(2, 8, 3, dtype=torch.float64)
    t = torch.rand(8, dtype=torch.float64)
    s = BridgeProbPath(0.5).sample(x_0, x_1, t)
    time = t[:, None]
    mean = (1 - time) * x_0 + time * x_1
    formula = (1 - 2 * time) / (2 * time * (1 - time)) * (s.x_t - mean) + x_1 - x_0
    torch.testing.assert_close(s.dx_t, formula)


def test_mean_square_of_the_velocity_grows_as_the_docstring_says():
    e = 1e-3
    t = torch.linspace(e, 1 - e, 400_001, dtype=torch.float64)
    extra = torch.trapezoid(((1 - 2 * t) / (2 * (t * (1 - t)).sqrt())).square(), t)
    formula = 0.5 * torch.log((1 - torch.tensor(e)) / e) - (1 - 2 * e)
    torch.testing.assert_close(extra.float(), formula, rtol=1e-3, atol=0)


def test_without_noise_it_is_the_straight_path_up_to_its_ends():
    x_0, x_1 = torch.randn(2, 5, 2)
    t = torch.linspace(0, 1, 5)
    s, plain = BridgeProbPath(0.0).sample(x_0, x_1, t), CondOTProbPath().sample(x_0, x_1, t)
    torch.testing.assert_close(s.x_t, plain.x_t)
    torch.testing.assert_close(s.dx_t, plain.dx_t)


def test_half_precision_and_dtypes():
    x_0, x_1 = torch.randn(2, 64, 3)
    t = 0.999 * torch.ones(64)
    at = lambda a, b: BridgeProbPath(0.3).sample(
        a, b, t, generator=torch.Generator().manual_seed(0)
    )
    half = at(x_0.bfloat16(), x_1.bfloat16())
    assert half.x_t.dtype == half.dx_t.dtype == torch.bfloat16
    exact = at(x_0.bfloat16().float(), x_1.bfloat16().float())
    torch.testing.assert_close(half.dx_t, exact.dx_t.bfloat16())


def test_times_are_read_in_the_precision_that_the_device_has(monkeypatch):
    """As on mps, which has no float64."""
    monkeypatch.setattr(bridge, "double", lambda t: t.float())
    monkeypatch.setattr(torch.Tensor, "double", None)
    x_0, x_1 = torch.randn(2, 8, 3)
    s = BridgeProbPath(0.3).sample(x_0, x_1, torch.full((8,), 0.3))
    assert s.x_t.isfinite().all() and s.dx_t.isfinite().all()


def test_bad_input(untyped):
    x_0, x_1 = torch.randn(2, 3, 2)
    for time in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"`t` must lie inside \(0, 1\).*clamp"):
            BridgeProbPath(0.1).sample(x_0, x_1, torch.tensor([0.5, time, 0.5]))
    with pytest.raises(ValueError, match="`sigma` must be finite and not negative"):
        BridgeProbPath(-1)
    with pytest.raises(ValueError, match="`x_0` and `x_1` must have the same shape"):
        BridgeProbPath(0.1).sample(x_0, x_1[:, :1], torch.rand(3))
