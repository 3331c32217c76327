"""Images that could have been in a small data set: `turn_colours`."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def turn_colours(
    images: Float[Tensor, "batch 3 height width"], *, generator: torch.Generator | None = None
) -> Float[Tensor, "batch 3 height width"]:
    """RGB images, each with its colours turned by a random angle around the axis of the greys.

    White, black and greys stay, and so does the distance of a colour from its grey, but where the cube of colours ends.
    A network that is to draw true colours must be told which images were turned (non-leaking augmentation: Karras et
    al., arXiv 2206.00364, appendix F.2): `examples/inpainting.py --turn-colours` tells it by a label.

    Args:
        images: in [-1, 1].
        generator: source of the angles, the global one if None; they are drawn on its device.
    """
    place = images.device if generator is None else generator.device
    angle = 2 * math.pi * torch.rand(len(images), 1, 1, device=place, generator=generator)
    angle = angle.to(images)
    grey = images.new_full((3, 3), 1 / 3)  # the projection onto the axis
    across = images.new_tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / 3**0.5
    turn = grey + angle.cos() * (torch.eye(3).to(images) - grey) + angle.sin() * across
    return torch.einsum("bij,bjhw->bihw", turn, images).clamp(-1, 1)
