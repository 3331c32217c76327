"""Laws of the coupled path, over every upstream path and every coupling."""

import pytest
import torch
from flow_matching.path import (
    AffineProbPath,
    CondOTProbPath,
    DiscretePathSample,
    GeodesicProbPath,
    MixtureDiscreteProbPath,
)
from flow_matching.path.scheduler import (
    CondOTScheduler,
    CosineScheduler,
    PolynomialConvexScheduler,
    VPScheduler,
)
from flow_matching.utils.manifolds import Euclidean, FlatTorus

from fm_ext.coupling import (
    Coupling,
    GatheredCoupling,
    GreedyTransport,
    IndependentCoupling,
    NoisySource,
    OptimalTransport,
    SinkhornTransport,
)
from fm_ext.loss import velocity_loss
from fm_ext.path import (
    BridgeProbPath,
    CoupledProbPath,
    MaskedProbPath,
)
from fm_ext.path import CondOTProbPath as OurCondOTProbPath
from fm_ext.path import ProbPath as OurProbPath

PATHS = [
    CondOTProbPath(),
    AffineProbPath(CosineScheduler()),
    AffineProbPath(VPScheduler()),
    BridgeProbPath(0.1),
    GeodesicProbPath(CondOTScheduler(), Euclidean()),
    GeodesicProbPath(CondOTScheduler(), FlatTorus()),
]
DISCRETE = MixtureDiscreteProbPath(PolynomialConvexScheduler(2))
COUPLINGS = [IndependentCoupling(), OptimalTransport(), GreedyTransport(), SinkhornTransport()]
NEAR = [  # which move sources where no two masks are equal
    IndependentCoupling(),
    OptimalTransport(ratio=0.2),
    GreedyTransport(ratio=0.2),
    SinkhornTransport(ratio=0.2),
]
name = lambda x: type(x).__name__


def case(path=PATHS[0], batch=16):
    shape = (batch, 6) if isinstance(path, GeodesicProbPath) else (batch, 3, 4, 5)
    mask = torch.rand((batch, 1, 4, 5) if len(shape) == 4 else shape) < 0.5
    return torch.randn(shape), torch.randn(shape), 0.1 + 0.8 * torch.rand(batch), mask


def same(a, b):
    assert vars(a).keys() == vars(b).keys()
    for field, value in vars(a).items():
        assert getattr(b, field) is value or torch.equal(getattr(b, field), value), field


@pytest.mark.parametrize("coupling", COUPLINGS, ids=name)
@pytest.mark.parametrize("path", PATHS, ids=name)
def test_it_is_the_wrapped_path_between_the_pairs(path, coupling):
    x_0, x_1, t, _ = case(path)
    torch.manual_seed(1)
    sample = CoupledProbPath(path, coupling).sample(x_0, x_1, t)
    torch.manual_seed(1)
    paired, index = coupling(x_0, x_1)
    plain = path.sample(x_0=paired, x_1=x_1, t=t)
    assert isinstance(sample, type(plain))
    for field, value in vars(plain).items():
        assert torch.equal(getattr(sample, field), value)
    assert torch.equal(sample.source_index, index) and torch.equal(sample.x_0, x_0[index])
    assert sample.x_1 is x_1


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("coupling", [*NEAR, NoisySource(0.1)], ids=name)
@pytest.mark.parametrize("path", PATHS, ids=name)
def test_masks_compose_in_both_orders(path, coupling, with_mask):
    x_0, x_1, t, mask = case(path)
    samples = []
    for outer in (
        MaskedProbPath(CoupledProbPath(path, coupling)),
        CoupledProbPath(MaskedProbPath(path), coupling),
    ):
        torch.manual_seed(1)
        samples.append(outer.sample(x_0=x_0, x_1=x_1, t=t, mask=mask if with_mask else None))
    one, two = samples
    same(one, two)
    if with_mask:
        known = ~mask.expand_as(x_1)
        assert torch.equal(one.x_t[known], x_1[known]) and one.dx_t[known].eq(0).all()
        torch.manual_seed(1)
        assert torch.equal(one.source_index, coupling(x_0, x_1, mask=mask)[1])


def test_the_loss_obeys_the_mask_of_a_coupled_sample():
    x_0, x_1, t, mask = case()
    sample = MaskedProbPath(CoupledProbPath(PATHS[0], NEAR[1])).sample(x_0, x_1, t, mask=mask)
    error = torch.where(mask, 2.0, 100.0)
    torch.testing.assert_close(velocity_loss(sample.dx_t + error, sample), torch.tensor(4.0))


@pytest.mark.parametrize(
    "wrap", [lambda p: p, MaskedProbPath, lambda p: CoupledProbPath(p, IndependentCoupling())]
)
def test_conditions_reach_the_coupling_and_do_not_break_the_path(wrap):
    x_0, x_1, t, mask = case()
    label = torch.randint(0, 2, (16,))
    path = CoupledProbPath(wrap(CondOTProbPath()), NEAR[1])
    sample = path.sample(x_0, x_1, t, label=label, mask=mask)
    assert torch.equal(label[sample.source_index], label)
    outer = MaskedProbPath(CoupledProbPath(wrap(CondOTProbPath()), NEAR[1]))
    again = outer.sample(x_0, x_1, t, mask=mask, label=label)
    assert torch.equal(again.source_index, sample.source_index)


QUIET = [IndependentCoupling(), NoisySource(0.1), GatheredCoupling(NoisySource(0.1))]


@pytest.mark.parametrize("coupling", [*QUIET, OptimalTransport()], ids=name)
@pytest.mark.parametrize("wrap", [lambda p: p, MaskedProbPath], ids=["plain", "masked"])
@pytest.mark.parametrize("inner", [CondOTProbPath(), OurCondOTProbPath()], ids=["upstream", "ours"])
def test_a_name_that_nothing_takes_is_refused_by_python(wrap, coupling, inner):
    x_0, x_1, t, mask = case()
    path = CoupledProbPath(wrap(inner), coupling)
    for wrong in ({"labels": t}, {"masks": mask}, {"scale": 2.0}):
        for outer in (path, MaskedProbPath(path), MaskedProbPath(MaskedProbPath(path))):
            with pytest.raises(TypeError, match=f"unexpected keyword argument '{min(wrong)}'"):
                outer.sample(x_0, x_1, t, **wrong)


@pytest.mark.parametrize("coupling", [*QUIET, OptimalTransport(), SinkhornTransport()], ids=name)
def test_what_one_coupling_uses_another_may_be_given(coupling, generator):
    x_0, x_1, t, _ = case()
    classes = torch.arange(16) % 2
    given = {"label": classes, "condition": classes[:, None].float(), "generator": generator}
    path = CoupledProbPath(CoupledProbPath(CondOTProbPath(), QUIET[0]), coupling)
    assert path.sample(x_0, x_1, t, **given).x_t.shape == x_1.shape
    assert path.source(x_0, **given).shape == x_0.shape


def test_a_coupling_and_a_path_of_ones_own_are_given_the_four_words():
    seen = {}

    class OwnCoupling(Coupling):
        def __call__(self, x_0, x_1, **words):
            seen["coupling"] = words
            return x_0, torch.arange(len(x_0))

        def source(self, x_0, **words):
            seen["coupling.source"] = words
            return x_0

    class OwnPath(OurProbPath):
        def sample(self, x_0, x_1, t, *, extra=None, **words):
            seen["path"] = words
            assert extra == 3
            return CondOTProbPath().sample(x_0, x_1, t)

        def source(self, x_0, **words):
            seen["path.source"] = words
            return x_0

    x_0, x_1, t, mask = case()
    words = {"label": t.long(), "condition": t, "generator": torch.Generator(), "mask": mask}
    for wrap in (
        lambda path, coupling: MaskedProbPath(CoupledProbPath(path, coupling)),
        lambda path, coupling: CoupledProbPath(MaskedProbPath(path), coupling),
    ):
        path = wrap(OwnPath(), GatheredCoupling(OwnCoupling()))
        path.sample(x_0, x_1, t, **words, extra=3)
        path.source(x_0, **words)
        assert len(seen) == 4
        for got in seen.values():
            assert got.keys() == words.keys()
            assert all(got[key] is words[key] for key in words if key != "mask")
            assert torch.equal(got["mask"], mask)
        seen.clear()


@pytest.mark.parametrize("shape", [(16, 1, 4, 5), (16, 3, 1, 1), (16, 4, 5)], ids=str)
@pytest.mark.parametrize("coupling", [*COUPLINGS, NoisySource(0.1)], ids=name)
def test_a_grey_source_is_not_one_of_colour(coupling, shape, untyped):
    _, x_1, t, _ = case()
    with pytest.raises(ValueError, match="`x_0` and `x_1` must have the same shape"):
        CoupledProbPath(CondOTProbPath(), coupling).sample(torch.randn(shape), x_1, t)


def test_nested_couplings_apply_from_the_outside_in():
    x_0, x_1, t, _ = case()
    path = CoupledProbPath(CoupledProbPath(PATHS[0], NoisySource(0.1)), OptimalTransport())
    sample = path.sample(x_0, x_1, t)
    paired, index = OptimalTransport()(x_0, x_1)
    assert torch.equal(sample.source_index, index)
    assert 0.05 < (sample.x_0 - paired).std() < 0.15
    twice = CoupledProbPath(CoupledProbPath(PATHS[0], OptimalTransport()), GreedyTransport())
    sample = twice.sample(x_0, x_1, t)
    assert torch.equal(x_0[sample.source_index], sample.x_0)


def test_source_is_what_sampling_starts_from(generator):
    x_0 = torch.randn(500, 20)
    noisy = CoupledProbPath(PATHS[0], NoisySource(0.5))
    assert 0.45 < (noisy.source(x_0, generator=generator) - x_0).std() < 0.55
    assert CoupledProbPath(PATHS[0], OptimalTransport()).source(x_0) is x_0
    for path in (
        CoupledProbPath(noisy, OptimalTransport()),
        CoupledProbPath(MaskedProbPath(noisy), OptimalTransport()),
        CoupledProbPath(CoupledProbPath(PATHS[0], OptimalTransport()), NoisySource(0.5)),
        MaskedProbPath(noisy),
        MaskedProbPath(MaskedProbPath(CoupledProbPath(noisy, OptimalTransport()))),
    ):
        assert 0.45 < (path.source(x_0) - x_0).std() < 0.55


def test_tokens_by_their_hamming_distance():
    x_0, x_1 = torch.randint(0, 5, (2, 16, 8))
    coupling = OptimalTransport(cost=lambda x_1, x_0: (x_1[:, None] != x_0).sum(-1).float())
    mask = torch.rand(16, 8) < 0.5
    for path in (
        MaskedProbPath(CoupledProbPath(DISCRETE, IndependentCoupling())),
        CoupledProbPath(MaskedProbPath(DISCRETE), IndependentCoupling()),
    ):
        sample = path.sample(x_0, x_1, torch.rand(16), mask=mask)
        assert isinstance(sample, DiscretePathSample) and torch.equal(sample.mask, mask)
        assert torch.equal(sample.x_t[~mask], x_1[~mask])
    sample = CoupledProbPath(DISCRETE, coupling).sample(x_0, x_1, torch.rand(16))
    assert torch.equal(x_0[sample.source_index], sample.x_0)
    assert (sample.x_0 != x_1).sum() < (x_0 != x_1).sum()


def test_masked_tokens_by_the_hamming_distance_in_the_hole():
    def hamming(x_1, x_0, mask=None):
        different = x_1[:, None] != x_0
        return (different if mask is None else different & mask[:, None]).sum(-1)

    x_0, x_1 = torch.randint(0, 5, (2, 16, 8))
    mask, coupling = torch.rand(16, 8) < 0.5, OptimalTransport(cost=hamming, weight=0.0)
    for path in (
        MaskedProbPath(CoupledProbPath(DISCRETE, coupling)),
        CoupledProbPath(MaskedProbPath(DISCRETE), coupling),
    ):
        sample = path.sample(x_0, x_1, torch.rand(16), mask=mask)
        assert torch.equal(sample.x_t[~mask], x_1[~mask])
        assert (sample.x_0 != x_1)[mask].sum() < (x_0 != x_1)[mask].sum()


def test_straighter_with_optimal_transport():
    """On Gaussians the conditional variance of the velocity falls, which is what makes few steps go far."""
    x_0, x_1, t, _ = torch.randn(256, 2), 1 + torch.randn(256, 2), torch.rand(256), None
    optimal = CoupledProbPath(PATHS[0], OptimalTransport()).sample(x_0, x_1, t)
    assert optimal.dx_t.var(0).sum() < 0.2 * PATHS[0].sample(x_0, x_1, t).dx_t.var(0).sum()


def test_bad_input(untyped):
    x_0, x_1, t, _ = case()
    with pytest.raises(TypeError, match=r"`path` must be a flow_matching\.path\.ProbPath"):
        CoupledProbPath(OptimalTransport(), CondOTProbPath())
    with pytest.raises(TypeError, match=r"`coupling` must be a fm_ext\.coupling\.Coupling"):
        CoupledProbPath(CondOTProbPath(), torch.cdist)
    with pytest.raises(AssertionError):
        CoupledProbPath(CondOTProbPath(), OptimalTransport()).sample(x_0[:4], x_1, t)
    with pytest.raises(TypeError, match="unexpected keyword argument 'lable'"):
        CoupledProbPath(CondOTProbPath(), OptimalTransport()).sample(x_0, x_1, t, lable=t)


def test_gathering_inside_another_coupling_is_refused():
    gathered = CoupledProbPath(PATHS[0], GatheredCoupling(OptimalTransport()))
    for inner in (gathered, MaskedProbPath(gathered)):
        with pytest.raises(ValueError, match="`path` must not gather inside another") as error:
            CoupledProbPath(inner, NoisySource(0.1))
        advice = str(error.value).split("GatheredCoupling: ")[1].rstrip(".")
        advice = advice.replace("NoisySource(...)", "NoisySource(0.1)").replace("...", "")
        right = eval(advice, {**globals(), "path": PATHS[0]})
        x_0, x_1, t, _ = case()
        assert right.sample(x_0, x_1, t).x_t.shape == x_1.shape
