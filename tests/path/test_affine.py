"""Laws of the affine paths, over upstream's schedulers and ours."""

import itertools

import flow_matching.path as upstream
import pytest
import torch
from flow_matching.path.scheduler import (
    CondOTScheduler,
    LinearVPScheduler,
    PolynomialConvexScheduler,
    Scheduler,
    SchedulerOutput,
    VPScheduler,
)
from flow_matching.path.scheduler import CosineScheduler as UpstreamCosineScheduler
from torch.func import jvp, vmap
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fm_ext.path.scheduler as ours
from fm_ext.coupling import IndependentCoupling
from fm_ext.path import (
    AffineProbPath,
    BridgeProbPath,
    CondOTProbPath,
    CoupledProbPath,
    MaskedProbPath,
)
from fm_ext.path.prediction import coefficients

SCHEDULERS = [
    CondOTScheduler(),
    PolynomialConvexScheduler(2),
    UpstreamCosineScheduler(),
    VPScheduler(),
    LinearVPScheduler(),
    ours.CosineScheduler(),
    ours.IDDPMCosineScheduler(),
    ours.VPScheduler(),
    ours.LinearVPScheduler(),
    ours.SigmoidScheduler(),
    ours.ShiftedScheduler(CondOTScheduler(), 3.0),
    ours.EDMScheduler(),
    ours.BetaTableScheduler(torch.linspace(1e-4, 0.02, 1000)),
    ours.BetaTableScheduler(torch.linspace(1e-4, 0.02, 1000), zero_terminal_snr=True),
]
IDS = [f"{s.__module__.split('.')[0]}-{type(s).__name__}" for s in SCHEDULERS]
SHAPES = {  # of t, for a state of shape s
    "0-d": lambda s: (),
    "1": lambda s: (1,),
    "batch": lambda s: s[:1],
    "batch, 1, ..., 1": lambda s: (s[0], *(1 for _ in s[1:])),
    "state": lambda s: s,
}
QUANTITIES = ("target", "epsilon", "velocity", "score")
PAIRS = list(itertools.permutations(QUANTITIES, 2))
every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS, ids=IDS)
every_pair = pytest.mark.parametrize("source, target", PAIRS, ids=map("-".join, PAIRS))


def quantities(scheduler, x_0, x_1, t):
    """x_t and the four quantities from their definitions; `t` broadcasts to the state."""
    out = scheduler(t)
    return out.alpha_t * x_1 + out.sigma_t * x_0, {
        "target": x_1,
        "epsilon": x_0,
        "velocity": out.d_alpha_t * x_1 + out.d_sigma_t * x_0,
        "score": -x_0 / out.sigma_t,
    }


def convert(path, source, target, value, x_t, t):
    return getattr(path, f"{source}_to_{target}")(value, x_t, t)


def ends(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)


# sample


@every_scheduler
@pytest.mark.parametrize("shape", [(8,), (8, 2), (8, 3, 8, 8)])
def test_sample_is_upstreams(scheduler, shape):
    (x_0, x_1), t = ends(*shape), torch.rand(8, dtype=torch.float64)
    sample = AffineProbPath(scheduler).sample(x_0, x_1, t)
    want = upstream.AffineProbPath(scheduler).sample(x_0, x_1, t)
    assert_close(vars(sample), vars(want), rtol=1e-13, atol=1e-13)
    assert sample.x_0 is x_0 and sample.x_1 is x_1 and sample.t is t
    assert type(sample) is upstream.PathSample


@every_scheduler
def test_velocity_is_the_derivative_of_the_state(scheduler):
    (x_0, x_1), t = ends(16, 3), torch.rand(16, dtype=torch.float64)
    path = AffineProbPath(scheduler)
    _, want = jvp(lambda t: path.sample(x_0, x_1, t).x_t, (t,), (torch.ones_like(t),))
    assert_close(path.sample(x_0, x_1, t).dx_t, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@every_scheduler
def test_the_ends_of_the_path(scheduler, dtype):
    x_0, x_1 = ends(4, 3, 5, 5, dtype=dtype)
    first = AffineProbPath(scheduler).sample(x_0, x_1, torch.zeros(4))
    last = AffineProbPath(scheduler).sample(x_0, x_1, torch.ones(4))
    start, end = (scheduler(torch.tensor(t, dtype=torch.float64)) for t in (0.0, 1.0))
    if start.alpha_t == 0:
        assert torch.equal(first.x_t, x_0)
    if end.sigma_t.abs() < 1e-15:
        assert_close(last.x_t, x_1, rtol=0, atol=1e-15)


def test_drop_ins_are_upstreams():
    assert isinstance(CondOTProbPath(), upstream.CondOTProbPath)
    assert isinstance(CondOTProbPath(), AffineProbPath)
    assert isinstance(AffineProbPath(scheduler=ours.VPScheduler()), upstream.AffineProbPath)
    assert isinstance(CondOTProbPath().scheduler, CondOTScheduler)
    for name in dir(upstream.CondOTProbPath):
        assert hasattr(CondOTProbPath(), name)


@every_scheduler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("t_dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_half_precision_rounds_once(scheduler, dtype, t_dtype):
    (x_0, x_1), t = ends(64, 5, dtype=dtype), torch.rand(64).to(t_dtype).clamp(max=0.99)
    sample = AffineProbPath(scheduler).sample(x_0, x_1, t)
    want = AffineProbPath(scheduler).sample(x_0.double(), x_1.double(), t.double())
    assert sample.x_t.dtype == sample.dx_t.dtype == dtype and sample.t is t
    eps = torch.finfo(dtype).eps
    assert_close(sample.x_t.double(), want.x_t, rtol=0.51 * eps, atol=1e-5)
    assert_close(sample.dx_t.double(), want.dx_t, rtol=0.51 * eps, atol=1e-4)


def test_t_in_float64_does_not_promote_the_data():
    x_0, x_1 = ends(4, 2, dtype=torch.float32)
    sample = CondOTProbPath().sample(x_0, x_1, torch.rand(4, dtype=torch.float64))
    assert sample.x_t.dtype == sample.dx_t.dtype == torch.float32


def test_t_outside_the_interval_is_the_schedulers_business():
    (x_0, x_1), t = ends(3, 2), torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    want = x_0 + t[:, None] * (x_1 - x_0)
    assert_close(CondOTProbPath().sample(x_0, x_1, t).x_t, want)
    held = AffineProbPath(ours.VPScheduler()).sample(x_0, x_1, t)
    assert torch.equal(held.x_t[2], x_1[2]) and not held.dx_t[[0, 2]].any()


class Allocations(TorchDispatchMode):
    """Adds up the bytes of the storages that operations make."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        old = {id_of(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and id_of(x) not in old:
                self.kept = [*getattr(self, "kept", []), x.untyped_storage()]
        return result


def id_of(x):
    return x.untyped_storage()._cdata


@every_scheduler
@pytest.mark.parametrize("grad", [False, True])
def test_sample_allocates_its_two_results_only(scheduler, grad):
    x_0, x_1 = ends(8, 3, 32, 32, dtype=torch.float32)
    x_0.requires_grad_(grad)
    with Allocations() as allocations:
        AffineProbPath(scheduler).sample(x_0, x_1, torch.rand(8))
    total = sum(storage.nbytes() for storage in allocations.kept)
    assert (
        2 * x_1.nbytes <= total < 2.1 * x_1.nbytes + (40_000 if "Table" in repr(scheduler) else 0)
    )


@every_scheduler
def test_gradients_flow_to_both_ends_and_to_the_time(scheduler):
    (x_0, x_1), t = ends(3, 2), torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)
    path = AffineProbPath(scheduler)
    inputs = [x.requires_grad_() for x in (x_0, x_1, t)]
    function = lambda *inputs: (path.sample(*inputs).x_t, path.sample(*inputs).dx_t)
    assert torch.autograd.gradcheck(function, inputs)


@every_scheduler
def test_compiles_without_a_break(scheduler, untyped):
    (x_0, x_1), t = ends(4, 3, dtype=torch.float32), torch.rand(4)
    path = AffineProbPath(scheduler)
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x_0, x_1, t: (
            path.sample(x_0, x_1, t).x_t,
            path.velocity_to_target(x_0, x_1, t),
            path.score_to_velocity(x_0, x_1, t),
        ),
        backend="eager",
        fullgraph=True,
    )
    x_t, target, velocity = compiled(x_0, x_1, t)
    assert_close(x_t, path.sample(x_0, x_1, t).x_t)
    assert_close(target, path.velocity_to_target(x_0, x_1, t))
    assert_close(velocity, path.score_to_velocity(x_0, x_1, t))


# conversions


@every_scheduler
@pytest.mark.parametrize("t_shape", SHAPES)
@pytest.mark.parametrize("shape", [(6,), (6, 6), (6, 2), (6, 3, 6, 6)])
def test_conversions_follow_the_definitions(scheduler, t_shape, shape):
    (x_0, x_1), path = ends(*shape), AffineProbPath(scheduler)
    t = torch.empty(SHAPES[t_shape](shape), dtype=torch.float64).uniform_(0.05, 0.95)
    wide = t.view(t.shape if t_shape not in ("1", "batch") else (-1, *(1 for _ in shape[1:])))
    x_t, values = quantities(scheduler, x_0, x_1, wide)
    for source, target in PAIRS:
        got = convert(path, source, target, values[source], x_t, t)
        want = values[target].expand_as(x_t)
        assert_close(got, want, rtol=1e-8, atol=1e-8, msg=f"{source} to {target}")


@every_pair
@every_scheduler
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_conversions_at_the_ends_are_right_or_refused(scheduler, source, target, t):
    """What the arguments determine is the limit of the definition; what they do not is an error."""
    (x_0, x_1), path = ends(5, 3), AffineProbPath(scheduler)
    time = torch.tensor(t, dtype=torch.float64)
    out = scheduler(time)
    alpha, sigma, d_alpha, d_sigma = (
        0.0 if abs(v) < 1e-15 else v.item()
        for v in (out.alpha_t, out.sigma_t, out.d_alpha_t, out.d_sigma_t)
    )
    x_t, values = quantities(scheduler, x_0, x_1, time)
    if sigma == 0:
        x_t, values["velocity"] = alpha * x_1, d_alpha * x_1 + d_sigma * x_0
    known = {"target": sigma == 0, "epsilon": alpha == 0}
    known["velocity"] = (known["target"] and d_sigma == 0) or (known["epsilon"] and d_alpha == 0)
    if source == "velocity":
        regular = abs(sigma * d_alpha - alpha * d_sigma) not in (0, float("inf"))
        known["target"] |= regular
        known["epsilon"] |= regular
    elif source == "score":
        known["epsilon"] = True
        known["target"] |= alpha > 0
        known["velocity"] |= alpha > 0
    else:
        known["epsilon"] |= source == "epsilon" or sigma > 0
        known["target"] |= source == "target" or alpha > 0
        known["velocity"] |= known["epsilon"] and known["target"] and abs(d_sigma) < float("inf")
        known["velocity"] &= abs(d_sigma) < float("inf")
    known["score"] = known["epsilon"] and sigma > 0
    if {source, target} == {"velocity", "score"} and abs(d_sigma) == float("inf"):
        # The marginal score is finite: any one will do, the velocity is d_alpha (x + score).
        score = torch.randn_like(x_t)
        values |= {"score": score, "velocity": d_alpha * (x_t + score)}
        known["score"] = True
    elif source == "score" and sigma == 0:
        values["score"] = torch.randn_like(x_t)
        values["epsilon"] = torch.zeros_like(x_t)
        values["velocity"] = d_alpha * x_1
    if known[target]:
        got = convert(path, source, target, values[source], x_t, time)
        assert_close(got, values[target], rtol=1e-8, atol=1e-9)
    else:
        with pytest.raises(ValueError, match=f"`{source}_to_{target}` has no answer at t = {t:g}"):
            convert(path, source, target, values[source], x_t, time)


def test_the_determined_ends_by_hand():
    x, v = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    zero, one = torch.zeros(()), torch.ones(())
    straight = CondOTProbPath()
    assert_close(straight.velocity_to_target(v, x, one), x)
    assert_close(straight.velocity_to_target(v, x, zero), x + v)
    assert_close(straight.velocity_to_epsilon(v, x, one), x - v)
    assert_close(straight.velocity_to_score(v, x, zero), -x)
    for scheduler in (VPScheduler(), LinearVPScheduler(), ours.VPScheduler()):
        path = AffineProbPath(scheduler)
        assert_close(path.velocity_to_target(v, x, one), x)
        assert_close(path.velocity_to_target(v / 0, x, one), x)  # its own sample's dx_t is infinite
    assert_close(AffineProbPath(LinearVPScheduler()).score_to_velocity(v, x, one), x + v)
    parabola = AffineProbPath(PolynomialConvexScheduler(2))
    assert_close(parabola.epsilon_to_velocity(v, x, zero), 0 * v)  # nothing moves at t = 0


@every_scheduler
def test_no_conversion_loses_digits_near_the_ends(scheduler):
    """float32 answers as float64 does, up to the rounding of the two terms."""
    (value, x_t), path = ends(42, 4, dtype=torch.float32), AffineProbPath(scheduler)
    powers = 2.0 ** -torch.arange(1.0, 22.0)
    t = torch.cat([powers, 1 - powers])
    for source, target in PAIRS:
        a, b = (c[:, None] for c in coefficients(scheduler, source, target, t))
        want = a * x_t + b * value
        size = (a * x_t).abs() + (b * value).abs()
        got = convert(path, source, target, value, x_t, t)
        assert bool(((got - want).abs() <= 3e-7 * size).all()), f"{source} to {target}"


@every_pair
def test_conversions_in_half_precision(source, target):
    path, (x_0, x_1) = AffineProbPath(ours.CosineScheduler()), ends(64, 5)
    t = torch.rand(64).clamp(0.1, 0.9)
    x_t, values = quantities(path.scheduler, x_0, x_1, t.double()[:, None])
    x_t, value = x_t.bfloat16(), values[source].bfloat16()
    got = convert(path, source, target, value, x_t, t)
    want = convert(path, source, target, value.double(), x_t.double(), t.double())
    assert got.dtype == torch.bfloat16
    assert_close(got.double(), want, rtol=0.51 * 2**-7, atol=1e-4)


def test_conversions_inside_vmap_and_with_gradients():
    path, (x_0, x_1) = AffineProbPath(ours.VPScheduler()), ends(4, 3)
    t = torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=torch.float64)
    each = vmap(path.velocity_to_target)(x_0, x_1, t)
    assert_close(each, path.velocity_to_target(x_0, x_1, t))
    nowhere = vmap(path.target_to_velocity)(x_0, x_1, t)
    assert nowhere.isnan().all(1).tolist() == [False, False, False, True]
    inputs = [x.requires_grad_() for x in (x_0, x_1, t[1:3].clone())]
    function = lambda x_0, x_1, t: path.target_to_velocity(x_0[:2], x_1[:2], t)
    assert torch.autograd.gradcheck(function, inputs)


def test_a_mask_wraps_them():
    (x_0, x_1), mask = ends(4, 3, 5, 5), torch.rand(4, 1, 5, 5) < 0.5
    sample = MaskedProbPath(CondOTProbPath()).sample(
        x_0, x_1, torch.rand(4, dtype=torch.float64), mask=mask
    )
    known = ~mask.expand_as(x_1)
    assert torch.equal(sample.x_t[known], x_1[known])


# errors


def test_ends_that_would_broadcast_are_refused(untyped):
    path, t = CondOTProbPath(), torch.rand(8)
    grey, colour = torch.randn(8, 1, 4, 4), torch.randn(8, 3, 4, 4)
    for x_0, x_1 in ((grey, colour), (colour, grey), (grey[:, 0, 0, 0], colour[:, 0])):
        with pytest.raises(ValueError, match=r"`x_0` and `x_1` must have the same shape.*got \(8,"):
            path.sample(x_0, x_1, t)


def test_dtypes_that_would_promote_are_refused(untyped):
    path, t, x = CondOTProbPath(), torch.rand(8), torch.randn(8, 3)
    for other in (x.bfloat16(), x.double(), (x * 9).byte()):
        with pytest.raises(TypeError, match=r"`x_0` and `x_1` must be floating point of the same"):
            path.sample(x, other, t)
    with pytest.raises(TypeError, match=r"got torch.uint8 and torch.uint8.*/ 127.5"):
        path.sample(x.byte(), x.byte(), t)
    with pytest.raises(TypeError, match=r"`t` must be floating point; got torch.int64"):
        path.sample(x, x, t.long())
    with pytest.raises(TypeError, match=r"floating point.*got torch.int64"):
        path.velocity_to_target(x, x, t.long())


@pytest.mark.parametrize("shape", [(7,), (9,), (0,)])
def test_sample_wants_one_time_a_sample(shape, untyped):
    x = torch.randn(8, 3)
    with pytest.raises(AssertionError):
        CondOTProbPath().sample(x, x, torch.rand(shape))
    with pytest.raises(AssertionError):
        CondOTProbPath().sample(x[:7], x, torch.rand(8))
    with pytest.raises(ValueError, match=r"`t` must be .*for a state of \(8, 3\)"):
        CondOTProbPath().sample(x, x, torch.rand(8, 2))


WRAPS = {
    "plain": lambda path: path,
    "masked": MaskedProbPath,
    "coupled": lambda path: CoupledProbPath(path, IndependentCoupling()),
}
TIMED = [CondOTProbPath(), AffineProbPath(ours.CosineScheduler()), BridgeProbPath(0.0)]


@pytest.mark.parametrize("shape", [(), (1,), (8,), (8, 1, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize(
    "path", [*TIMED, upstream.CondOTProbPath()], ids=lambda path: type(path).__module__[:6]
)
def test_sample_takes_every_shape_of_one_time_a_sample(path, wrap, shape):
    if path not in TIMED and wrap is WRAPS["plain"]:
        pytest.skip("upstream's own, which takes (batch,)")
    (x_0, x_1), t = ends(8, 3, 2), torch.rand(shape, dtype=torch.float64)
    one = t.expand(8) if t.numel() == 1 and t.ndim < 2 else t.reshape(-1).expand(8)
    got, want = wrap(path).sample(x_0, x_1, t), path.sample(x_0, x_1, one)
    assert got.t.shape == (8,) and torch.equal(got.t, one)
    assert_close(got.x_t, want.x_t)
    assert_close(got.dx_t, want.dx_t)


@pytest.mark.parametrize("shape", [(4,), (8, 3), (3,), (8, 1), (1, 8, 1, 1)])
def test_a_time_that_would_line_up_with_the_wrong_axis_is_refused(shape, untyped):
    x = torch.randn(8, 3, 4, 4)
    with pytest.raises(
        ValueError, match=r"`t` must be 0-d, \(1,\), \(batch,\).*for a state of \(8, 3, 4"
    ):
        CondOTProbPath().velocity_to_target(x, x, torch.rand(shape))


def test_values_of_another_shape_are_refused(untyped):
    x = torch.randn(8, 3)
    with pytest.raises(
        ValueError, match=r"velocity and `x_t` must have the same shape; got \(8, 1"
    ):
        CondOTProbPath().velocity_to_target(x[:, :1], x, torch.rand(8))


def test_a_class_is_no_scheduler(untyped):
    with pytest.raises(TypeError, match=r"`scheduler` must be a .*Scheduler, for example Cosine"):
        AffineProbPath(ours.CosineScheduler)  # type: ignore[arg-type]


class Smoothstep(Scheduler):
    """Stands still at both ends: its velocity says nothing there, but x_t says everything."""

    def __call__(self, t):
        alpha, slope = t * t * (3 - 2 * t), 6 * t * (1 - t)
        return SchedulerOutput(alpha, 1 - alpha, slope, -slope)

    def snr_inverse(self, snr):
        raise NotImplementedError


def test_a_schedule_that_stands_still_at_its_ends():
    path, (x, v) = AffineProbPath(Smoothstep()), ends(4, 2)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    assert_close(path.velocity_to_target(v, x, one), x)
    assert_close(path.velocity_to_epsilon(v, x, zero), x)
    assert_close(path.target_to_velocity(v, x, one), 0 * x)
    with pytest.raises(ValueError, match=r"`velocity_to_target` has no answer at t = 0"):
        path.velocity_to_target(v, x, zero)
