"""The laws of time samplers: the distribution, the strata, the generator."""

import pytest
import torch
from scipy import stats

from fm_ext.loss import LogitNormalTime, PowerTime, ShiftedTime, UniformTime
from fm_ext.solver import shifted_grid

LAWS = {
    "uniform": (UniformTime, {}, stats.uniform.cdf),
    "logit_normal": (
        LogitNormalTime,
        {"mean": 0.5, "std": 0.8},
        lambda t: stats.norm.cdf((torch.tensor(t).logit().numpy() - 0.5) / 0.8),
    ),
    "power_data": (PowerTime, {"power": 2.0}, lambda t: t**3),
    "power_source": (PowerTime, {"power": 0.5, "towards": "source"}, lambda t: 1 - (1 - t) ** 1.5),
    "power_falling": (PowerTime, {"power": -0.5}, lambda t: t**0.5),
    "shifted": (ShiftedTime, {"shift": 3.0}, lambda t: 3 * t / (1 + 2 * t)),
    "shifted_power": (
        ShiftedTime,
        {"shift": 0.5, "times": PowerTime(power=1.0)},
        lambda t: (0.5 * t / (1 - 0.5 * t)) ** 2,
    ),
}
EACH = pytest.mark.parametrize("law", LAWS)
BOTH = pytest.mark.parametrize("stratified", [False, True])


@EACH
@BOTH
def test_the_times_have_the_distribution(law, stratified, generator):
    sampler, arguments, cdf = LAWS[law]
    times = sampler(**arguments, stratified=stratified)(5000, generator=generator)
    assert times.dtype == torch.float32
    assert 0 <= times.min() <= times.max() <= 1
    assert stats.kstest(times.double().numpy(), cdf).pvalue > 1e-3


@EACH
def test_one_time_falls_into_each_stratum(law, generator):
    sampler, arguments, cdf = LAWS[law]
    times = sampler(**arguments)(64, generator=generator).double()
    share = torch.as_tensor(cdf(times.numpy())) * 64
    torch.testing.assert_close(
        share.sort().values, torch.arange(64) + 0.5, atol=0.51, rtol=0, check_dtype=False
    )
    assert not torch.equal(share.sort().values, share)  # the strata are not the order of the batch


@EACH
def test_each_place_of_a_stratified_batch_has_the_distribution(law, generator):
    sampler, arguments, cdf = LAWS[law]
    times = torch.stack([sampler(**arguments)(4, generator=generator) for _ in range(2000)])
    for place in times.double().T:
        assert stats.kstest(place.numpy(), cdf).pvalue > 1e-3


def test_strata_take_the_variance_of_time_out_of_a_smooth_mean(generator):
    draws = {
        kind: torch.stack(
            [
                UniformTime(stratified=kind)(64, generator=generator).square().mean()
                for _ in range(400)
            ]
        ).double()
        for kind in (False, True)
    }
    # E[t^4] - E[t^2]^2 = 4/45 a time; with strata (f')^2 / 12 n^2 a time, 1/9 n^2 on average.
    assert draws[False].var() == pytest.approx(4 / 45 / 64, rel=0.3)
    assert draws[True].var() == pytest.approx(1 / 9 / 64**3, rel=0.3)


@EACH
def test_the_ends_are_the_ends(law):
    sampler, arguments, _ = LAWS[law]
    ends = sampler(**arguments).quantile(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0]), atol=0, rtol=0)


@BOTH
def test_the_generator_decides_and_the_global_one_is_left_alone(stratified):
    before = torch.get_rng_state()
    a, b = (
        UniformTime(stratified=stratified)(8, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_empty_batch_has_no_times():
    assert UniformTime()(0).shape == (0,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniformTime()(-1), r"`batch` must be at least 0; got -1"),
        (lambda: LogitNormalTime(std=0.0), r"`std` must be positive and finite; got 0.0"),
        (lambda: LogitNormalTime(mean=float("nan")), r"`mean` must be finite; got nan"),
        (lambda: ShiftedTime(shift=0.0), r"`shift` must be positive and finite; got 0.0"),
        (lambda: PowerTime(power=-1.0), r"`power` must be above -1 and finite; got -1.0"),
        (lambda: PowerTime(power=1.0, towards="noise"), r"`towards` must be 'data' or 'source'"),
    ],
)
def test_what_is_out_of_range_is_refused(make, message, untyped):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_generator_may_live_elsewhere():
    times = UniformTime()(4, device="meta", generator=torch.Generator().manual_seed(0))
    assert times.device.type == "meta"


def test_shifted_times_and_shifted_steps_are_one_map():
    quantiles = ShiftedTime(shift=3.0).quantile(torch.linspace(0, 1, 9).double())
    torch.testing.assert_close(quantiles, shifted_grid(8, shift=3.0))
