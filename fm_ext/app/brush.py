"""The brush: a hole painted with mouse, pen or finger."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
import torch
from jaxtyping import Bool
from streamlit.components.v2 import component
from torch import Tensor

from fm_ext.app.picture import SHOWN, Chosen, enlarge, to_png

COLOUR = (255, 0, 90)  # of holes on the page
PARTS = {kind: Path(__file__).with_suffix(f".{kind}").read_text() for kind in ("html", "css", "js")}


def brush(chosen: Chosen) -> Bool[Tensor, "height width"]:
    """A control to paint on a picture; what has been painted."""
    size = chosen.picture.height, chosen.picture.width
    kept = st.session_state.setdefault("strokes", {})
    shown = enlarge(chosen.picture, SHOWN)
    shown.thumbnail((SHOWN, SHOWN))
    picture = base64.b64encode(to_png(shown)).decode()
    mount = component("fm_ext_brush", html=PARTS["html"], css=PARTS["css"], js=PARTS["js"])
    result = mount(
        key=f"brush {chosen.name}",
        data={
            "name": chosen.name,
            "picture": f"data:image/png;base64,{picture}",
            "width": shown.width,
            "height": shown.height,
            "colour": f"rgb{COLOUR}",
            "strokes": kept.get(chosen.name, []),  # painted before the brush was put away
        },
        on_strokes_change=lambda: None,
    )
    if result.strokes is not None:
        kept[chosen.name] = result.strokes
    return paint(kept.get(chosen.name, []), size)


def paint(
    strokes: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> Bool[Tensor, "height width"]:
    """The pixels whose centres lie under the strokes, True = painted; a later stroke is above.

    Args:
        strokes: `points`, pairs (x, y), and `radius`, in widths of the picture; `erase`. A radius of less than
            0.71 pixels is one of 0.71, so that a touch paints the pixel that it touches.
        size: height and width.
    """
    height, width = size
    painted = np.zeros(size, bool)
    for stroke in strokes:
        points = np.asarray(stroke["points"], float) * width
        radius = max(stroke["radius"] * width, 0.71)
        for a, b in zip(points, points[1:] if len(points) > 1 else points, strict=False):
            low = np.floor(np.minimum(a, b) - radius).clip(0, (width, height)).astype(int)
            high = np.ceil(np.maximum(a, b) + radius).clip(0, (width, height)).astype(int)
            y, x = np.mgrid[low[1] : high[1], low[0] : high[0]] + 0.5
            along, length = b - a, max(float((b - a) @ (b - a)), 1e-12)
            s = (((x - a[0]) * along[0] + (y - a[1]) * along[1]) / length).clip(0, 1)
            near = (x - a[0] - s * along[0]) ** 2 + (y - a[1] - s * along[1]) ** 2 <= radius**2
            painted[low[1] : high[1], low[0] : high[0]][near] = not stroke["erase"]
    return torch.from_numpy(painted)
