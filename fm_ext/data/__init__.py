"""HuggingFace data sets in, batches of tensors out.

What reads data sets needs the extra `train`, and is imported when it is asked for; `fm_ext.data.pixels` needs Pillow.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fm_ext.data.assigned import assigned_loader
    from fm_ext.data.augment import turn_colours
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
    "turn_colours",
    "write_latents",
    "write_pairs",
]

_HOMES = {
    "assigned_loader": "assigned",
    "image_loader": "loader",
    "image_pair_loader": "image_pairs",
    "latent_loader": "latents",
    "load_images": "loader",
    "pair_loader": "pairs",
    "turn_colours": "augment",
    "write_latents": "latents",
    "write_pairs": "pairs",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"fm_ext.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
