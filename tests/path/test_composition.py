"""Every nesting of wrappers over every kind of path: right by its closed form, or refused with what is right."""

import copy
import dataclasses
import itertools
import math
import pickle
from dataclasses import dataclass

import pytest
import torch
from flow_matching.path import AffineProbPath as UpstreamAffineProbPath
from flow_matching.path import (
    DiscretePathSample,
    GeodesicProbPath,
    MixtureDiscreteProbPath,
    PathSample,
)
from flow_matching.path import ProbPath as UpstreamProbPath
from flow_matching.path.scheduler import CondOTScheduler, CosineScheduler, PolynomialConvexScheduler
from flow_matching.utils.manifolds import FlatTorus
from scipy.optimize import linear_sum_assignment
from torch.testing import assert_close

from fm_ext.coupling import IndependentCoupling, NoisySource, OptimalTransport
from fm_ext.path import (
    AffineProbPath,
    BridgeProbPath,
    CondOTProbPath,
    CoupledProbPath,
    MaskedProbPath,
)
from fm_ext.path.wrapper import CONVERSIONS

BATCH, WIDTH, STD, SIGMA, TOKENS = 8, 6, 0.1, 0.3, 5


@dataclass
class OwnSample(PathSample):
    """With a field that has no default, and one that is not compared."""

    scale: float
    note: str = "own"


class OwnPath(UpstreamProbPath):
    """A path of a user's own, which needs an extra and has an attribute and a conversion."""

    flavour = "salt"

    def sample(self, x_0, x_1, t, *, scale):
        state = scale * (1 - t[:, None]) * x_0 + t[:, None] * x_1
        return OwnSample(x_1=x_1, x_0=x_0, t=t, x_t=state, dx_t=x_1 - scale * x_0, scale=scale)


@dataclass(frozen=True, slots=True)
class FrozenSample:
    """Not a PathSample, frozen, without a dict."""

    x_1: torch.Tensor
    x_0: torch.Tensor
    t: torch.Tensor
    x_t: torch.Tensor
    dx_t: torch.Tensor


class FrozenPath(UpstreamProbPath):
    def sample(self, x_0, x_1, t):
        state = x_0 + t[:, None] * (x_1 - x_0)
        return FrozenSample(x_1=x_1, x_0=x_0, t=t, x_t=state, dx_t=x_1 - x_0)


def straight(x_0, x_1, t, generator):
    return x_0 + t * (x_1 - x_0), x_1 - x_0


def cosine(x_0, x_1, t, generator):
    a = t * math.pi / 2
    state, change = a.sin() * x_1 + a.cos() * x_0, a.cos() * x_1 - a.sin() * x_0
    return state, change * math.pi / 2


def torus(x_0, x_1, t, generator):
    arc = torch.atan2((x_1 - x_0).sin(), (x_1 - x_0).cos())
    return (x_0 + t * arc) % (2 * math.pi), arc


def tokens(x_0, x_1, t, generator):
    torch.manual_seed(2)
    return torch.where(torch.rand(x_1.shape) < 1 - t, x_0, x_1), None


def own(x_0, x_1, t, generator):
    return 2 * (1 - t) * x_0 + t * x_1, x_1 - 2 * x_0


def bridge(x_0, x_1, t, generator):
    z = torch.randn(x_0.shape, dtype=x_0.dtype, generator=generator)
    spread = (t * (1 - t)).sqrt()
    return x_0 + t * (x_1 - x_0) + SIGMA * spread * z, x_1 - x_0 + SIGMA * (0.5 - t) / spread * z


PATHS = {  # the innermost path, its closed form, the extras that it needs
    "upstream affine": (UpstreamAffineProbPath(CosineScheduler()), cosine, {}),
    "affine": (AffineProbPath(CosineScheduler()), cosine, {}),
    "straight": (CondOTProbPath(), straight, {}),
    "bridge": (BridgeProbPath(SIGMA), bridge, {}),
    "geodesic": (GeodesicProbPath(CondOTScheduler(), FlatTorus()), torus, {}),
    "discrete": (MixtureDiscreteProbPath(PolynomialConvexScheduler(1)), tokens, {}),
    "own": (OwnPath(), own, {"scale": 2}),
    "frozen": (FrozenPath(), straight, {}),
}
WEIGHTS = 1 + torch.rand(WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def price(x_1, x_0, mask=None):
    """A transport cost for numbers and tokens, without ties."""
    each = WEIGHTS * (x_1[:, None] - x_0).double().abs().sqrt()
    return (each if mask is None else torch.where(mask[:, None], each, 0)).sum(-1)


WRAPPERS = {
    "masked": MaskedProbPath,
    "transport": lambda path: CoupledProbPath(path, OptimalTransport(cost=price, weight=0.0)),
    "noise": lambda path: CoupledProbPath(path, NoisySource(STD)),
}
NESTINGS = [n for depth in (1, 2, 3) for n in itertools.product(WRAPPERS, repeat=depth)]
every_nesting = pytest.mark.parametrize("nesting", NESTINGS, ids=" ".join)


def build(name, nesting):
    path = PATHS[name][0]
    for wrapper in reversed(nesting):
        path = WRAPPERS[wrapper](path)
    return path


def case(name):
    t = 0.1 + 0.8 * torch.rand(BATCH, dtype=torch.float64)
    mask = torch.rand(BATCH, WIDTH) < 0.5
    if name == "discrete":
        return *torch.randint(TOKENS, (2, BATCH, WIDTH)), t, mask
    x_0, x_1 = torch.rand(2, BATCH, WIDTH, dtype=torch.float64) * 2 * math.pi
    return x_0, x_1, t, mask


def expected(name, nesting, x_0, x_1, t, mask, generator):
    """Couplings apply from the outside in, then the path, and known entries stay at the target."""
    index = torch.arange(BATCH)
    for wrapper in nesting:
        if wrapper == "transport":
            column = torch.from_numpy(linear_sum_assignment(price(x_1, x_0, mask).numpy())[1])
            x_0, index = x_0[column], index[column]
        elif wrapper == "noise":
            x_0 = x_0 + STD * torch.randn(x_0.shape, dtype=x_0.dtype, generator=generator)
    x_t, dx_t = PATHS[name][1](x_0, x_1, t[:, None], generator)
    if mask is not None and "masked" in nesting:
        x_t = torch.where(mask, x_t, x_1)
        dx_t = None if dx_t is None else torch.where(mask, dx_t, 0)
    return x_0, index, x_t, dx_t


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
@every_nesting
@pytest.mark.parametrize("name", PATHS)
def test_every_nesting_is_right_or_refused(name, nesting, masked):
    (x_0, x_1, t, mask), path, extras = case(name), build(name, nesting), PATHS[name][2]
    mask = mask if masked else None
    generator = lambda: torch.Generator().manual_seed(1)
    call = lambda: path.sample(x_0, x_1, t, mask=mask, generator=generator(), **extras)
    if name == "discrete" and "noise" in nesting:
        with pytest.raises(
            TypeError, match=r"`x_0` must be floating point to take noise.*leave NoisySource out"
        ):
            call()
        nesting = tuple(wrapper for wrapper in nesting if wrapper != "noise")  # what it says
        if not nesting:
            return
        path = build(name, nesting)
    torch.manual_seed(2)
    sample = call()
    source, index, x_t, dx_t = expected(name, nesting, x_0, x_1, t, mask, generator())
    assert_close(sample.x_t, x_t)
    assert_close(sample.x_0, source)
    assert sample.x_1 is x_1
    if dx_t is not None:
        assert_close(sample.dx_t, dx_t)
    if "masked" in nesting:
        assert sample.mask is mask or torch.equal(sample.mask, mask)
    assert hasattr(sample, "mask") == ("masked" in nesting)
    coupled = "transport" in nesting or "noise" in nesting
    assert hasattr(sample, "source_index") == coupled
    if coupled:
        assert torch.equal(sample.source_index, index)
    kind = {"discrete": DiscretePathSample, "own": OwnSample, "frozen": FrozenSample}
    assert isinstance(sample, kind.get(name, PathSample))
    if name == "own":
        assert sample.scale == 2 and sample.note == "own" and path.flavour == "salt"
        with pytest.raises(TypeError, match="unexpected keyword argument 'wrong'"):
            path.sample(x_0, x_1, t, mask=mask, scale=2, wrong=1)
        with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'scale'"):
            path.sample(x_0, x_1, t, mask=mask)


@every_nesting
@pytest.mark.parametrize("name", ["affine", "straight", "upstream affine"])
def test_conversions_through_every_nesting(name, nesting):
    """Held at known entries where there is a mask; refused where a coupling leaves them without meaning."""
    (x_0, x_1, t, mask), path = case(name), build(name, nesting)
    inner, coupled = PATHS[name][0], {"transport", "noise"} & {*nesting}
    time = t[:, None]  # upstream's conversions line (batch,) up with the last axis
    sample = inner.sample(x_0, x_1, t)
    sigma = inner.scheduler(time).sigma_t
    values = {"target": x_1, "epsilon": x_0, "velocity": sample.dx_t, "score": -x_0 / sigma}
    held = {"target": sample.x_t, "epsilon": 0, "velocity": 0, "score": 0}
    found = sorted(conversion for conversion in CONVERSIONS if hasattr(inner, conversion))
    assert len(found) == (6 if name == "upstream affine" else 12)
    for conversion in found:
        source, target = conversion.split("_to_")
        convert = getattr(path, conversion)
        if coupled and "score" in conversion:
            with pytest.raises(
                ValueError, match=f"`{conversion}` needs noise that is ind"
            ) as error:
                convert(values[source], sample.x_t, time)
            advice = str(error.value).split("coupling: ")[1].rstrip(".")
            velocity = values["velocity"]
            right = eval(advice, {"path": path, "velocity": velocity, "x_t": sample.x_t, "t": time})
            assert_close(right, x_1)
            continue
        assert_close(convert(values[source], sample.x_t, time), values[target])
        if "masked" in nesting:
            got = convert(values[source], x_t=sample.x_t, t=time, mask=mask)
            known = torch.as_tensor(held[target], dtype=got.dtype)
            assert_close(got, torch.where(mask, values[target], known))
        else:
            with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
                convert(values[source], sample.x_t, time, mask=mask)


def test_scores_convert_where_the_pairs_are_kept():
    (x_0, x_1, t, _), path = (
        case("affine"),
        CoupledProbPath(PATHS["affine"][0], IndependentCoupling()),
    )
    sample = path.sample(x_0, x_1, t)
    assert_close(
        path.score_to_target(path.epsilon_to_score(x_0, sample.x_t, t), sample.x_t, t), x_1
    )


def test_tokens_convert_and_known_ones_do_not_move():
    (_, x_1, t, mask), path = case("discrete"), build("discrete", ("masked", "transport"))
    logits = torch.randn(BATCH, WIDTH, TOKENS, dtype=torch.float64)
    plain = PATHS["discrete"][0].posterior_to_velocity(logits, x_1, t)
    assert torch.equal(path.posterior_to_velocity(logits, x_1, t), plain)
    got = path.posterior_to_velocity(posterior_logits=logits, x_t=x_1, t=t, mask=mask)
    assert got[~mask].eq(0).all() and torch.equal(got[mask], plain[mask])


def test_a_bridge_wraps_no_path(untyped):
    with pytest.raises(TypeError, match="`sigma` must be a number, as a bridge wraps") as error:
        BridgeProbPath(CondOTProbPath())  # type: ignore[arg-type]
    advice = str(error.value).split("innermost path: ")[1].rstrip(".")
    right = eval(advice, {**globals(), "coupling": NoisySource(STD)})
    x_0, x_1, t, mask = case("bridge")
    assert torch.equal(right.sample(x_0, x_1, t, mask=mask).x_t[~mask], x_1[~mask])


@every_nesting
@pytest.mark.parametrize("name", ["straight", "own", "discrete", "frozen"])
def test_no_copy_of_a_sample_or_a_path_loses_anything(name, nesting):
    if name == "discrete" and "noise" in nesting:
        return
    (x_0, x_1, t, mask), extras = case(name), PATHS[name][2]
    for path in (
        build(name, nesting),
        copy.deepcopy(build(name, nesting)),
        *([pickle.loads(pickle.dumps(build(name, nesting)))]),
    ):
        sample = path.sample(x_0, x_1, t, mask=mask, **extras)
        for again in (
            copy.copy(sample),
            copy.deepcopy(sample),
            pickle.loads(pickle.dumps(sample)),
            dataclasses.replace(sample, x_t=sample.x_t),
        ):
            assert type(again) is type(sample)
            for field in dataclasses.fields(sample):
                got, want = getattr(again, field.name), getattr(sample, field.name)
                assert (
                    got == want
                    if isinstance(want, str)
                    else torch.equal(torch.as_tensor(got), torch.as_tensor(want))
                )
        names = {field.name for field in dataclasses.fields(sample)}
        assert ("mask" in names) == ("masked" in nesting)
    assert not hasattr(path, "nothing_of_this_name")
    assert "sample" in dir(path)


def test_a_sample_that_is_no_dataclass_is_refused():
    class Odd(UpstreamProbPath):
        def sample(self, x_0, x_1, t):
            return {"x_t": x_1}

    x_0, x_1, t, _ = case("own")
    with pytest.raises(TypeError, match=r"`path\.sample` must return a dataclass.*got dict"):
        MaskedProbPath(Odd()).sample(x_0, x_1, t)
