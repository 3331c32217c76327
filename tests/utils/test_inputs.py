"""The door: what a time, a mask and extras may be, and what becomes of them."""

import copy
import pickle

import pytest
import torch
from torch import nn

from fm_ext.models import MaskedVelocityModel, UNet, UNetWrapper
from fm_ext.utils import ModelWrapper, shared
from fm_ext.utils.inputs import (
    align_time,
    check_answer,
    check_extras,
    check_mask,
    entry_mask,
    map_samples,
    open_shared,
    randn_like,
    sample_time,
    taken_extras,
)

STATES = [(3,), (3, 2), (3, 3), (3, 1, 3, 3), (3, 5, 2), (1, 4), (3, 2, 2, 2, 2)]


@pytest.mark.parametrize("shape", STATES)
def test_a_time_lines_up_with_the_batch_in_every_shape(shape):
    x, batch = torch.zeros(shape), shape[0]
    own = torch.rand(batch)
    beside = own.view(-1, *(1 for _ in shape[1:]))
    for t in (own, beside, beside.expand(shape)):
        assert torch.equal(align_time(t, x).expand(shape), beside.expand(shape))
        assert torch.equal(sample_time(t, x), own)
    for t in (torch.tensor(0.3), torch.tensor([0.3]), torch.full(len(shape) * (1,), 0.3)):
        assert align_time(t, x).shape == ()
        assert torch.equal(sample_time(t, x), torch.full((batch,), 0.3))


def test_a_time_an_entry_is_no_time_for_a_network():
    x, t = torch.zeros(3, 2), torch.rand(3, 2)
    assert torch.equal(align_time(t, x), t)
    with pytest.raises(
        ValueError, match=r"`t` must be one time a sample for a network; got \(3, 2\)"
    ):
        sample_time(t, x)


@pytest.mark.parametrize("shape", [(2,), (2, 1), (3, 3), (3, 1, 1)])
def test_other_shapes_of_a_time_are_refused(shape):
    for door in (align_time, sample_time):
        with pytest.raises(ValueError, match=r"`t` must be 0-d, \(1,\), \(batch,\).*; got \("):
            door(torch.rand(shape), torch.zeros(3, 2))


def test_a_time_is_a_floating_point_tensor():
    for door in (align_time, sample_time):
        with pytest.raises(
            TypeError, match=r"`t` must be floating point; got torch.int64.*t.float()"
        ):
            door(torch.tensor(1), torch.zeros(3, 2))
        with pytest.raises(TypeError, match=r"`t` must be a tensor; got float. .*as_tensor"):
            door(0.5, torch.zeros(3, 2))


def test_a_mask_is_expanded_to_the_batch():
    x = torch.zeros(3, 2, 4, 4)
    mask = torch.rand(1, 1, 4, 4) < 0.5
    assert torch.equal(check_mask(mask, x), mask.expand(3, 1, 4, 4))
    assert torch.equal(entry_mask({"mask": mask}, x), mask.expand(3, 1, 4, 4))
    assert torch.equal(check_extras({"mask": mask}, x)["mask"], mask.expand(3, 1, 4, 4))


def test_what_is_no_mask_says_how_it_becomes_one():
    x, soft = torch.zeros(2, 1, 2, 2), torch.tensor([0.0, 0.4, 0.6, 1.0]).view(1, 1, 2, 2)
    for values, code in ((soft, "mask > 0.5"), ((255 * soft).byte(), "mask > 127")):
        with pytest.raises(
            TypeError, match=r"`mask` must be bool with True = missing.*; got"
        ) as error:
            check_mask(values, x)
        assert code in str(error.value)
        mask = eval(code, {"mask": values})
        assert check_mask(mask, x)[0].flatten().tolist() == [False, False, True, True]
    with pytest.raises(TypeError, match=r"`mask` must be a tensor, .*; got ndarray"):
        check_mask((soft > 0.5).numpy(), x)
    check_mask(torch.as_tensor((soft > 0.5).numpy(), device=x.device), x)
    with pytest.raises(ValueError, match=r"`mask` must have as many axes as `x_1`.*\(2, 2\)"):
        check_mask(torch.ones(2, 2, dtype=torch.bool), x)


def test_any_other_mask_is_the_networks_own():
    x = torch.zeros(2, 3, 4)
    for mask in (torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3, 4), None, "left"):
        assert entry_mask({"mask": mask}, x) is None
        assert check_extras({"mask": mask}, x)["mask"] is mask


def test_tensors_hold_one_entry_a_sample_wherever_they_stand():
    x, y, table = torch.zeros(3, 2), torch.arange(3), torch.zeros(3, 5)
    extras = {"extra": {"label": y}, "parts": [y, (y,)], "n": torch.tensor(2), "s": shared(table)}
    checked = check_extras(extras, x)
    doubled = map_samples(checked, lambda e: torch.cat([e, e]))
    assert len(doubled["extra"]["label"]) == 6
    assert [len(doubled["parts"][0]), len(doubled["parts"][1][0])] == [6, 6]
    assert doubled["n"] is extras["n"] and doubled["s"].value is table
    opened = open_shared(doubled)
    assert opened["s"] is table


@pytest.mark.parametrize("extras", [{"e": {"label": torch.arange(2)}}, {"e": [torch.arange(4)]}])
def test_another_length_is_an_error_that_says_where(extras):
    with pytest.raises(ValueError, match=r"`e\[('label'|0)\]` must hold one entry a sample, \(3, "):
        check_extras(extras, torch.zeros(3, 2))


def test_shared_is_copied_and_pickled():
    mark = shared(torch.arange(3))
    for other in (copy.deepcopy(mark), pickle.loads(pickle.dumps(mark))):
        assert isinstance(other, shared) and torch.equal(other.value, mark.value)


def test_a_wrapper_says_what_it_takes_and_a_network_names_it():
    class Net(nn.Module):
        def forward(self, x, t, label=None):
            return x

    assert taken_extras(Net()) == {"label"}
    assert taken_extras(MaskedVelocityModel(Net())) == {"label", "mask"}
    assert taken_extras(torch.compile(Net(), backend="eager")) == {"label"}
    assert taken_extras(ModelWrapper(lambda x, t, **more: x)) is None
    net = UNet(2, 1, channels=8, multipliers=(1,), attention=(), num_classes=3)
    named = {"label", "r", "guidance_scale"}  # what it was not built for it refuses when asked
    assert taken_extras(UNetWrapper(net, concat=("mask",))) == named | {"mask", "hide_known"}


def test_an_answer_is_a_tensor_of_the_states_shape():
    x = torch.zeros(2, 3)
    assert check_answer(x, x, None) is x
    with pytest.raises(
        ValueError, match=r"shape of its state, \(2, 3\); list answered with \(2, 1\)"
    ):
        check_answer(x[:, :1], x, [])
    with pytest.raises(
        TypeError, match=r"`model` must answer with a tensor; list answered with dict"
    ):
        check_answer({}, x, [])


def test_noise_is_drawn_where_the_generator_lives():
    x = torch.empty(2, 3, device="meta")
    assert randn_like(x, torch.Generator().manual_seed(0)).device.type == "meta"
    x = torch.empty(2, 3)
    one, two = (randn_like(x, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one, two)
