"""Laws of all distances between two sets, and the closed form of each."""

import math

import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from fm_ext.metrics import (
    coverage,
    density,
    energy_distance,
    frechet_distance,
    kernel_distance,
    maximum_mean_discrepancy,
    precision,
    recall,
    sliced_wasserstein,
    wasserstein_distance,
)


def sliced(samples, reference):
    generator = torch.Generator().manual_seed(0)
    return sliced_wasserstein(samples, reference, generator=generator)


BIASED = [frechet_distance, sliced, wasserstein_distance]  # 0 on itself, refuse unequal counts
UNBIASED = [kernel_distance, maximum_mean_discrepancy, energy_distance]
MANIFOLD = [precision, recall, density, coverage]
DISTANCES = BIASED + UNBIASED
ALL = DISTANCES + MANIFOLD


def gaussians(count=500, dimension=4, shift=0.0, scale=1.0):
    x, y = torch.randn(2, count, dimension, dtype=torch.float64)
    return x * scale + shift, y


@pytest.mark.parametrize("distance", BIASED)
def test_zero_on_itself(distance):
    x, _ = gaussians()
    torch.testing.assert_close(distance(x, x), torch.zeros_like(x[0, 0]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("distance", UNBIASED)
def test_unbiased_at_zero(distance):
    """The mean over repetitions is 0 within three standard errors, even of small sets."""
    values = torch.stack([distance(*gaussians(20)) for _ in range(200)])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))
    assert values.min() < 0


@pytest.mark.parametrize("distance", DISTANCES)
def test_grows_with_the_shift(distance):
    x, y = gaussians(200)
    values = torch.stack([distance(x + shift, y) for shift in (0.0, 0.5, 1.0, 2.0)])
    assert values.diff().gt(0).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_symmetric(distance):
    x, y = gaussians(100, shift=1.0)
    torch.testing.assert_close(distance(x, y), distance(y, x))


@pytest.mark.parametrize("figure", ALL)
def test_order_shape_and_precision_do_not_matter(figure):
    x, y = gaussians(200, 12, shift=0.3)
    value = figure(x, y)
    torch.testing.assert_close(figure(x[torch.randperm(200)], y[torch.randperm(200)]), value)
    torch.testing.assert_close(figure(x.view(200, 3, 2, 2), y.view(200, 3, 2, 2)), value)
    single = figure(x.float(), y.float())
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [127, 128, 300])
@pytest.mark.parametrize("distance", UNBIASED)
def test_blocks_of_rows_do_not_matter(distance, count):
    """Against the definition over whole matrices."""
    x, y = gaussians(count, shift=0.5)
    h = torch.pdist(torch.cat([x, y])).median()
    kernel = {
        energy_distance: lambda a, b: -torch.cdist(a, b),
        kernel_distance: lambda a, b: (a @ b.T / 4 + 1) ** 3,
        maximum_mean_discrepancy: lambda a, b: (-torch.cdist(a, b).square() / (2 * h**2)).exp(),
    }[distance]
    distinct = [(k.sum() - k.trace()) / (count * (count - 1)) for k in (kernel(x, x), kernel(y, y))]
    torch.testing.assert_close(distance(x, y), sum(distinct) - 2 * kernel(x, y).mean())


def test_frechet_of_gaussians():
    """Against the formula with scipy's matrix root, and the closed form for the true moments."""
    mix = torch.randn(6, 6, dtype=torch.float64)
    x, y = gaussians(2000, 6)
    x = x @ mix + 1
    root = scipy.linalg.sqrtm((x.T.cov() @ y.T.cov()).numpy())
    shift = (x.mean(0) - y.mean(0)).square().sum()
    formula = shift + x.T.cov().trace() + y.T.cov().trace() - 2 * float(root.trace().real)
    torch.testing.assert_close(frechet_distance(x, y), formula)
    a, b = gaussians(100_000, 3, shift=2.0, scale=3.0)  # |m|^2 + d (3 - 1)^2 = 12 + 12
    torch.testing.assert_close(frechet_distance(a, b).item(), 24.0, rtol=0.01, atol=0)


def test_frechet_of_singular_features():
    """A constant and a doubled feature cost no digits: the trace over a rank-2 part stays exact."""
    x, y = gaussians(100, 2, shift=1.0, scale=2.0)
    wide = lambda z: torch.cat([z, torch.ones(100, 3), z[:, :1] * 1e-9], 1)
    torch.testing.assert_close(
        frechet_distance(wide(x), wide(y)), frechet_distance(x, y), rtol=1e-9, atol=0
    )


def test_wasserstein_of_a_shift_and_brute_force():
    x, _ = gaussians(50)
    torch.testing.assert_close(wasserstein_distance(x + 1.5, x).item(), 3.0)
    a, b = gaussians(40, 1)
    sorted_cost = (a.sort(0).values - b.sort(0).values).square().mean().sqrt()
    torch.testing.assert_close(wasserstein_distance(a, b), sorted_cost)
    torch.testing.assert_close(sliced(a, b), sorted_cost.square())


def test_sliced_wasserstein_of_a_shift():
    """|m|^2 / d, on average over the directions."""
    x, _ = gaussians(10, 5)
    value = sliced_wasserstein(x + torch.arange(5), x, projections=100_000)
    torch.testing.assert_close(value.item(), 30 / 5, rtol=0.02, atol=0)


def test_energy_distance_is_scipys():
    x, y = (rows[:, 0] for rows in gaussians(60, 1, shift=0.5))
    pairs = [torch.pdist(z.unsqueeze(1)).mean() / 60 for z in (x, y)]  # scipy counts self-pairs
    ours = energy_distance(x.unsqueeze(1), y.unsqueeze(1)) + sum(pairs)
    torch.testing.assert_close(ours.sqrt().item(), float(scipy.stats.energy_distance(x, y)))


class Features(nn.Module):
    """For torchmetrics, which wants images."""

    num_features = 8

    def forward(self, images):
        return images.flatten(1)[:, :8].double()


@pytest.mark.filterwarnings("ignore:Metric .Kernel:UserWarning")
def test_agrees_with_torchmetrics():
    x, y = (torch.randint(0, 255, (200, 3, 4, 4), dtype=torch.uint8) for _ in range(2))
    y = y // 2
    frechet = FrechetInceptionDistance(Features()).set_dtype(torch.float64)
    kernel = KernelInceptionDistance(Features(), subsets=1, subset_size=200)
    for metric in (frechet, kernel):
        metric.update(x, real=False)
        metric.update(y, real=True)
    a, b = (Features()(images) for images in (x, y))
    torch.testing.assert_close(frechet_distance(a, b), frechet.compute())
    torch.testing.assert_close(kernel_distance(a, b), kernel.compute()[0], check_dtype=False)


def test_mmd_of_gaussians():
    """With E k = (h^2 / (h^2 + 2))^{d/2} exp(-|m|^2 / 2 (h^2 + 2)) between N(m, I) and N(0, I)."""
    x, y = gaussians(4000, 2, shift=1.0)
    factor = (4 / 6) ** 1
    expected = 2 * factor * (1 - math.exp(-2 / (2 * 6)))
    torch.testing.assert_close(
        maximum_mean_discrepancy(x, y, bandwidth=2.0).item(), expected, rtol=0.05, atol=0
    )


@pytest.mark.parametrize("dimension", [2, 16])
def test_manifold_figures_of_equal_distributions(dimension):
    x, y = gaussians(2000, dimension)
    assert abs(density(x, y) - 1) < 0.1
    assert abs(coverage(x, y) - (1 - 2**-5)) < 0.02
    torch.testing.assert_close(recall(x, y), precision(y, x))


@pytest.mark.parametrize("figure", MANIFOLD)
def test_manifold_figures_against_their_definition(figure):
    x, y = gaussians(60, 3, shift=0.7)
    k = 3 if figure in (precision, recall) else 5
    if figure is recall:
        x, y = y, x
    radii = [sorted(math.dist(a, b) for b in y.tolist())[k] for a in y.tolist()]
    inside = torch.tensor(
        [[math.dist(a, b) <= r for b, r in zip(y.tolist(), radii, strict=True)] for a in x.tolist()]
    )
    definition = {
        precision: inside.any(1).double().mean(),
        recall: inside.any(1).double().mean(),
        density: inside.double().sum() / (k * 60),
        coverage: inside.any(0).double().mean(),
    }[figure]
    value = figure(y, x) if figure is recall else figure(x, y)
    torch.testing.assert_close(value, definition)


def test_fidelity_and_coverage_are_told_apart():
    """Half of the modes, drawn well: precise, and half covered. Wide samples: the other way round."""
    modes = torch.tensor([[-20.0], [20.0]]).repeat_interleave(500, 0)
    y = modes + torch.randn(1000, 3)
    half = -20 + torch.randn(1000, 3)
    assert precision(half, y) > 0.9 and density(half, y) > 0.9
    assert recall(half, y) < 0.55 and coverage(half, y) < 0.55
    wide = torch.cat([y[:500] + 0.0, 100 * torch.randn(500, 3)])
    assert precision(wide, y) < 0.6


@pytest.mark.parametrize("figure", BIASED + MANIFOLD)
def test_unequal_counts_are_refused(figure):
    x, y = gaussians(50)
    with pytest.raises(ValueError, match=r"must have equally many rows.*got 40 and 50"):
        figure(x[:40], y)


@pytest.mark.parametrize("figure", UNBIASED)
def test_unequal_counts_are_taken(figure):
    x, y = gaussians(2000, shift=1.0)
    torch.testing.assert_close(figure(x[:1000], y), figure(x, y), rtol=0.15, atol=0)


@pytest.mark.parametrize("figure", ALL)
def test_bad_rows(figure, untyped):
    x, y = gaussians(20)
    with pytest.raises(ValueError, match=r"rows of one shape; got .20, 3. and .20, 4."):
        figure(x[:, :3], y)
    with pytest.raises(ValueError, match="must be finite"):
        figure(torch.full_like(x, torch.nan), y)


def test_too_few():
    x, y = gaussians(4, 4)
    with pytest.raises(ValueError, match=r"more rows than features.*got 4 rows of 4 features"):
        frechet_distance(x, y)
    for figure in UNBIASED:
        with pytest.raises(ValueError, match="`samples` must have at least 2 rows; got 1"):
            figure(x[:1], y)
    with pytest.raises(ValueError, match="`samples` must have at least 6 rows; got 4"):
        density(x, y)


def test_bad_settings():
    x, y = gaussians(20)
    with pytest.raises(ValueError, match="`projections` must be at least 1; got 0"):
        sliced_wasserstein(x, y, projections=0)
    with pytest.raises(ValueError, match="`neighbours` must be at least 1; got 0"):
        precision(x, y, neighbours=0)
    with pytest.raises(ValueError, match=r"`bandwidth` must be above 0; got 0.0"):
        maximum_mean_discrepancy(torch.ones(5, 2), torch.ones(5, 2))


def test_the_bandwidth_of_many_rows_does_not_depend_on_their_order():
    """Data sorted by class are ordinary."""
    x, y = (
        torch.randn(2500, 2) + 8 * torch.arange(2500).view(-1, 1).div(500, rounding_mode="floor")
        for _ in "ab"
    )
    sorted_, shuffled = (
        maximum_mean_discrepancy(x[i], y[i]) for i in (torch.arange(2500), torch.randperm(2500))
    )
    torch.testing.assert_close(sorted_, shuffled, rtol=1e-6, atol=1e-12)


def test_slices_are_the_same_twice():
    x, y = torch.randn(2, 50, 3)
    assert sliced_wasserstein(x, y) == sliced_wasserstein(x, y)
    other = torch.Generator().manual_seed(1)
    assert sliced_wasserstein(x, y) != sliced_wasserstein(x, y, generator=other)
