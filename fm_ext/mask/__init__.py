"""Random masks for inpainting: drawn a batch at a time, on any device, with bounded areas."""

from fm_ext.mask.box import CenterBox, RandomBox
from fm_ext.mask.brush import FreeForm
from fm_ext.mask.hybrid import Hybrid
from fm_ext.mask.irregular import Irregular
from fm_ext.mask.mask import Mask

__all__ = ["CenterBox", "FreeForm", "Hybrid", "Irregular", "Mask", "RandomBox"]
