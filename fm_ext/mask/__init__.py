"""Random masks for inpainting, of images and sequences: drawn a batch at a time, on any device, with bounded areas."""

from fm_ext.mask.box import CenterBox, RandomBox
from fm_ext.mask.brush import FreeForm
from fm_ext.mask.entries import RandomEntries, RandomSpans
from fm_ext.mask.hybrid import Hybrid
from fm_ext.mask.irregular import Irregular
from fm_ext.mask.mask import Mask

__all__ = [
    "CenterBox",
    "FreeForm",
    "Hybrid",
    "Irregular",
    "Mask",
    "RandomBox",
    "RandomEntries",
    "RandomSpans",
]
