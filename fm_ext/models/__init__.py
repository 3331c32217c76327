"""Networks, and `ModelWrapper`s that make any network a velocity model."""

from fm_ext.models.conventions import CONVENTIONS, Convention
from fm_ext.models.diffusers import DiffusersVelocityModel, from_diffusers
from fm_ext.models.diffusers_export import to_diffusers
from fm_ext.models.empirical import EmpiricalVelocityModel
from fm_ext.models.guidance import GuidedVelocityModel
from fm_ext.models.latent import LatentCodec
from fm_ext.models.masked import MaskedVelocityModel
from fm_ext.models.mean_flow import MeanFlowModel
from fm_ext.models.mlp import MLP
from fm_ext.models.prediction import PredictionVelocityModel
from fm_ext.models.small_unet import SmallUNet
from fm_ext.models.unet import UNet
from fm_ext.models.wrapper import UNetWrapper

__all__ = [
    "CONVENTIONS",
    "MLP",
    "Convention",
    "DiffusersVelocityModel",
    "EmpiricalVelocityModel",
    "GuidedVelocityModel",
    "LatentCodec",
    "MaskedVelocityModel",
    "MeanFlowModel",
    "PredictionVelocityModel",
    "SmallUNet",
    "UNet",
    "UNetWrapper",
    "from_diffusers",
    "to_diffusers",
]
