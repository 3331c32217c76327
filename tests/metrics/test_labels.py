"""Laws of the figures of predicted classes."""

import math

import pytest
import torch

from fm_ext.metrics import class_balance, class_entropy, jackknife

EVEN = torch.full((10,), 0.1)


def test_balanced_labels():
    labels = torch.arange(1000) % 10
    torch.testing.assert_close(class_balance(labels, EVEN).item(), 0.0)
    torch.testing.assert_close(class_entropy(labels, 10).item(), math.log(10))


def test_one_class():
    labels = torch.full((50,), 3)
    torch.testing.assert_close(class_balance(labels, EVEN).item(), 0.9)
    assert class_entropy(labels, 10) == 0


def test_balance_is_what_has_to_change():
    labels = torch.tensor([0] * 60 + [1] * 40)
    reference = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    torch.testing.assert_close(class_balance(labels, reference).item(), 0.35)


def test_balance_of_fair_draws_is_as_documented():
    draws = [class_balance(torch.randint(10, (10_000,)), EVEN) for _ in range(200)]
    torch.testing.assert_close(torch.stack(draws).mean().item(), 0.012, rtol=0.05, atol=0)


def test_takes_an_interval():
    labels = torch.randint(10, (1000,))
    estimate = jackknife(lambda y: class_entropy(y, 10), labels)
    assert estimate.low < estimate.value < estimate.high


def test_errors(untyped):
    labels = torch.arange(10)
    with pytest.raises(ValueError, match=r"`labels` must lie in 0..8; got 0 to 9"):
        class_entropy(labels, 9)
    with pytest.raises(ValueError, match=r"`labels` must lie in 0..9; got -1 to 8"):
        class_balance(labels - 1, EVEN)
    with pytest.raises(ValueError, match="`labels` must hold at least one label"):
        class_entropy(labels[:0], 10)
    with pytest.raises(ValueError, match=r"`reference` must be probabilities.*their sum is 10"):
        class_balance(labels, EVEN * 100)
    with pytest.raises(
        ValueError, match=r"in torch\.float16\. Divide counts by their sum, in float32"
    ):
        class_balance(labels, EVEN.half())
    with pytest.raises(TypeError, match="`labels` must be integers"):
        class_entropy(labels.float(), 10)
