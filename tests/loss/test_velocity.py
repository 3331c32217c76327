"""Laws of the velocity loss."""

from dataclasses import dataclass, replace

import pytest
import torch
from flow_matching.path import CondOTProbPath, PathSample

from fm_ext.loss import velocity_loss
from fm_ext.path import MaskedProbPath


def sample(dx_t, mask=None):
    """What a masked path returns between 0 and `dx_t`."""
    zero = torch.zeros_like(dx_t)
    result = MaskedProbPath(CondOTProbPath()).sample(zero, zero, torch.zeros(len(dx_t)), mask=mask)
    return replace(result, dx_t=dx_t)


def test_without_mask_it_is_the_mean_square():
    v, dx_t = torch.randn(2, 8, 3, 5, 5)
    plain = CondOTProbPath().sample(torch.zeros_like(v), dx_t, torch.rand(8))
    assert isinstance(plain, PathSample)
    torch.testing.assert_close(velocity_loss(v, plain), (v - plain.dx_t).square().mean())
    torch.testing.assert_close(velocity_loss(v, sample(dx_t)), (v - dx_t).square().mean())


def test_brute_force_over_missing_entries():
    v, dx_t = torch.randn(2, 8, 3, 5, 5, dtype=torch.float64)
    mask = torch.rand(8, 1, 5, 5) < 0.4
    expected = torch.stack(
        [(v[i] - dx_t[i])[mask[i].expand(3, 5, 5)].square().mean() for i in range(8)]
    )
    losses = velocity_loss(v, sample(dx_t, mask), reduction="none")
    torch.testing.assert_close(losses, expected)
    weight = torch.rand(8, dtype=torch.float64)
    for reduction, reduce in (("mean", torch.mean), ("sum", torch.sum)):
        value = velocity_loss(v, sample(dx_t, mask), weight=weight, reduction=reduction)
        torch.testing.assert_close(value, reduce(weight * expected))


@pytest.mark.parametrize("size", [4, 32])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_scale_depends_neither_on_mask_area_nor_on_image_size(size, rows):
    mask = torch.zeros(2, 1, size, size, dtype=torch.bool)
    mask[:, :, :rows] = True
    v = torch.full((2, 3, size, size), 3.0)
    torch.testing.assert_close(velocity_loss(v, sample(0 * v, mask)), torch.tensor(9.0))


def test_known_entries_get_no_gradient_and_may_be_infinite():
    v = torch.randn(4, 1, 4, 4, requires_grad=True)
    mask = torch.rand(4, 1, 4, 4) < 0.5
    dx_t = torch.where(mask, torch.randn(4, 1, 4, 4), torch.inf)
    velocity_loss(v, sample(dx_t, mask)).backward()
    assert v.grad.isfinite().all()
    assert v.grad[~mask].eq(0).all() and v.grad[mask].ne(0).all()


def test_nothing_missing_is_zero_not_nan():
    v = torch.randn(4, 1, 4, 4)
    mask = torch.zeros(4, 1, 4, 4, dtype=torch.bool)
    assert velocity_loss(v, sample(v + 1, mask)) == 0


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_an_empty_batch_is_zero_and_differentiable(reduction, masked):
    v = torch.randn(0, 3, 4, 4, requires_grad=True)
    mask = torch.ones(0, 1, 4, 4, dtype=torch.bool) if masked else None
    loss = velocity_loss(v, sample(v.detach(), mask), reduction=reduction)
    assert loss.shape == (() if reduction != "none" else (0,)) and loss.sum() == 0
    loss.sum().backward()
    assert v.grad.shape == v.shape


def test_the_mask_of_ones_own_sample_is_obeyed_and_checked():
    @dataclass
    class Own(PathSample):
        mask: torch.Tensor

    v = torch.randn(4, 3, 4, 4)
    mask = torch.rand(4, 1, 4, 4) < 0.5
    given = Own(x_1=v, x_0=v, t=v[:, 0, 0, 0], x_t=v, dx_t=v + torch.where(mask, 2, 9), mask=mask)
    torch.testing.assert_close(velocity_loss(v, given), torch.tensor(4.0))
    with pytest.raises(TypeError, match="`mask` must be bool with True = missing"):
        velocity_loss(v, replace(given, mask=mask.float()))


def test_half_precision_is_summed_in_float32():
    v = torch.full((1, 1, 256, 256), 2.0, dtype=torch.bfloat16)
    loss = velocity_loss(v, sample(torch.zeros(1, 1, 256, 256)))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor(4.0))


def test_bad_input(untyped):
    v = torch.randn(4, 3, 4, 4)
    with pytest.raises(
        ValueError, match=r"`velocity` must have the shape of `sample\.dx_t`.*out_channels"
    ):
        velocity_loss(v, sample(v[:, :1]))
    with pytest.raises(
        ValueError, match=r"`weight` must hold one factor a sample, \(4,\); got \(1,\)"
    ):
        velocity_loss(v, sample(v), weight=torch.ones(1))
