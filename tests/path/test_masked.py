"""Laws of the masked path, over every upstream path."""

import pytest
import torch
from flow_matching.path import (
    AffineProbPath,
    CondOTProbPath,
    GeodesicProbPath,
    MixtureDiscreteProbPath,
)
from flow_matching.path.scheduler import (
    CondOTScheduler,
    CosineScheduler,
    LinearVPScheduler,
    PolynomialConvexScheduler,
    VPScheduler,
)
from flow_matching.utils.manifolds import Euclidean, FlatTorus

from fm_ext.path import MaskedProbPath

AFFINE = [
    CondOTProbPath(),
    AffineProbPath(CosineScheduler()),
    AffineProbPath(PolynomialConvexScheduler(2)),
    AffineProbPath(VPScheduler()),
    AffineProbPath(LinearVPScheduler()),
]
GEODESIC = [GeodesicProbPath(CondOTScheduler(), m) for m in (Euclidean(), FlatTorus())]
DISCRETE = [MixtureDiscreteProbPath(PolynomialConvexScheduler(2))]
ids = lambda path: type(getattr(path, "manifold", path.scheduler)).__name__


def case(path, batch=16):
    """Random ends, mask and times with both ends of the interval among them."""
    shape = (batch, 6) if path in GEODESIC else (batch, 3, 4, 5)
    mask = torch.rand((*shape[:1], 1, *shape[2:]) if len(shape) == 4 else shape) < 0.5
    t = torch.rand(batch)
    t[0], t[1] = 0.0, 1.0
    if path in DISCRETE:
        return torch.randint(0, 7, shape), torch.randint(0, 7, shape), t, mask
    return torch.randn(shape), torch.randn(shape), t, mask


@pytest.mark.parametrize("path", AFFINE + GEODESIC + DISCRETE, ids=ids)
def test_known_entries_stay_at_the_target_and_missing_ones_follow_the_path(path):
    x_0, x_1, t, mask = case(path)
    torch.manual_seed(1)
    plain = path.sample(x_0=x_0, x_1=x_1, t=t)
    torch.manual_seed(1)
    sample = MaskedProbPath(path).sample(x_0, x_1, t, mask=mask)
    missing = mask.expand_as(x_1)
    assert torch.equal(sample.x_t[~missing], x_1[~missing])
    assert torch.equal(sample.x_t[missing], plain.x_t[missing])
    assert torch.equal(sample.mask, mask)
    assert torch.equal(sample.x_0, x_0) and torch.equal(sample.x_1, x_1)
    if path not in DISCRETE:
        assert torch.equal(sample.dx_t[~missing], torch.zeros_like(x_1)[~missing])
        torch.testing.assert_close(
            sample.dx_t[missing], plain.dx_t[missing], rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("path", AFFINE + GEODESIC + DISCRETE, ids=ids)
def test_no_mask_is_the_wrapped_path(path):
    x_0, x_1, t, _ = case(path)
    torch.manual_seed(1)
    plain = path.sample(x_0, x_1, t)
    torch.manual_seed(1)
    sample = MaskedProbPath(path).sample(x_0, x_1, t)
    assert isinstance(sample, type(plain)) and sample.mask is None
    for name, value in vars(plain).items():
        torch.testing.assert_close(getattr(sample, name), value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("path", AFFINE, ids=ids)
def test_source_at_known_entries_does_not_matter(path):
    x_0, x_1, t, mask = case(path)
    other = torch.where(mask, x_0, torch.randn_like(x_0))
    one = MaskedProbPath(path).sample(x_0, x_1, t, mask=mask)
    two = MaskedProbPath(path).sample(other, x_1, t, mask=mask)
    assert torch.equal(one.x_t, two.x_t)
    torch.testing.assert_close(one.dx_t, two.dx_t, rtol=0, atol=0, equal_nan=True)


def test_masks_compose():
    x_0, x_1, t, mask = case(CondOTProbPath())
    path = MaskedProbPath(CondOTProbPath())
    nested, plain = (
        MaskedProbPath(path).sample(x_0, x_1, t, mask=mask),
        path.sample(x_0, x_1, t, mask=mask),
    )
    for name, value in vars(plain).items():
        assert torch.equal(getattr(nested, name), value)


def test_source_is_the_given_one_where_the_path_says_nothing():
    x_0 = torch.randn(3, 2)
    assert MaskedProbPath(MaskedProbPath(CondOTProbPath())).source(x_0) is x_0


def test_infinite_derivative_is_pinned_to_zero():
    x_0, x_1, t, mask = case(CondOTProbPath())
    t[:] = 1.0  # LinearVP's d_sigma is -inf there
    sample = MaskedProbPath(AffineProbPath(LinearVPScheduler())).sample(x_0, x_1, t, mask=mask)
    assert sample.dx_t[~mask.expand_as(x_1)].eq(0).all()


def test_bad_input(untyped):
    x_0, x_1, t, mask = case(CondOTProbPath())
    path = MaskedProbPath(CondOTProbPath())
    with pytest.raises(TypeError, match=r"`path` must be a flow_matching\.path\.ProbPath"):
        MaskedProbPath(CondOTScheduler())
    with pytest.raises(ValueError, match=r"`mask` must have as many axes as `x_1`.*\(16, 4, 5\)"):
        path.sample(x_0, x_1, t, mask=mask[:, 0])
    with pytest.raises(ValueError, match=r"got mask \(8, 1, 4, 5\) for x_1 \(16, 3, 4, 5\)"):
        path.sample(x_0, x_1, t, mask=mask[:8])
    with pytest.raises(TypeError, match="`mask` must be bool with True = missing"):
        path.sample(x_0, x_1, t, mask=mask.float())
