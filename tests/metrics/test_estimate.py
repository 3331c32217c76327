"""Laws of figures with intervals."""

import math

import pytest
import torch

from fm_ext.metrics import Estimate, density, frechet_distance, hole_psnr, jackknife


def test_interval_of_a_mean_is_the_known_one():
    x = torch.randn(10_000, dtype=torch.float64)
    estimate = jackknife(torch.mean, x, resamples=2000)
    assert estimate.value == x.mean() and estimate.count == 10_000
    assert (estimate.high + estimate.low) / 2 == pytest.approx(estimate.value)
    half = 1.96 * x.std().item() / math.sqrt(10_000)
    assert estimate.high - estimate.value == pytest.approx(half, rel=0.05)


def test_odd_counts_and_levels():
    """Of 5 rows the halves have 2: the factor is that of a mean of n, for every n."""
    x = torch.randn(5, dtype=torch.float64)
    half = x.std().item() / math.sqrt(5)
    one_sigma = jackknife(torch.mean, x, resamples=5000, level=0.6827)
    assert one_sigma.high - one_sigma.value == pytest.approx(half, rel=0.05)


@pytest.mark.parametrize("statistic, usually", [(frechet_distance, 10), (density, 32)])
def test_holds_what_it_claims_where_the_usual_bootstrap_fails(statistic, usually):
    """At least 35 of 40 intervals hold the figure's mean (0.95 of 40 is 38); with replacement at most `usually`."""
    values, halves, usual = [], [], []
    for _ in range(40):
        x, y = torch.randn(2, 100, 6)
        values.append((estimate := jackknife(statistic, x, y, resamples=30)).value)
        halves.append(estimate[1:3])
        draws = [statistic(*(z[torch.randint(100, (100,))] for z in (x, y))) for _ in range(30)]
        usual.append(torch.stack(draws).quantile(torch.tensor([0.025, 0.975]).double()).tolist())
    mean = sum(values) / 40
    assert sum(low <= mean <= high for low, high in halves) >= 35
    assert sum(low <= mean <= high for low, high in usual) <= usually


def test_paired_rows_stay_together():
    target = torch.rand(20, 1, 4, 4) * 2 - 1
    mask = torch.rand(20, 1, 4, 4) > 0.5
    image = target + torch.arange(20).view(-1, 1, 1, 1) * 0.01
    estimate = jackknife(hole_psnr, image, target, mask, paired=True)
    assert estimate.low < estimate.value < estimate.high
    same = jackknife(lambda a, b: (a - b).abs().max(), target, target, paired=True)
    assert same == Estimate(0.0, 0.0, 0.0, 20)


def test_the_count_is_that_of_the_fewest():
    assert jackknife(lambda a, b: a.mean() - b.mean(), torch.randn(50), torch.randn(9)).count == 9


def test_unpaired_rows_are_drawn_apart(generator):
    x = torch.randn(50, dtype=torch.float64)
    estimate = jackknife(lambda a, b: a.mean() - b.mean(), x, x, generator=generator)
    assert estimate.value == 0 and estimate.high > 0


def test_the_same_twice_and_another_with_a_generator(generator):
    x = torch.randn(50, 1)
    assert jackknife(torch.mean, x) == jackknife(torch.mean, x)
    generator.manual_seed(1)
    assert jackknife(torch.mean, x) != jackknife(torch.mean, x, generator=generator)


def test_reads_well():
    estimate = Estimate(0.41234, 0.39812, 0.42654, 10_000)
    assert str(estimate) == f"{estimate}" == "0.4123 [0.3981, 0.4265] (n = 10000)"
    assert f"{estimate:.1f}" == "0.4 [0.4, 0.4] (n = 10000)"


def test_bad_arguments(untyped):
    x = torch.randn(10)
    for statistic, samples, settings, message in (
        (torch.mean, (), {}, "`samples` must be tensors with at least 4 rows each"),
        (torch.mean, (x[:3],), {}, r"at least 4 rows each; got \[3\]"),
        (torch.dot, (x, x[:5]), {"paired": True}, "`samples` must have equally many rows"),
        (torch.mean, (x,), {"resamples": 1}, "`resamples` must be at least 2; got 1"),
        (torch.mean, (x,), {"level": 95}, r"`level` must lie in \(0, 1\); got 95"),
        (lambda x: x.mean() / 0, (x,), {}, "`statistic` must return a finite number; got"),
        (torch.square, (x,), {}, r"`statistic` must return one number; got shape \(10,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            jackknife(statistic, *samples, **settings)
