"""Names of schedulers: found, written down, read back."""

import json
from importlib.metadata import EntryPoint

import pytest
import torch
from flow_matching.path import scheduler as upstream
from flow_matching.path.scheduler import Scheduler, SchedulerOutput

import fm_ext.path.scheduler as ours
from fm_ext.path.scheduler import (
    CosineScheduler,
    ShiftedScheduler,
    VPScheduler,
    get_scheduler,
    register_scheduler,
    registry,
    scheduler_config,
    scheduler_names,
)


class PluginScheduler(Scheduler):
    """What a third package would bring."""

    def __init__(self, power: float = 1.0):
        self.power = power

    def __call__(self, t):
        return SchedulerOutput(t, 1 - t, torch.ones_like(t), -torch.ones_like(t))

    def snr_inverse(self, snr):
        return snr / (1 + snr)


@pytest.fixture
def private_registry(monkeypatch):
    monkeypatch.setattr(registry, "_SCHEDULERS", dict(registry._SCHEDULERS))


@pytest.fixture
def installed_plugin(monkeypatch, private_registry):
    """A package that declares an entry point, as its metadata would."""
    point = EntryPoint("plugin", f"{__name__}:PluginScheduler", registry.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: PluginScheduler)
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [point] if group == "fm_ext.schedulers" else []
    )


def test_every_final_scheduler_is_registered():
    def concrete(room):
        found = (getattr(room, name) for name in room.__all__)
        found = {c for c in found if isinstance(c, type) and issubclass(c, Scheduler)}
        return {c for c in found if not getattr(c, "__abstractmethods__", None)}

    assert set(registry._SCHEDULERS.values()) == concrete(ours) | concrete(upstream)
    assert scheduler_names() == sorted(scheduler_names())


def test_config_survives_json(case, make):
    scheduler, t = make(case), torch.rand(50, dtype=torch.float64)
    config = json.loads(json.dumps(scheduler_config(scheduler)))
    twin = get_scheduler(**config)
    assert type(twin) is type(scheduler) and scheduler_config(twin) == config
    for name, value in vars(scheduler(t)).items():
        assert torch.equal(getattr(twin(t), name), value)


def test_config_says_every_argument_and_nests():
    scheduler = ShiftedScheduler(VPScheduler(beta_max=12.0), shift=3.0)
    assert scheduler_config(scheduler) == {
        "name": "shifted",
        "scheduler": {"name": "vp", "beta_min": 0.1, "beta_max": 12.0},
        "shift": 3.0,
    }
    assert get_scheduler(**scheduler_config(scheduler)) == scheduler


def test_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(ValueError, match=r"`name` must be one of .*cond_ot, .*vp; got 'cosin'"):
        get_scheduler("cosin")
    with pytest.raises(ValueError, match=r"Did you mean 'cosine'\?"):
        get_scheduler("cosin")


def test_unknown_argument_lists_the_known():
    with pytest.raises(TypeError, match=r"'vp' takes `beta_min`, `beta_max`; got `beta_mix`"):
        get_scheduler("vp", beta_mix=1.0)
    with pytest.raises(TypeError, match=r"'cosine' takes no arguments; got `s`"):
        get_scheduler("cosine", s=0.008)


def test_a_third_package_registers_by_decorator(private_registry):
    register_scheduler("plugin")(PluginScheduler)
    assert "plugin" in scheduler_names()
    assert scheduler_config(get_scheduler("plugin", power=2.0)) == {"name": "plugin", "power": 2.0}


def test_a_third_package_registers_by_entry_point(installed_plugin):
    assert "plugin" in scheduler_names() and "plugin" not in registry._SCHEDULERS
    assert scheduler_config(PluginScheduler(3.0)) == {"name": "plugin", "power": 3.0}
    assert get_scheduler("plugin", power=2.0).power == 2.0


def test_what_cannot_be_registered(private_registry, untyped):
    with pytest.raises(ValueError, match=r"`name` must be new; 'cosine' is .*CosineScheduler"):
        register_scheduler("cosine")(PluginScheduler)
    assert register_scheduler("cosine")(CosineScheduler) is CosineScheduler
    with pytest.raises(TypeError, match=r"must decorate a subclass of .*Scheduler; got"):
        register_scheduler("a_function")(lambda t: t)  # type: ignore[arg-type]


def test_what_cannot_be_written_down(private_registry):
    with pytest.raises(ValueError, match=r"PluginScheduler is not\. Decorate it"):
        scheduler_config(PluginScheduler())
    register_scheduler("plugin")(PluginScheduler)
    with pytest.raises(TypeError, match=r"numbers, strings, .*got object"):
        scheduler_config(PluginScheduler(object()))  # type: ignore[arg-type]
