"""Small flows of every kind, with weights that are not their initial ones."""

import pytest
import torch
from flow_matching.path import CondOTProbPath
from torch import nn

from fm_ext.coupling import NoisySource
from fm_ext.hub import FlowModel, Sampler
from fm_ext.models import LatentCodec, MeanFlowModel, SmallUNet, UNet, UNetWrapper
from fm_ext.path import CoupledProbPath, MaskedProbPath

DIGITS = tuple("0123456789")


def shaken(model: nn.Module) -> nn.Module:
    """Random weights in every layer: a UNet's last ones start at zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.125)
    return model.eval()


def tiny_unet(*channels: int, **changes) -> UNet:
    return UNet(*channels, channels=8, head_channels=8, multipliers=(1, 2), attention=(), **changes)


@pytest.fixture
def digits() -> FlowModel:
    """Fills and samples, with classes."""
    network = UNetWrapper(tiny_unet(2, 1, num_classes=10), concat=("mask",), mask_dropout=0.1)
    return FlowModel(
        shaken(network),
        MaskedProbPath(CondOTProbPath()),
        shape=(1, 28, 28),
        tasks=("sample", "fill"),
        classes=DIGITS,
        samplers={"sample": Sampler(steps=2), "fill": Sampler(steps=2)},
    )


@pytest.fixture
def jumper() -> FlowModel:
    """As `digits`, by a network of two times that takes its guidance as an input."""
    network = tiny_unet(2, 1, num_classes=10, second_time=True, guidance_input=True)
    return FlowModel(
        shaken(MeanFlowModel(UNetWrapper(network, concat=("mask",)))),
        MaskedProbPath(CondOTProbPath()),
        shape=(1, 28, 28),
        tasks=("sample", "fill"),
        classes=DIGITS,
    )


@pytest.fixture
def portraits() -> FlowModel:
    """Fills colour."""
    network = UNetWrapper(tiny_unet(4, 3), concat=("mask",))
    how = {"fill": Sampler(method="euler", steps=1)}
    path = MaskedProbPath(CondOTProbPath())
    return FlowModel(shaken(network), path, shape=(3, 32, 32), samplers=how)


@pytest.fixture
def whole() -> FlowModel:
    """Samples, and fills by training-free methods."""
    how = {"fill": Sampler(method="moment_matching", steps=3), "sample": Sampler(steps=2)}
    network = shaken(UNetWrapper(tiny_unet(1, 1)))
    return FlowModel(network, CondOTProbPath(), shape=(1, 8, 8), samplers=how)


@pytest.fixture
def translator() -> FlowModel:
    path = CoupledProbPath(CondOTProbPath(), NoisySource(0.5))
    network = UNetWrapper(SmallUNet(1))
    how = {"translate": Sampler(steps=2)}
    return FlowModel(shaken(network), path, shape=(1, 8, 8), source="image", samplers=how)


class Tiles(nn.Module):
    """An exact autoencoder: a cell is its four pixels, twice as large."""

    def encode(self, images):
        return 2 * nn.functional.pixel_unshuffle(images, 2)

    def decode(self, latents):
        return nn.functional.pixel_shuffle(latents, 2) / 2


@pytest.fixture
def latents() -> FlowModel:
    """Fills and samples, in latents."""
    network = UNetWrapper(tiny_unet(5, 4), concat=("mask",))
    return FlowModel(
        shaken(network),
        MaskedProbPath(CondOTProbPath()),
        shape=(1, 16, 16),
        codec=LatentCodec(Tiles(), factor=2),
        tasks=("sample", "fill"),
    )


@pytest.fixture
def latent_translator() -> FlowModel:
    return FlowModel(
        shaken(UNetWrapper(tiny_unet(4, 4))),
        CondOTProbPath(),
        shape=(1, 8, 8),
        source="image",
        codec=LatentCodec(Tiles(), factor=2),
        data_range=None,
    )
