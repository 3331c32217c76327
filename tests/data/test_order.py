import numpy as np
import pytest

from fm_ext.data.order import uniform


def grid(epochs: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    epoch, row = np.divmod(np.arange(epochs * rows), rows)
    return epoch, row


def test_uniform_is_a_function_of_its_words_alone() -> None:
    epoch, row = grid(3, 50)
    values = uniform(7, epoch, row, draw=1)
    order = np.random.default_rng(0).permutation(150)
    np.testing.assert_array_equal(uniform(7, epoch[order], row[order], draw=1), values[order])
    assert uniform(7, epoch[:1], row[:1], draw=1) == values[:1]


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 1])
def test_uniform_is_uniform(seed: int) -> None:
    values = uniform(seed, *grid(20, 5000), draw=0)
    assert 0 <= values.min() and values.max() < 1
    counts = np.bincount((values * 64).astype(int), minlength=64)
    chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert chi2 < 104  # 63 degrees of freedom: exceeded once in a thousand


def test_neighbouring_words_are_independent() -> None:
    epoch, row = grid(40, 2500)
    base = uniform(3, epoch, row, draw=0)
    others = {
        "seed": uniform(4, epoch, row, draw=0),
        "epoch": uniform(3, epoch + 1, row, draw=0),
        "row": uniform(3, epoch, row + 1, draw=0),
        "draw": uniform(3, epoch, row, draw=1),
        "swapped": uniform(3, row, epoch, draw=0),
    }
    for name, other in others.items():
        correlation = np.corrcoef(base < 0.5, other < 0.5)[0, 1]
        assert abs(correlation) < 0.015, name  # 4.7 standard errors of 1e5 samples
