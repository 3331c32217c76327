"""Random models of every kind, as folders."""

from pathlib import Path

import pytest
import torch
from flow_matching.path import CondOTProbPath

from fm_ext.coupling import NoisySource
from fm_ext.hub import FlowModel, Sampler
from fm_ext.models import SmallUNet, UNet, UNetWrapper
from fm_ext.path import CoupledProbPath, MaskedProbPath

TINY = {"channels": 8, "head_channels": 8, "multipliers": (1, 1), "attention": ()}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`digits` fills and generates, `portraits` fills, `garments` translates."""
    torch.manual_seed(0)
    path = MaskedProbPath(CondOTProbPath())
    digits, portraits = UNet(2, 1, num_classes=10, **TINY), UNet(4, 3, **TINY)
    flows = {
        "digits": FlowModel(
            UNetWrapper(digits, concat=("mask",)),
            path,
            shape=(1, 28, 28),
            classes=[str(i) for i in range(10)],
            tasks=("fill", "sample"),
            samplers={"fill": Sampler(steps=2), "sample": Sampler(steps=2)},
        ),
        "portraits": FlowModel(UNetWrapper(portraits, concat=("mask",)), path, shape=(3, 64, 64)),
        "garments": FlowModel(
            UNetWrapper(SmallUNet(1)),
            CoupledProbPath(CondOTProbPath(), NoisySource(0.5)),
            shape=(1, 28, 28),
            source="image",
            samplers={"translate": Sampler(steps=2)},
        ),
    }
    root = tmp_path_factory.mktemp("models")
    for name, flow in flows.items():
        flow.save_pretrained(root / name)
    return {name: root / name for name in flows}
