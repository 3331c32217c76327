"""Laws of every scheduler: ours, and upstream's where they hold."""

import copy
import math
import pickle

import pytest
import torch
from flow_matching.path import GeodesicProbPath, MixtureDiscreteProbPath
from flow_matching.path.scheduler import (
    CondOTScheduler,
    ConvexScheduler,
    PolynomialConvexScheduler,
    Scheduler,
)
from flow_matching.utils.manifolds import FlatTorus
from torch.func import jvp, vmap
from torch.testing import assert_close

from fm_ext.path.scheduler import (
    ShiftedConvexScheduler,
    ShiftedScheduler,
    VariancePreservingScheduler,
    VPScheduler,
)
from fm_ext.path.scheduler.ends import end_slope, same_schedule, time_at

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FIELDS = ("alpha_t", "sigma_t", "d_alpha_t", "d_sigma_t")


def interior(dtype=torch.float64):
    """Random times, and times within a few roundings of both ends."""
    powers = 2.0 ** -torch.arange(2, 24, dtype=torch.float64)
    t = torch.cat([torch.rand(200, dtype=torch.float64), powers, 1 - powers]).to(dtype)
    return t[(t > 0) & (t < 1)]


def test_derivatives_are_those_of_the_values(case, make):
    scheduler, t = make(case), interior()
    out = scheduler(t)
    for value, slope in (("alpha_t", "d_alpha_t"), ("sigma_t", "d_sigma_t")):
        one = torch.ones_like(t)
        _, want = jvp(lambda t, value=value: getattr(scheduler(t), value), (t,), (one,))
        # Upstream's own values cancel near t = 1, and with them the derivative of the values.
        rtol = 1e-9 if case.startswith(("upstream", "shifted_up")) else 1e-12
        assert_close(getattr(out, slope), want, rtol=rtol, atol=1e-12)


def test_derivatives_at_the_ends(our_case, make):
    scheduler, t = make(our_case), torch.tensor([0.0, 1.0], dtype=torch.float64)
    out = scheduler(t)
    for value, slope in (("alpha_t", "d_alpha_t"), ("sigma_t", "d_sigma_t")):
        one = torch.ones_like(t)
        _, want = jvp(lambda t, value=value: getattr(scheduler(t), value), (t,), (one,))
        assert_close(getattr(out, slope), want, rtol=1e-12, atol=1e-12)
    inner = t + torch.tensor([2.0**-40, -(2.0**-40)], dtype=torch.float64)
    assert_close(out.d_alpha_t, scheduler(inner).d_alpha_t, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_noise_end_is_exact(noise_case, make, dtype):
    out = make(noise_case)(torch.tensor(0.0, dtype=dtype))
    assert out.alpha_t.item() == 0 and out.sigma_t.item() == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_data_end_is_exact(data_case, make, dtype):
    out = make(data_case)(torch.tensor(1.0, dtype=dtype))
    assert out.alpha_t.item() == 1 and out.sigma_t.item() == 0


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1), (2, 3, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shape_and_dtype_of_the_time(our_case, make, shape, dtype):
    scheduler, t = make(our_case), torch.rand(shape, dtype=dtype)
    out = scheduler(t)
    for name in FIELDS:
        assert getattr(out, name).shape == shape and getattr(out, name).dtype == dtype
    time = scheduler.snr_inverse(torch.rand(shape, dtype=dtype))
    assert time.shape == shape and time.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_value_loses_digits_near_the_ends(our_case, make, dtype):
    scheduler, t = make(our_case), interior(dtype)
    want, got = scheduler(t.double()), scheduler(t)
    rtol = 3e-6 if dtype == torch.float32 else 1.01 * torch.finfo(dtype).eps
    atol = 0.0 if dtype != torch.float16 else torch.finfo(dtype).smallest_normal
    for name in FIELDS:
        assert_close(getattr(got, name).double(), getattr(want, name), rtol=rtol, atol=atol)


def test_snr_grows_from_source_to_data(case, make):
    out = make(case)(interior().sort().values.unique())
    snr = out.alpha_t / out.sigma_t
    assert bool((snr.diff() > 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_snr_inverse_is_an_inverse_up_to_the_ends(our_case, make, dtype):
    scheduler, t = make(our_case), interior(dtype)
    out = scheduler(t)
    time = scheduler.snr_inverse(out.alpha_t / out.sigma_t)
    assert_close(time, t, rtol=0, atol=12 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_snr_inverse_at_zero_and_infinity(our_case, make, dtype):
    time = make(our_case).snr_inverse(torch.tensor([0.0, math.inf], dtype=dtype))
    assert time.tolist() == [0.0, 1.0]


def test_snr_inverse_is_monotone_and_stays_in_the_interval(our_case, make):
    snr = torch.logspace(-12, 12, 5000, dtype=torch.float64)
    time = make(our_case).snr_inverse(snr)
    assert bool((time.diff() >= -1e-14).all()) and 0 <= time.min() and time.max() <= 1


def test_outside_the_interval_the_nearer_end_is_held(our_case, make):
    scheduler = make(our_case)
    t = torch.tensor([-2.6, -1e-3, 1 + 1e-7, 1.11, 3.14], dtype=torch.float64)
    out, ends = scheduler(t), scheduler((t > 0.5).to(t.dtype))
    assert torch.equal(out.alpha_t, ends.alpha_t) and torch.equal(out.sigma_t, ends.sigma_t)
    assert not out.d_alpha_t.any() and not out.d_sigma_t.any()


def test_nan_stays_nan(our_case, make):
    out = make(our_case)(torch.tensor([math.nan, 0.5]))
    for name in FIELDS:
        assert getattr(out, name).isnan().tolist() == [True, False]


def test_convex_or_variance_preserving(our_case, make):
    scheduler, t = make(our_case), interior()
    out = scheduler(t)
    if isinstance(scheduler, ConvexScheduler):
        assert_close(out.alpha_t + out.sigma_t, torch.ones_like(t), rtol=0, atol=2e-16)
        assert torch.equal(out.d_alpha_t, -out.d_sigma_t)
        error = (scheduler.kappa_inverse(out.alpha_t) - t).abs()
        assert bool((error <= 1e-15 * (1 + 1 / out.d_alpha_t)).all())  # kappa is rounded near 1
    else:
        assert_close(out.alpha_t**2 + out.sigma_t**2, torch.ones_like(t), rtol=0, atol=3e-15)
    assert isinstance(scheduler, Scheduler)


def test_works_inside_vmap_and_jvp(our_case, make):
    scheduler, t = make(our_case), interior()
    both = lambda t: jvp(lambda t: scheduler(t).alpha_t, (t,), (torch.ones_like(t),))
    value, slope = vmap(both)(t)
    assert_close(value, scheduler(t).alpha_t, rtol=1e-12, atol=1e-15)
    assert_close(slope, scheduler(t).d_alpha_t, rtol=1e-12, atol=1e-12)
    out = scheduler(t)
    snr = out.alpha_t / out.sigma_t
    assert_close(vmap(scheduler.snr_inverse)(snr), t, rtol=0, atol=3e-15)


def test_compiles_without_a_break(our_case, make, untyped):
    scheduler, t = make(our_case), torch.rand(5)
    torch.compiler.reset()
    compiled = torch.compile(lambda t: scheduler(t).d_sigma_t, backend="eager", fullgraph=True)
    assert torch.equal(compiled(t), scheduler(t).d_sigma_t)


def test_equality_copies_and_pickles(our_case, make):
    scheduler = make(our_case)
    t = torch.rand(7)
    for twin in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert type(twin) is type(scheduler)
        assert torch.equal(twin(t).alpha_t, scheduler(t).alpha_t)
    assert hash(scheduler) == hash(copy.copy(scheduler)) and scheduler == copy.copy(scheduler)


def test_integer_times_are_refused(our_case, make, untyped):
    with pytest.raises(TypeError, match=r"`t`.*floating point.*int64.*`t.float\(\)`"):
        make(our_case)(torch.tensor([0, 1]))


def test_geodesic_and_discrete_paths_take_the_convex_ones(our_case, make):
    scheduler = make(our_case)
    if not isinstance(scheduler, ConvexScheduler):
        with pytest.raises(AssertionError):
            MixtureDiscreteProbPath(scheduler)
        return
    t = torch.rand(5, dtype=torch.float64)
    x_0, x_1 = torch.rand(5, 2, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)
    sample = GeodesicProbPath(scheduler, FlatTorus()).sample(x_0, x_1, t)
    assert_close(sample.dx_t, FlatTorus().logmap(x_0, x_1) * scheduler(t).d_alpha_t[:, None])
    assert bool(MixtureDiscreteProbPath(scheduler).sample(x_0, x_1, t).x_t.isfinite().all())


def test_time_at_repairs_the_inverse_at_both_ends(case, make):
    alpha = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert time_at(make(case), alpha, 1 - alpha).tolist() == [0.0, 1.0]
    t = interior()
    out = make(case)(t)
    # Upstream's VP loses digits of the inverse near t = 1.
    atol = 1e-8 if "upstream" in case else 5e-14
    assert_close(time_at(make(case), out.alpha_t, out.sigma_t), t, rtol=0, atol=atol)


def test_end_slope_is_the_slope_of_alpha_where_sigma_has_none(case, make):
    scheduler = make(case)
    end = scheduler(torch.tensor(1.0, dtype=torch.float64))
    singular = bool(end.d_sigma_t.isinf())
    want = end.d_alpha_t if singular else -end.sigma_t * end.d_sigma_t
    assert_close(end_slope(scheduler), want, rtol=1e-9, atol=1e-9)
    if isinstance(scheduler, VariancePreservingScheduler):
        assert_close(scheduler.end_slope, want.item() if singular else 0.0)


def test_copies_after_use_on_two_devices(our_case, make):
    """No copy of a constant travels: a reader may lack the device that the writer used."""
    scheduler, fresh, t = make(our_case), make(our_case), torch.rand(7)
    for device in ("cpu", "meta"):
        scheduler(t.to(device))
    for twin in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert twin == scheduler == fresh and hash(twin) == hash(scheduler) == hash(fresh)
        assert torch.equal(twin(t).alpha_t, scheduler(t).alpha_t)
        assert b"meta" not in pickle.dumps(scheduler)


def test_built_and_used_in_any_mode(our_case, make):
    """Constants are neither on a default device nor inference tensors, which autograd refuses."""
    t = torch.rand(7, dtype=torch.float64, requires_grad=True)
    expected = make(our_case)(t).alpha_t
    with torch.device("meta"):
        built_on_meta = make(our_case)
    with torch.inference_mode():
        scheduler = make(our_case)
        scheduler(torch.rand(3))
    for twin in (built_on_meta, scheduler):
        value = twin(t).alpha_t
        assert torch.equal(value, expected)
        torch.autograd.grad(value.sum(), t)


SHIFTED = [ShiftedScheduler, ShiftedConvexScheduler]


@pytest.mark.parametrize("kind", SHIFTED)
def test_equal_shifts_around_upstreams_schedulers(kind):
    make = lambda n=2.0, shift=3.0: kind(PolynomialConvexScheduler(n), shift)
    assert make() == make() and hash(make()) == hash(make())
    assert len({make(), make()}) == 1 and type(make()) is kind
    assert make() != make(n=3.0) and make() != make(shift=2.0)
    assert make() != kind(CondOTScheduler(), 3.0) and kind(make(), 2.0) == kind(make(), 2.0)


def test_the_two_kinds_of_shift_differ_in_class_only():
    t = torch.rand(9, dtype=torch.float64)
    plain, convex = (kind(CondOTScheduler(), 3.0) for kind in SHIFTED)
    assert plain != convex and same_schedule(plain, convex)
    assert torch.equal(plain(t).alpha_t, convex(t).alpha_t)
    assert isinstance(convex, ConvexScheduler) and not isinstance(plain, ConvexScheduler)


def test_same_schedule(case, make):
    assert same_schedule(make(case), make(case))
    others = {"cosine": "upstream_cosine", "vp": "upstream_vp", "linear_vp": "upstream_linear_vp"}
    if case in others:
        assert same_schedule(make(case), make(others[case]))
    assert same_schedule(make(case), CondOTScheduler()) == (case == "cond_ot")


def test_shift_of_what_is_no_scheduler(untyped):
    for kind in SHIFTED:
        with pytest.raises(TypeError, match=r"`scheduler` must be a .*Scheduler; got str"):
            kind("cond_ot", 3.0)
        with pytest.raises(ValueError, match="`shift` must be positive and finite; got 0"):
            kind(CondOTScheduler(), 0.0)
    with pytest.raises(TypeError, match=r"ConvexScheduler; got VP.*ShiftedScheduler takes any"):
        ShiftedConvexScheduler(VPScheduler(), 3.0)
    ShiftedScheduler(VPScheduler(), 3.0)
