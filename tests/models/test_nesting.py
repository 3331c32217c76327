"""Every nesting of the model wrappers is right, or refused with the right nesting written out."""

import itertools
import re

import pytest
import torch
from flow_matching.path.scheduler import CondOTScheduler
from flow_matching.path.scheduler import ScheduleTransformedModel as UpstreamTransformedModel
from flow_matching.utils import ModelWrapper as UpstreamModelWrapper
from torch import nn
from torch.testing import assert_close

from fm_ext.models import (
    GuidedVelocityModel,
    MaskedVelocityModel,
    PredictionVelocityModel,
    UNetWrapper,
)
from fm_ext.path import AffineProbPath
from fm_ext.path.scheduler import CosineScheduler, ScheduleTransformedModel
from fm_ext.utils import ModelWrapper

RHO, SHIFT, SCALE = (
    0.9,
    0.7,
    2.5,
)  # of the pair (y, m) with variance 1; of the mean a class; of guidance
OLD, NEW = CosineScheduler(), CondOTScheduler()
MASK = torch.tensor([False, True]).view(1, 1, 1, 2)
X = torch.randn(8, 1, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABEL = torch.arange(8) % 3  # 2 is the null class
TIMES = torch.linspace(0.05, 0.95, 8, dtype=torch.float64)


def target(x, alpha, sigma, label):
    """E[m | m_t, y, label]: of the second entry of `x`, with the first as known."""
    y, m = x[..., :1], x[..., 1:]
    mean = RHO * y + SHIFT * (2 - label).view(-1, 1, 1, 1)
    variance = 1 - RHO**2
    gain = alpha * variance / (alpha**2 * variance + sigma**2)
    return mean + gain * (m - alpha * mean)


class Network(nn.Module):
    """The best prediction for missing entries, on the old schedule; what it says of known ones is rubbish."""

    null_label = 2

    def __init__(self, prediction, takes_mask=True):
        super().__init__()
        self.prediction, self.takes_mask = prediction, takes_mask

    def forward(self, x, t, label, mask=None):
        assert (mask is not None) == self.takes_mask
        if mask is not None:
            assert mask.shape == x.shape
        at = OLD(t.view(-1, 1, 1, 1))
        x_1 = target(x, at.alpha_t, at.sigma_t, label)
        if self.prediction == "velocity":
            path = AffineProbPath(OLD)
            x_1 = path.target_to_velocity(x_1, x[..., 1:], t.view(-1, 1, 1, 1))
        return torch.cat([torch.full_like(x_1, 9.0), x_1], dim=-1)


def truth(names, t):
    schedule = NEW if "ScheduleTransformedModel" in names else OLD
    path = AffineProbPath(schedule)
    time = t.view(-1, 1, 1, 1)
    at = schedule(time)

    def velocity(label):
        x_1 = target(X, at.alpha_t, at.sigma_t, label)
        return path.target_to_velocity(x_1, X[..., 1:], time)

    v = velocity(LABEL)
    if "GuidedVelocityModel" in names:
        null = velocity(torch.full_like(LABEL, 2))
        v = null + SCALE * (v - null)
    return v


BUILD = {
    "MaskedVelocityModel": MaskedVelocityModel,
    "GuidedVelocityModel": lambda model: GuidedVelocityModel(model, SCALE),
    "ScheduleTransformedModel": lambda model: ScheduleTransformedModel(model, OLD, NEW),
    "PredictionVelocityModel": lambda model: PredictionVelocityModel(
        model, OLD, "x_1", t_eps=(1e-9, 1e-9)
    ),
}
ORDERS = [
    names for count in range(len(BUILD) + 1) for names in itertools.permutations(BUILD, count)
]


def nest(names, model):
    """`names` from the outermost to the innermost."""
    for name in reversed(names):
        model = BUILD[name](model)
    return model


def check(names, model):
    for t in (TIMES, TIMES[3], TIMES[3:4]):
        v = model(x=X, t=t, label=LABEL, mask=MASK)
        assert_close(v[..., 1:], truth(names, t.expand(8) if t.numel() == 1 else t))
        if set(names) - {"GuidedVelocityModel"}:
            assert v[..., :1].eq(0).all(), "known entries stay"


def network(names):
    prediction = "x_1" if "PredictionVelocityModel" in names else "velocity"
    return UNetWrapper(Network(prediction).double(), arguments={"x": "x"})


def test_there_are_65_orders():
    assert len(ORDERS) == 65
    refused = [names for names in ORDERS if is_refused(names)]
    assert len(refused) == 19


def is_refused(names):
    """A prediction is made a velocity next to the network: outside of a change of schedule it comes too late."""
    both = {"PredictionVelocityModel", "ScheduleTransformedModel"} <= set(names)
    return both and names.index("PredictionVelocityModel") < names.index("ScheduleTransformedModel")


@pytest.mark.parametrize("names", ORDERS, ids="-".join)
def test_every_order(names):
    inside = network(names)
    if not is_refused(names):
        check(names, nest(names, inside))
        return
    with pytest.raises(ValueError, match="Convert the network inside: ") as error:
        nest(names, inside)
    advice = str(error.value).split("inside: ")[1]
    right = tuple(re.findall(r"\w+Model(?=\()", advice))
    outside = names[: names.index("PredictionVelocityModel")]
    within = names[
        names.index("ScheduleTransformedModel") + 1 :
    ]  # what the advice calls the network
    assert sorted(outside + right + within) == sorted(names)
    check(names, nest(outside + right + within, inside))


@pytest.mark.parametrize("names", ORDERS, ids="-".join)
def test_a_network_that_takes_no_mask(names):
    """`pass_mask=False` stands next to it, or is refused."""
    names = (*(name for name in names if name != "MaskedVelocityModel"),)
    prediction = "x_1" if "PredictionVelocityModel" in names else "velocity"
    inside = UNetWrapper(Network(prediction, takes_mask=False).double())
    hidden = MaskedVelocityModel(inside, pass_mask=False)
    if is_refused(names):
        return
    check(("MaskedVelocityModel", *names), nest(names, hidden))
    around = nest(names, inside)
    if "PredictionVelocityModel" in names or "ScheduleTransformedModel" in names:
        with pytest.raises(ValueError, match=r"Put the network .* inside: \w+\(MaskedVelocity"):
            MaskedVelocityModel(around, pass_mask=False)
    else:
        check(("MaskedVelocityModel", *names), MaskedVelocityModel(around, pass_mask=False))


class Doubled(ModelWrapper):
    """A user's own wrapper, which declares nothing."""

    def forward(self, x, t, **extras):
        return 2 * self.ask(x, t, extras)


@pytest.mark.parametrize("plain", [Doubled, UpstreamModelWrapper])
def test_a_wrapper_of_the_users_own_nests(plain):
    model = plain(PredictionVelocityModel(network(["PredictionVelocityModel"]), OLD, "x_1"))
    v = MaskedVelocityModel(model)(x=X, t=TIMES, label=LABEL, mask=MASK)
    assert_close(v[..., 1:], (1 + (plain is Doubled)) * truth((), TIMES))
    if plain is Doubled:
        with pytest.raises(
            ValueError, match=r"Doubled\(ScheduleTransformedModel\(PredictionVelocityModel\(network"
        ):
            PredictionVelocityModel(
                model.__class__(nest(["ScheduleTransformedModel"], model.model)), NEW, "x_1"
            )


def test_schedules_that_do_not_agree_are_refused():
    inner = PredictionVelocityModel(network(["PredictionVelocityModel"]), OLD, "x_1")
    with pytest.raises(ValueError, match=r"`original_scheduler` must be the schedule of the model"):
        ScheduleTransformedModel(MaskedVelocityModel(inner), NEW, OLD)
    ScheduleTransformedModel(MaskedVelocityModel(inner), CosineScheduler(), NEW)
    with pytest.raises(ValueError, match=r"`scheduler` must be the schedule of the model"):
        PredictionVelocityModel(inner, NEW)


def test_upstreams_transform_rescales_known_entries_and_is_refused():
    model = UpstreamTransformedModel(network([]), OLD, NEW)
    with pytest.raises(ValueError, match=r"upstream's ScheduleTransformedModel, which rescales"):
        MaskedVelocityModel(model)
    names = ("MaskedVelocityModel", "ScheduleTransformedModel")
    check(names, MaskedVelocityModel(ScheduleTransformedModel(model.model, OLD, NEW)))


def test_a_wrong_shape_is_an_error_at_the_first_wrapper_that_sees_it():
    class Grey(nn.Module):
        def forward(self, x, t, mask=None):
            return x[:, :1]

    x, mask = torch.randn(2, 3, 4, 4), torch.rand(2, 1, 4, 4) < 0.5
    for model in (
        MaskedVelocityModel(Grey()),
        ScheduleTransformedModel(Grey(), OLD, NEW),
        PredictionVelocityModel(Grey(), OLD, "x_1"),
        UNetWrapper(Grey()),
        ModelWrapper(Grey()),
    ):
        with pytest.raises(ValueError, match=r"Grey answered with \(2, 1, 4, 4\)"):
            model(x=x, t=torch.tensor(0.5), mask=mask)
