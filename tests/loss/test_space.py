"""Laws of the velocity loss of a network that predicts something else."""

import math

import pytest
import torch
from flow_matching.path.scheduler import CondOTScheduler
from flow_matching.path.scheduler import CosineScheduler as UpstreamCosineScheduler
from torch import nn

from fm_ext.loss import velocity_loss
from fm_ext.models import PredictionVelocityModel
from fm_ext.path import AffineProbPath, MaskedProbPath
from fm_ext.path.scheduler import CosineScheduler, IDDPMCosineScheduler, VPScheduler

PREDICTIONS = ("x_1", "x_0", "epsilon", "score", "velocity")
SCHEDULERS = [
    CondOTScheduler(),
    UpstreamCosineScheduler(),
    CosineScheduler(),
    IDDPMCosineScheduler(),
    VPScheduler(),
]


def draw(scheduler, t=None, shape=(16, 3, 4, 4)):
    x_0, x_1 = torch.randn(2, *shape, dtype=torch.float64)
    t = torch.rand(len(x_1), dtype=torch.float64) * 0.8 + 0.1 if t is None else t
    return AffineProbPath(scheduler).sample(x_0, x_1, t)


def truths(scheduler, sample):
    sigma = scheduler(sample.t).sigma_t.view(-1, 1, 1, 1)
    return {
        "x_1": sample.x_1,
        "x_0": sample.x_0,
        "epsilon": sample.x_0,
        "score": -sample.x_0 / sigma,
        "velocity": sample.dx_t,
    }


@pytest.mark.parametrize("space", PREDICTIONS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    "scheduler", SCHEDULERS, ids=lambda s: type(s).__module__[:6] + type(s).__name__
)
def test_it_is_the_error_after_conversion(scheduler, prediction, space):
    sample = draw(scheduler)
    output = truths(scheduler, sample)[prediction] + torch.randn(16, 3, 4, 4)
    names = {"x_1": "target", "x_0": "epsilon"}
    source, target = names.get(prediction, prediction), names.get(space, space)
    converted = output
    if source != target:
        convert = getattr(AffineProbPath(scheduler), f"{source}_to_{target}")
        converted = convert(output, sample.x_t, sample.t)
    expected = (converted - truths(scheduler, sample)[space]).square().mean((1, 2, 3))
    loss = velocity_loss(
        output,
        sample,
        prediction=prediction,
        space=space,
        scheduler=scheduler,
        reduction="none",
    )
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_it_is_the_loss_of_the_velocity_model(prediction):
    """What is trained is the velocity that is sampled with."""

    class Network(nn.Module):
        def forward(self, x, t):
            return x * t.view(-1, 1, 1, 1).cos()

    scheduler = CosineScheduler()
    model = PredictionVelocityModel(Network(), scheduler, prediction)
    sample = draw(scheduler)
    torch.testing.assert_close(
        velocity_loss(
            Network()(sample.x_t, sample.t), sample, prediction=prediction, scheduler=scheduler
        ),
        velocity_loss(model(x=sample.x_t, t=sample.t), sample),
    )


def test_weight_of_the_data_on_the_straight_path():
    sample = draw(
        CondOTScheduler(),
        t=torch.tensor([0.0, 0.5, 0.75, 0.95, 0.99, 1.0], dtype=torch.float64),
        shape=(6, 2),
    )
    output = sample.x_1 + 1
    factors = velocity_loss(
        output,
        sample,
        prediction="x_1",
        scheduler=CondOTScheduler(),
        t_eps=0.05,
        reduction="none",
    )
    expected = torch.tensor([1, 4, 16, 400, 400, 400]).double()
    torch.testing.assert_close(factors, expected)
    plain = velocity_loss(output, sample, prediction="x_1", space="x_1")
    torch.testing.assert_close(plain, torch.ones_like(plain))


@pytest.mark.parametrize("space", PREDICTIONS)
@pytest.mark.parametrize("prediction", ["x_1", "x_0", "epsilon", "score"])
@pytest.mark.parametrize(
    "scheduler", SCHEDULERS, ids=lambda s: type(s).__module__[:6] + type(s).__name__
)
def test_finite_at_both_ends(scheduler, prediction, space):
    t = torch.tensor([0.0, 1e-8, 1e-4, 1 - 1e-4, 1 - 6e-8, 1.0])
    sample = AffineProbPath(scheduler).sample(*torch.randn(2, 6, 3), t)
    output = torch.randn(6, 3, requires_grad=True)
    loss = velocity_loss(output, sample, prediction=prediction, space=space, scheduler=scheduler)
    loss.backward()
    assert loss.isfinite() and output.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prediction", ["x_1", "x_0", "epsilon"])
@pytest.mark.parametrize(
    "scheduler", SCHEDULERS, ids=lambda s: type(s).__module__[:6] + type(s).__name__
)
def test_half_precision_costs_only_its_rounding(scheduler, prediction, dtype):
    """No difference of large numbers is formed in half precision, however near the data, in sequences too."""
    t = torch.tensor([0.0, 1e-3, 0.3, 0.9, 0.99, 0.996, 1.0]).to(dtype)
    mask = torch.rand(7, 16, 1) < 0.5
    path = MaskedProbPath(AffineProbPath(scheduler))
    x_0, x_1 = torch.randn(2, 7, 16, 4, dtype=dtype)
    output = ((x_1 if prediction == "x_1" else x_0) + 0.1).requires_grad_()
    options = {"prediction": prediction, "scheduler": scheduler, "reduction": "none"}
    exact = path.sample(x_0.double(), x_1.double(), t.double(), mask=mask)
    loss = velocity_loss(output, path.sample(x_0, x_1, t, mask=mask), **options)
    expected = velocity_loss(output.double(), exact, **options)
    torch.testing.assert_close(loss, expected.float(), rtol=1e-5, atol=1e-6)
    loss.mean().backward()
    assert output.grad.isfinite().all()


def test_the_mask_is_obeyed():
    scheduler = CosineScheduler()
    x_0, x_1 = torch.randn(2, 8, 3, 4, 4)
    mask = torch.rand(8, 1, 4, 4) < 0.5
    sample = MaskedProbPath(AffineProbPath(scheduler)).sample(x_0, x_1, torch.rand(8), mask=mask)
    output = torch.where(mask, x_1 + 1, math.inf)
    factor = velocity_loss(x_1 + 1, sample, prediction="x_1", scheduler=scheduler, reduction="none")
    loss = velocity_loss(output, sample, prediction="x_1", scheduler=scheduler, reduction="none")
    torch.testing.assert_close(loss, factor)
    assert loss.isfinite().all()


def test_the_weight_multiplies():
    scheduler, sample = CondOTScheduler(), draw(CondOTScheduler())
    output, weight = torch.randn_like(sample.x_t), torch.rand(16).double()
    options = {"prediction": "x_1", "scheduler": scheduler, "reduction": "none"}
    torch.testing.assert_close(
        velocity_loss(output, sample, weight=weight, **options),
        weight * velocity_loss(output, sample, **options),
    )


def test_bad_input(untyped):
    sample = draw(CondOTScheduler())
    output = torch.zeros_like(sample.x_t)
    with pytest.raises(ValueError, match=r"`prediction` must be one of .*; got 'x0'"):
        velocity_loss(output, sample, prediction="x0")
    with pytest.raises(ValueError, match=r"`space` must be one of .*; got 'pixel'"):
        velocity_loss(output, sample, space="pixel")
    with pytest.raises(ValueError, match=r"`scheduler` is needed for `prediction` = 'x_1' with"):
        velocity_loss(output, sample, prediction="x_1")
    with pytest.raises(ValueError, match=r"`t_eps` must lie in \(0, 0\.5\)"):
        velocity_loss(output, sample, prediction="x_1", scheduler=CondOTScheduler(), t_eps=0.0)
