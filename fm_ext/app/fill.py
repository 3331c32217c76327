"""The tab that fills holes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import streamlit as st
from jaxtyping import Bool
from torch import Tensor

from fm_ext.app.hole import choose_hole, show_hole
from fm_ext.app.picture import Chosen, choose_picture, to_png
from fm_ext.app.sampling import (
    Progress,
    Sampling,
    choose_method,
    choose_sampling,
    running,
)
from fm_ext.app.show import show
from fm_ext.hub import FlowModel, fill_picture
from fm_ext.solver.inpainting.solver import METHODS

RAMP = np.array([[0, 0, 0], [120, 0, 110], [240, 80, 40], [255, 255, 180]])  # of the heat map


@dataclass(frozen=True)
class Row:
    """Fills of one solver, as files."""

    title: str
    hole: bytes
    fills: list[bytes]
    heat: bytes | None
    highest: float
    film: bytes


def fill_tab(name: str, flow: FlowModel) -> None:
    """The whole tab.

    Args:
        name: of the model.
        flow: a model that fills.
    """
    left, right = st.columns([4, 5], gap="large")
    with left:
        chosen = choose_picture(flow, "fill")
        mask = choose_hole(chosen) if chosen else None
    with right:
        fills = st.slider(
            "Fills",
            1,
            8,
            4,
            help="How many answers: where much is missing there are many, and they differ.",
        )
        runs = [choose_sampling(name, flow, "fill")]
        runs += _choose_untrained(name, flow, runs[0])
        clicked = st.button(
            "Fill",
            type="primary",
            width="stretch",
            disabled=mask is None,
            help="Fills the hole, once there is one.",
        )
        if clicked and chosen is not None and mask is not None:
            rows = st.session_state[f"rows {name}"] = []
            for i, sampling in enumerate(runs):
                with running(f"fill {i}") as progress:
                    rows.append(fill(flow, chosen, mask, fills, sampling, progress))
    rows = st.session_state.get(f"rows {name}", ())
    places = [right] if len(rows) == 1 else st.columns(2, gap="large")
    for i, (row, place) in enumerate(zip(rows, places, strict=False)):
        with place:
            _show_row(row, f"fill {i}")


def fill(
    flow: FlowModel,
    chosen: Chosen,
    mask: Bool[Tensor, "height width"],
    fills: int,
    sampling: Sampling,
    progress: Progress,
) -> Row:
    """Fills the hole of a picture, and says what came out."""
    begin = time.perf_counter()
    pictures = fill_picture(flow, chosen.picture, mask, fills=fills, **sampling.run(progress))
    seconds = time.perf_counter() - begin
    method, steps = sampling.arguments["method"], sampling.arguments["steps"]
    kind = "Training-free" if method in METHODS else "Trained to fill"
    title = f"{kind}: {method}" + (f", {steps} steps" if steps else "") + f", {seconds:.1f} s"
    heat, highest = spread(pictures, mask) if fills > 1 else (None, 0.0)
    return Row(
        title=title,
        hole=to_png(show_hole(chosen.picture, mask)),
        fills=[to_png(picture) for picture in pictures],
        heat=None if heat is None else to_png(heat),
        highest=highest,
        film=progress.film(),
    )


def spread(
    pictures: Sequence[PIL.Image.Image], mask: Bool[Tensor, "height width"]
) -> tuple[PIL.Image.Image, float]:
    """Where fills of one hole differ: a heat map from black, for agreement, to the brightest place.

    Args:
        pictures: two or more.
        mask: True = missing.

    Returns:
        The map, grey outside the hole, and what its brightest pixel stands for: the standard deviation of a channel
        over the fills, in grey levels of 255.
    """
    values = np.stack([np.asarray(p.convert("RGB"), np.float32) for p in pictures])
    deviation = np.sqrt(values.var(axis=0, ddof=1).mean(axis=-1))
    highest = float(deviation.max())
    level = deviation / max(highest, 1e-6) * (len(RAMP) - 1)
    heat = np.stack([np.interp(level, range(len(RAMP)), c) for c in RAMP.T], axis=-1)
    outside = np.asarray(pictures[0].convert("L").convert("RGB")) // 2 + 120
    shown = np.where(mask.numpy()[..., None], heat, outside)
    return PIL.Image.fromarray(shown.astype(np.uint8)), highest


def _choose_untrained(name: str, flow: FlowModel, trained: Sampling) -> list[Sampling]:
    among = [method for method in flow.methods("fill") if method in METHODS]
    able = flow.masked and bool(among)
    beside = st.toggle(
        "Beside it, a training-free solver",
        disabled=not able,
        key=f"beside {name}",
        help="Fills the same hole by the same weights, asked as a model of whole pictures that knows no masks; for "
        "models that fill and generate.",
    )
    if not able or not beside:
        return []
    among.sort(key="moment_matching".__ne__)  # the usual one first
    method, steps = choose_method(name, flow, "fill", among, where=", training-free")
    return [Sampling(trained.seed, trained.arguments | {"method": method, "steps": steps})]


def _show_row(row: Row, key: str) -> None:
    st.markdown(f"**{row.title}**")
    with st.container(horizontal=True):
        show(row.hole, "hole", f"{key} hole", "hole.png")
        for i, picture in enumerate(row.fills):
            show(picture, f"fill {i + 1}", f"{key} {i}", f"filled_{i + 1}.png")
        if row.heat is not None:
            show(row.heat, f"spread, to {row.highest:.0f}", f"{key} heat", "spread.png")
        show(row.film, "film", f"{key} film", "film.gif")
    st.caption(
        "Spread: black where the fills agree, bright where they differ, by up to that many of 255 grey levels "
        "(standard deviation). Film: from noise to the fills, at the model's size."
    )
