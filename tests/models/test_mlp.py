"""Laws of the network for points."""

import pytest
import torch
from flow_matching.solver import ODESolver
from torch import nn

from fm_ext.models import MLP


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_shapes_layers_and_time(dim):
    model = MLP(dim, 16)
    linear = [layer for layer in model.net if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in linear] == [dim + 1, 16, 16, 16]
    assert isinstance(model.net[-1], nn.Linear) and linear[-1].out_features == dim
    x, t = torch.randn(7, dim), torch.rand(7)
    expected = torch.cat([model(x=x[i : i + 1], t=t[i]) for i in range(7)])
    torch.testing.assert_close(model(x=x, t=t), expected)
    torch.testing.assert_close(model(x=x, t=t[:, None]), expected)
    assert not torch.equal(model(x=x, t=t + 0.1), expected)


def test_velocities_have_both_signs():
    v = MLP(2)(x=10 * torch.randn(256, 2), t=torch.rand(256))
    assert (v > 0).any() and (v < 0).any()


def test_it_is_a_velocity_model_in_any_dtype():
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.randn(5, 2, dtype=dtype)
        sample = ODESolver(MLP(activation=nn.SiLU).to(dtype)).sample(x, step_size=0.5)
        assert sample.shape == x.shape and sample.dtype == dtype


def test_bad_input(untyped):
    with pytest.raises(ValueError, match=r"`dim` and `hidden` must be positive; got 0 and 128"):
        MLP(0)
    with pytest.raises(ValueError, match=r"`x` must be \(batch, 2\); got \(4, 3\)"):
        MLP(2)(torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(ValueError, match=r"`t` must be 0-d, .*got \(3,\)"):
        MLP(2)(torch.zeros(4, 2), torch.zeros(3))
