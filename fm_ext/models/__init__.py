"""Networks, and `ModelWrapper`s that make any network a velocity model."""

from fm_ext.models.empirical import EmpiricalVelocityModel
from fm_ext.models.guidance import GuidedVelocityModel
from fm_ext.models.masked import MaskedVelocityModel
from fm_ext.models.mean_flow import MeanFlowModel
from fm_ext.models.mlp import MLP
from fm_ext.models.prediction import PredictionVelocityModel
from fm_ext.models.small_unet import SmallUNet
from fm_ext.models.unet import UNet
from fm_ext.models.wrapper import UNetWrapper

__all__ = [
    "MLP",
    "EmpiricalVelocityModel",
    "GuidedVelocityModel",
    "MaskedVelocityModel",
    "MeanFlowModel",
    "PredictionVelocityModel",
    "SmallUNet",
    "UNet",
    "UNetWrapper",
]
