"""A small problem to train on."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fm_ext.training import Trainer, TrainerConfig


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch) -> None:
    """Waiting for the disk guards against nothing else, and takes seconds where others write."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def make_net() -> nn.Module:
    """Has dropout, a norm with buffers, and biases."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(0.2), nn.Linear(8, 3)
    )


def denoise(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Draws noise and times, as a flow matching loss does."""
    (x_1,) = batch
    noise, t = torch.randn_like(x_1), torch.rand(len(x_1), 1)
    return (model(x_1 + t * noise) - noise).square().mean()


def make_data(samples: int = 22) -> TensorDataset:
    return TensorDataset(torch.randn(samples, 3, generator=torch.Generator().manual_seed(2)))


@pytest.fixture
def net() -> nn.Module:
    return make_net()


@pytest.fixture
def make_trainer(forget_accelerate: Callable[[], None]) -> Callable[..., Trainer]:
    """Builds a trainer of the small problem; what is not given has a default."""

    def make(
        *,
        model: nn.Module | None = None,
        loss: Callable[[nn.Module, Any], Tensor] = denoise,
        loader: DataLoader[Any] | None = None,
        accelerator: dict[str, Any] | None = None,
        **config: Any,
    ) -> Trainer:
        forget_accelerate()
        return Trainer(
            make_net() if model is None else model,
            loss,
            DataLoader(make_data(), batch_size=4, shuffle=True) if loader is None else loader,
            TrainerConfig(**{"steps": 10, "lr": 0.01, "log_every": 3, **config}),
            Accelerator(cpu=True, **(accelerator or {})),
        )

    return make


@pytest.fixture
def everything() -> Callable[[Trainer], dict[str, Tensor]]:
    """All tensors that training changes, by name."""

    def collect(trainer: Trainer) -> dict[str, Tensor]:
        found = {f"model.{k}": v for k, v in trainer.model.state_dict().items()}
        if trainer.config.ema_decay is not None:
            found |= {f"ema.{k}": v for k, v in trainer.ema_model.state_dict().items()}
        for i, state in trainer._optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
        return {name: tensor.clone() for name, tensor in found.items()}

    return collect


@pytest.fixture
def keep_only() -> Callable[[Path, Path, int], Path]:
    """Copies the checkpoint of one step into a folder of its own, as if the run had been killed after it."""

    def copy(source: Path, target: Path, step: int) -> Path:
        name = f"step_{step:08d}"
        shutil.copytree(source / name, target / name)
        return target

    return copy
