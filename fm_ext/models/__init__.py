"""Networks, and `ModelWrapper`s that make any network a velocity model."""

from fm_ext.models.masked import MaskedVelocityModel
from fm_ext.models.small_unet import SmallUNet
from fm_ext.models.unet import UNet
from fm_ext.models.wrapper import UNetWrapper

__all__ = ["MaskedVelocityModel", "SmallUNet", "UNet", "UNetWrapper"]
