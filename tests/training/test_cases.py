"""Public entries on drawn inputs: a right answer, or an error that names the argument.

1,000 cases each: `HYPOTHESIS_PROFILE=thousand pytest -n0 tests/training/test_cases.py`.
"""

import math
import tempfile
import warnings
from pathlib import Path

import jaxtyping
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fm_ext.training import (
    ExponentialMovingAverage,
    Trainer,
    TrainerConfig,
    latest_checkpoint,
    load_weights,
)

numbers = st.one_of(
    st.integers(-3, 30), st.floats(), st.sampled_from([None, True, "3", (0.9, 0.9), "cosine", [1]])
)
fields = st.sampled_from([f for f in TrainerConfig.__dataclass_fields__ if f != "output_dir"])


@settings(deadline=None)
@given(st.dictionaries(fields, numbers, max_size=4))
def test_config(changed) -> None:
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        config = TrainerConfig(**{"steps": 10, **changed})
    except (ValueError, TypeError) as error:
        assert any(f"`{name}`" in str(error) for name in [*changed, "steps", "warmup"]), error
        return
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    factors = [config.lr_factor(step) for step in range(config.steps)]
    assert all(0 < factor <= 1 and math.isfinite(factor) for factor in factors)


@st.composite
def networks(draw) -> nn.Module:
    """Layers of some widths, tied by object or by memory, some frozen, some in half precision, some wrapped."""
    net = nn.Sequential(*[nn.Linear(3, 3) for _ in range(draw(st.integers(1, 3)))])
    for layer in net:
        kind = draw(st.sampled_from(["plain", "tied", "memory", "view", "frozen", "half", "norm"]))
        if kind == "tied" and "weight" in dict(net[0].named_parameters()):
            layer.weight = net[0].weight
        elif kind == "memory":
            layer.register_buffer("ref", net[0].weight.data)
        elif kind == "view":
            layer.register_buffer("ref", net[0].weight.data[: draw(st.integers(0, 3))])
        elif kind == "frozen":
            layer.requires_grad_(False)
        elif kind == "half":
            layer.register_buffer("table", torch.ones(2, dtype=torch.float16))
            layer.extra = nn.Parameter(torch.ones(2).bfloat16(), requires_grad=False)
        elif kind == "norm":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                nn.utils.weight_norm(layer)
    if draw(st.booleans()):
        net[0] = nn.DataParallel(net[0])
    return net


def plain(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in model.state_dict().values()]


@settings(deadline=None)
@given(
    networks(),
    st.integers(1, 6),
    st.integers(0, 4),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([None, 0.5]),
)
def test_a_run_in_two_parts_is_the_run(net, batch_size, first, rows, drop_last, ema_decay) -> None:
    """And its weights load into a network of the same kind."""
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def train(folder: Path | None, steps: int) -> Trainer:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        net.load_state_dict(start)
        data = TensorDataset(torch.randn(rows, 3, generator=torch.Generator().manual_seed(0)))
        return Trainer(
            net,
            lambda m, b: (m(b[0]) - torch.randn_like(b[0])).square().mean(),
            DataLoader(data, batch_size, shuffle=True, drop_last=drop_last),
            TrainerConfig(
                steps=steps,
                decay="constant",
                ema_decay=ema_decay,
                output_dir=folder,
                log_every=3,
                save_every=2,
            ),
            Accelerator(cpu=True),
        )

    with tempfile.TemporaryDirectory() as temporary:
        try:
            whole = train(None, 5)
        except ValueError as error:
            assert "`model` must have parameters" in str(error) or "`loader` must" in str(error)
            return
        whole.fit()
        expected = plain(whole.model), ema_decay and plain(whole.ema_model)
        if first:
            train(Path(temporary), first).fit()
        part = train(Path(temporary), 5)
        part.fit()
        for mine, theirs in zip(plain(part.model), expected[0], strict=True):
            assert torch.equal(mine, theirs)
        if ema_decay:
            for mine, theirs in zip(plain(part.ema_model), expected[1], strict=True):
                assert torch.equal(mine, theirs)
        net.load_state_dict(start)
        load_weights(temporary, net, ema=False)
        for mine, theirs in zip(plain(net), expected[0], strict=True):
            assert torch.equal(mine, theirs)


@settings(deadline=None)
@given(networks(), st.one_of(st.floats(), st.integers(-1, 2)))
def test_average(net, decay) -> None:
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        average = ExponentialMovingAverage(net, decay)
    except ValueError as error:
        assert "`decay` must lie in (0, 1)" in str(error) and not 0 < decay < 1
        return
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    average.restart(net)
    for _ in range(3):
        average.update(net)
    for mine, theirs in zip(plain(average.module), plain(net), strict=True):
        torch.testing.assert_close(mine, theirs)


@settings(deadline=None)
@given(st.sampled_from(["trainer.json", "model.safetensors", "optimizer.bin"]), st.data())
def test_any_damage_is_noticed(saved, name, data) -> None:
    file = saved / "step_00000004" / name
    content = file.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["cut", "longer", "flip"]))
    bad = {
        "cut": content[:at],
        "longer": content + b"x",
        "flip": content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :],
    }[kind]
    file.write_bytes(bad)
    try:
        latest = latest_checkpoint(saved)
        if name == "model.safetensors":
            with pytest.raises(ValueError, match=r"`path` must hold the weights that were written"):
                load_weights(file, nn.Linear(3, 3))
        elif name == "optimizer.bin" and kind != "flip":
            assert latest is None
    finally:
        file.write_bytes(content)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    data = TensorDataset(torch.randn(8, 3))
    config = TrainerConfig(steps=4, output_dir=folder)
    loss = lambda m, b: m(b[0]).square().mean()
    Trainer(nn.Linear(3, 3), loss, DataLoader(data, 4), config, Accelerator(cpu=True)).fit()
    return folder
