"""Laws of the distance to the training set."""

import pytest
import torch

from fm_ext.metrics import memorisation, nearest_distance


def test_nearest_by_brute_force():
    x, train = torch.randn(30, 2, 3, 3), torch.randn(200, 2, 3, 3)
    expected = torch.stack([(train - row).flatten(1).norm(dim=1).min() for row in x])
    torch.testing.assert_close(nearest_distance(x, train), expected.double())
    assert nearest_distance(train[:5], train).tolist() == [0.0] * 5
    assert nearest_distance(train[:5] + 1e4, train + 1e4).tolist() == [0.0] * 5


@pytest.mark.parametrize("copies, expected", [(0, 0.5), (500, 0.75), (1000, 1.0)])
def test_copies_are_found(copies, expected):
    train, fresh, held_out = torch.randn(3, 1000, 6)
    samples = torch.cat([train[:copies] + 1e-3, fresh[copies:]])
    value = memorisation(nearest_distance(samples, train), nearest_distance(held_out, train))
    assert abs(value - expected) < 0.03


def test_is_the_fraction_of_pairs():
    x, y = torch.randint(5, (40,)).float(), torch.randint(5, (30,)).float()
    pairs = (x.unsqueeze(1) < y).double() + 0.5 * (x.unsqueeze(1) == y)
    torch.testing.assert_close(memorisation(x, y), pairs.mean())
    assert memorisation(x, x) == 0.5


def test_errors(untyped):
    x = torch.randn(5, 2)
    with pytest.raises(ValueError, match=r"`samples` and `train` must be .* rows of one shape"):
        nearest_distance(x, torch.randn(5, 3))
    with pytest.raises(ValueError, match="must hold distances; got 0 and 5"):
        memorisation(x[:0, 0], x[:, 0])
    with pytest.raises(ValueError, match=r"`samples` must hold one finite distance a sample"):
        memorisation(x[:, :1], x[:, 0])
    with pytest.raises(
        ValueError, match=r"`held_out` must hold one finite distance.*finite: False"
    ):
        memorisation(x[:, 0], x[:, 0] * torch.nan)
