"""Laws of a source with noise."""

import pytest
import torch

from fm_ext.coupling import IndependentCoupling, NoisySource


def test_noise_has_its_standard_deviation_and_leaves_the_order():
    x_0 = torch.randn(20000, 2)
    noisy, index = NoisySource(0.3)(x_0, x_0)
    assert torch.equal(index, torch.arange(20000))
    torch.testing.assert_close((noisy - x_0).std(0), torch.full((2,), 0.3), rtol=0.03, atol=0)
    torch.testing.assert_close((noisy - x_0).mean(0), torch.zeros(2), rtol=0, atol=0.01)


def test_source_and_call_are_the_same_noise_by_the_same_generator(generator):
    x_0 = torch.randn(5, 3, 4, 4)
    state = generator.get_state()
    trained, _ = NoisySource(0.1)(x_0, x_0, generator=generator, label=torch.zeros(5))
    generator.set_state(state)
    assert torch.equal(NoisySource(0.1).source(x_0, generator=generator), trained)


def test_no_noise_is_the_identity():
    x_0 = torch.randn(5, 2)
    assert torch.equal(NoisySource(0.0)(x_0, x_0)[0], x_0)
    assert IndependentCoupling().source(x_0) is x_0


def test_bad_input(untyped):
    for std in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`std` must be finite and not negative"):
            NoisySource(std)
    with pytest.raises(TypeError, match="`x_0` must be floating point"):
        NoisySource(1)(torch.zeros(2, 2).long(), torch.zeros(2, 2).long())
