"""The tab that generates."""

from dataclasses import dataclass

import streamlit as st

from fm_ext.app.picture import to_png
from fm_ext.app.sampling import choose_sampling, columns, running
from fm_ext.app.show import show
from fm_ext.hub import FlowModel, to_grid, to_pictures


@dataclass(frozen=True)
class Samples:
    """Samples as files."""

    grid: bytes
    film: bytes


def sample_tab(name: str, flow: FlowModel) -> None:
    """The whole tab.

    Args:
        name: of the model.
        flow: a model that samples.
    """
    left, right = st.columns([2, 3], gap="large")
    with left:
        count = st.slider("Count", 1, 64, 16, help="How many pictures.")
        sampling = choose_sampling(name, flow, "sample")
        if st.button(
            "Generate", type="primary", width="stretch", help="Draws pictures from noise."
        ):
            with running("sample") as progress:
                pictures = to_pictures(flow.sample(count, **sampling.run(progress)))
                grid = to_png(to_grid(pictures, columns(count)))
                st.session_state[f"samples {name}"] = Samples(grid, progress.film())
    samples = st.session_state.get(f"samples {name}")
    if samples is not None:
        with right, st.container(horizontal=True):
            show(samples.grid, "samples", "samples grid", "samples.png", width=320)
            show(samples.film, "film, from noise to samples", "samples film", "film.gif", width=320)
