"""HuggingFace data sets in, batches of tensors out."""

from fm_ext.data.assigned import assigned_loader
from fm_ext.data.image_pairs import image_pair_loader
from fm_ext.data.latents import latent_loader, write_latents
from fm_ext.data.loader import image_loader, load_images
from fm_ext.data.pairs import pair_loader, write_pairs

__all__ = [
    "assigned_loader",
    "image_loader",
    "image_pair_loader",
    "latent_loader",
    "load_images",
    "pair_loader",
    "write_latents",
    "write_pairs",
]
