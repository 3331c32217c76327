"""Known entries are exact under every solver."""

import pytest
import torch
from flow_matching.solver import ODESolver
from flow_matching.utils import ModelWrapper

from fm_ext.models import MaskedVelocityModel

METHODS = ["euler", "midpoint", "heun2", "heun3", "rk4", "dopri5"]


class Wild(ModelWrapper):
    """A velocity that is large and different everywhere."""

    def __init__(self):
        super().__init__(None)

    def forward(self, x, t, mask=None, **extras):
        self.mask = mask
        return 3 * torch.sin(5 * x) + t + x.flip(-1)


@pytest.mark.parametrize("method", METHODS)
def test_known_entries_are_bit_exact(method):
    noise = torch.randn(4, 3, 8, 8)
    image = torch.randn(4, 3, 8, 8)
    if (
        method == "dopri5"
    ):  # interpolates at the end: exact for 8-bit images, see MaskedVelocityModel
        image = torch.randint(0, 256, image.shape) / 127.5 - 1
    mask = torch.rand(4, 1, 8, 8) < 0.5
    x_init = torch.where(mask, noise, image)
    result = ODESolver(MaskedVelocityModel(Wild())).sample(
        x_init=x_init,
        step_size=None if method == "dopri5" else 0.1,
        method=method,
        time_grid=torch.linspace(0, 1, 4),
        return_intermediates=True,
        mask=mask,
    )
    known = ~mask.expand_as(image)
    for state in result:
        assert torch.equal(state[known], image[known])
    assert not torch.isclose(result[-1], x_init)[~known].all()


def test_missing_entries_see_the_models_velocity():
    x, t = torch.randn(4, 3, 8, 8), torch.rand(4)
    mask = torch.rand(4, 1, 8, 8) < 0.5
    wild = Wild()
    wild.forward = lambda x, t, mask=None: torch.full_like(x, torch.inf)
    v = MaskedVelocityModel(wild)(x=x, t=t, mask=mask)
    assert v[mask.expand_as(x)].eq(torch.inf).all() and v[~mask.expand_as(x)].eq(0).all()


def test_mask_is_passed_unless_told_otherwise():
    x, mask = torch.randn(1, 1, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.bool)
    wild = Wild()
    MaskedVelocityModel(wild)(x=x, t=torch.tensor(0.0), mask=mask)
    assert torch.equal(wild.mask, mask)
    MaskedVelocityModel(wild, pass_mask=False)(x=x, t=torch.tensor(0.0), mask=mask)
    assert wild.mask is None


def test_bad_input():
    x = torch.randn(1, 1, 2, 2)
    with pytest.raises(TypeError, match="`mask` is required, bool with True = missing"):
        MaskedVelocityModel(Wild())(x=x, t=torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"`mask` must have as many axes as `x`"):
        mask = torch.ones(1, 2, 2, dtype=torch.bool)
        MaskedVelocityModel(Wild())(x=x, t=torch.tensor(0.0), mask=mask)
