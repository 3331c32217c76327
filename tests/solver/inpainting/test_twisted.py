"""Twisted sequential Monte Carlo: the fills of one image share its modes rightly."""

import pytest
import torch
from flow_matching.path.scheduler import CondOTScheduler
from torch.testing import assert_close

from fm_ext.metrics import energy_distance
from fm_ext.models import EmpiricalVelocityModel
from fm_ext.solver import InpaintingSolver
from fm_ext.solver.inpainting.problem import Problem
from fm_ext.solver.inpainting.twisted import TwistedSMC

MEANS = torch.tensor([[-0.5, 0.3, -2.0, 1.0], [0.4, 0.0, 2.0, 1.5], [0.1, -0.4, 0.5, -2.0]])
WEIGHTS = torch.tensor([0.5, 0.2, 0.3])
MASK = torch.tensor([[False, False, True, True]])
IMAGE = torch.tensor([[0.2, 0.1, 0.0, 0.0], [-0.6, 0.2, 0.0, 0.0]])


def mixture(scheduler):
    return EmpiricalVelocityModel(MEANS, scheduler, 0.4, weights=WEIGHTS)


def problem(model, image, mask, copies=1, noise_std=0.0, seed=0):
    return Problem(
        model,
        image.masked_fill(mask, 0.0),
        ~mask,
        noise_std=noise_std,
        steps=50,
        source=None,
        coupled=False,
        generator=torch.Generator().manual_seed(seed),
        extras={},
        dtype=image.dtype,
        progress=False,
        copies=copies,
    )


def test_modes_have_their_weights(generator):
    scheduler = CondOTScheduler()
    model = mixture(scheduler)
    exact = model.sample_posterior(IMAGE, mask=MASK, fills=1000, generator=generator)
    distances, errors = {}, {}
    for method in ("moment_matching", "twisted_smc"):
        fills = InpaintingSolver(model, scheduler, method).sample(
            IMAGE, mask=MASK, fills=100, generator=generator
        )
        distances[method] = max(energy_distance(fills[:, i], exact[:, i]) for i in range(2))
        shares = torch.stack([model.posterior_weights(f, torch.ones(())).mean(0)
                              for f in fills.unbind(1)])  # fmt: skip
        true = model.inpainting_weights(IMAGE, mask=MASK)
        errors[method] = (shares - true).abs().sum(1).max() / 2
    assert distances["twisted_smc"] < 0.03 < distances["moment_matching"], distances
    assert errors["twisted_smc"] < min(0.12, errors["moment_matching"]), errors


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_the_twist_is_the_gaussian_likelihood(noise_std):
    # Two points: the covariance is a multiple of the identity and one direction, which two products find.
    data = torch.randn(2, 12, dtype=torch.float64)
    mask = torch.arange(12)[None] >= 7
    model = EmpiricalVelocityModel(data, CondOTScheduler(), 0.5)
    x, t = torch.randn(5, 12, dtype=torch.float64), 0.4
    p = problem(model, torch.randn(5, 12, dtype=torch.float64), mask, noise_std=noise_std)
    x_1, shift, solution, twist = TwistedSMC(products=2).twisted(p, x, t)
    jacobian = torch.stack(
        [torch.func.jacrev(lambda x: model.target(x[None], torch.tensor(t))[0])(row) for row in x]
    )
    covariance = (1 - t) ** 2 / t * jacobian
    seen = covariance[:, :7, :7] + noise_std**2 * torch.eye(7)
    law = torch.distributions.MultivariateNormal(x_1[:, :7], seen)
    expected = law.log_prob(p.y.expand(5, 12)[:, :7])
    assert_close(twist - expected, (twist - expected)[:1].expand(5), rtol=0, atol=1e-6)
    weights = torch.linalg.solve(seen, (p.y - x_1)[:, :7])
    assert_close(solution[:, :7], weights, rtol=1e-6, atol=1e-6)
    assert_close(shift, (covariance[:, :, :7] @ weights[:, :, None])[:, :, 0], rtol=1e-6, atol=1e-6)


def test_one_fill_is_moment_matching(generator):
    model = mixture(CondOTScheduler())
    fills = [
        InpaintingSolver(model, CondOTScheduler(), method).sample(
            IMAGE, mask=MASK, generator=torch.Generator().manual_seed(1)
        )
        for method in ("moment_matching", "twisted_smc")
    ]
    assert_close(*fills)


def test_images_do_not_share_weights():
    # The second image's fills are the same whatever the first one is, but for the numbers of their own drawing.
    solver = TwistedSMC()
    p = problem(mixture(CondOTScheduler()), IMAGE.repeat(4, 1), MASK, copies=4)
    weights = torch.zeros(8)
    weights[2] = 50.0  # copy 1 of image 0
    chosen = solver.resampled(p, weights)
    assert chosen.rows.view(4, 2).tolist() == [[2, 1], [2, 3], [2, 5], [2, 7]]
    assert chosen.drawn.view(4, 2)[0].tolist() == [True, False]
    assert solver.resampled(p, torch.zeros(8)) is None
    counts = torch.zeros(4)
    for seed in range(500):
        p = problem(mixture(CondOTScheduler()), IMAGE[:1].repeat(4, 1), MASK, 4, seed=seed)
        share = torch.tensor([0.05, 0.1, 0.15, 0.7], dtype=torch.float64)
        counts += torch.bincount(solver.resampled(p, share.log()).rows, minlength=4)
    assert_close(counts / 2000, share.float(), rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_known_and_everything_known(dtype):
    model = mixture(CondOTScheduler())
    image = IMAGE.to(dtype)
    solver = InpaintingSolver(model, CondOTScheduler(), "twisted_smc")
    for missing in (True, False):
        mask = torch.full((1, 4), missing)
        fills = solver.sample(image, mask=mask, fills=8, steps=20)
        assert fills.isfinite().all()
        assert missing or torch.equal(fills, image.expand(8, 2, 4))


@pytest.mark.parametrize(
    "option, rule",
    [
        ({"products": 0}, "`products` of method 'twisted_smc' must be a whole number"),
        ({"until": 1.0}, "`until` of method 'twisted_smc' must be in"),
        ({"threshold": 0.0}, "`threshold` of method 'twisted_smc' must be in"),
        ({"start": 0.0}, "`start` of method 'twisted_smc' must be in"),
    ],
)
def test_options(option, rule):
    with pytest.raises(ValueError, match=rule):
        InpaintingSolver(mixture(CondOTScheduler()), CondOTScheduler(), "twisted_smc", **option)
