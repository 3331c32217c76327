import math

import pytest

from fm_ext.training import TrainerConfig


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 4])
def test_lr_factor_is_the_documented_formula(decay, warmup) -> None:
    config = TrainerConfig(steps=20, warmup=warmup, decay=decay)
    for step in range(20):
        p = (step - warmup) / (20 - warmup)
        after = {"constant": 1, "linear": 1 - p, "cosine": (1 + math.cos(math.pi * p)) / 2}[decay]
        expected = (step + 1) / (warmup + 1) if step < warmup else after
        assert config.lr_factor(step) == pytest.approx(expected)


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_every_step_learns(decay) -> None:
    config = TrainerConfig(steps=10, warmup=3, decay=decay)
    factors = [config.lr_factor(step) for step in range(10)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == factors[3] == 1


def test_warmup_may_be_the_whole_run() -> None:
    assert TrainerConfig(steps=4, warmup=4).lr_factor(3) == 4 / 5


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"steps": 0}, "`steps` must be at least 1; got 0"),
        ({"log_every": 0}, "`log_every` must be at least 1"),
        ({"save_every": 0}, "`save_every` must be at least 1"),
        ({"keep": 0}, "`keep` must be at least 1"),
        ({"lr": 0.0}, "`lr` must be positive and finite"),
        ({"lr": math.nan}, "`lr` must be positive and finite; got nan"),
        ({"betas": (0.9, 1.0)}, r"`betas` must lie in \[0, 1\)"),
        ({"weight_decay": -0.1}, "`weight_decay` must be finite and not negative"),
        ({"warmup": 11}, "`warmup` must lie between 0 and `steps` = 10; got 11"),
        ({"decay": "exponential"}, "`decay` must be 'constant', 'cosine' or 'linear'"),
        ({"grad_clip": 0.0}, "`grad_clip` must be positive and finite, or None"),
        ({"ema_decay": 1.0}, r"`ema_decay` must lie in \(0, 1\), or be None"),
        ({"seed": -1}, "`seed` must not be negative"),
    ],
)
def test_settings_out_of_range(untyped, setting, match) -> None:
    with pytest.raises(ValueError, match=match):
        TrainerConfig(**{"steps": 10, **setting})


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"steps": 2.5}, r"`steps` must be an int; got 2.5"),  # would never be reached
        ({"keep": True}, r"`keep` must be an int; got True"),
        ({"seed": "0"}, r"`seed` must be an int; got '0'"),
        ({"lr": "1e-3"}, r"`lr` must be a float; got '1e-3'"),
        ({"betas": 0.9}, r"`betas` must be a pair of floats; got 0.9"),
    ],
)
def test_settings_of_another_type(untyped, setting, match) -> None:
    with pytest.raises(TypeError, match=match):
        TrainerConfig(**{"steps": 10, **setting})
    ((name, value),) = setting.items()
    if name in ("steps", "seed", "lr"):  # the advice
        TrainerConfig(**{"steps": 10, name: (float if name == "lr" else int)(value)})


def test_seeds_are_those_that_torch_takes(untyped) -> None:
    TrainerConfig(steps=1, seed=2**64 - 1)
    with pytest.raises(ValueError, match=r"`seed` must .* below 2\*\*64"):
        TrainerConfig(steps=1, seed=2**64)
