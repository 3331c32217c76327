"""The choice of a hole: painted, drawn at random, or uploaded."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import streamlit as st
import torch
from jaxtyping import Bool
from torch import Tensor

from fm_ext.app.brush import COLOUR, brush
from fm_ext.app.picture import SHOWN, Chosen, enlarge
from fm_ext.hub import open_mask
from fm_ext.mask import CenterBox, FreeForm, Hybrid, Irregular, RandomBox

KINDS: dict[str, Callable[[float], Any]] = {  # of masks, by the share that is missing
    "CenterBox": lambda share: CenterBox(side=(math.sqrt(share), math.sqrt(share))),
    "RandomBox": lambda share: RandomBox(side=(0.1, 1.0), area=_near(share)),
    "FreeForm": lambda share: FreeForm(area=_near(share)),
    "Irregular": lambda share: Irregular(area=_near(share)),
    "Hybrid": lambda share: Hybrid(
        masks=(RandomBox(side=(0.1, 1.0)), FreeForm(), Irregular()), area=_near(share)
    ),
}


def choose_hole(chosen: Chosen) -> Bool[Tensor, "height width"] | None:
    """Controls that make a hole in a picture; None if there is none yet."""
    how = st.radio(
        "Hole",
        ["Brush", *KINDS, "Upload"],
        horizontal=True,
        help="Paint with mouse or finger, have one of fm_ext's five kinds of masks drawn, or upload a black picture "
        "that is white where yours is missing.",
    )
    if how == "Brush":
        mask = brush(chosen)
        if not mask.any():
            st.caption("Paint over what shall be filled.")
    elif how == "Upload":
        mask = _uploaded(chosen)
    else:
        mask = _drawn(str(how), chosen)
    if how != "Brush" and mask is not None:
        st.image(enlarge(show_hole(chosen.picture, mask), SHOWN), width=SHOWN)
    return mask if mask is not None and mask.any() else None


def draw_hole(
    kind: str, share: float, size: tuple[int, int], seed: int
) -> Bool[Tensor, "height width"]:
    """A hole of one of `KINDS`, True = missing.

    Args:
        kind: of mask.
        share: of the picture that is missing, to a fifth of it or to whole pixels.
        size: height and width.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    return KINDS[kind](share)(1, size, generator=generator)[0, 0]


def show_hole(picture: PIL.Image.Image, mask: Bool[Tensor, "height width"]) -> PIL.Image.Image:
    """The picture with its hole in colour."""
    shown = picture.convert("RGB")
    shown.paste(COLOUR, mask=PIL.Image.fromarray(mask.numpy()))
    return shown


def shrink_mask(
    mask: Bool[Tensor, "large_height large_width"], size: tuple[int, int]
) -> Bool[Tensor, "height width"]:
    """The mask for the picture scaled down: a pixel is missing if a part of it is."""
    plane = PIL.Image.fromarray(mask.numpy().astype(np.float32))
    small = np.asarray(plane.resize((size[1], size[0]), PIL.Image.Resampling.BOX))
    return torch.from_numpy(small > 0)


def _near(share: float) -> tuple[float, float]:
    return 0.8 * share, min(1.2 * share, 1.0)


def _drawn(kind: str, chosen: Chosen) -> Bool[Tensor, "height width"]:
    share = st.slider(
        "Share that is missing",
        0.05,
        0.7,
        0.25,
        0.05,
        help="How much of the picture the hole takes.",
    )
    seed = st.session_state.setdefault("hole seed", 0)
    if st.button("Another", help="Draws another hole of this kind and size."):
        seed = st.session_state["hole seed"] = seed + 1
    return draw_hole(kind, share, (chosen.picture.height, chosen.picture.width), seed)


def _uploaded(chosen: Chosen) -> Bool[Tensor, "height width"] | None:
    upload = st.file_uploader(
        "Mask",
        help="A picture of the same size as yours: white is missing, black is known.",
    )
    if upload is None:
        return None
    try:
        mask = open_mask(upload, chosen.size)
    except ValueError as error:
        st.error(f"{upload.name}: {error}")
        return None
    return shrink_mask(mask, (chosen.picture.height, chosen.picture.width))
