"""The tab that translates."""

from dataclasses import dataclass

import streamlit as st

from fm_ext.app.picture import SHOWN, choose_picture, enlarge, to_png
from fm_ext.app.sampling import choose_sampling, running
from fm_ext.app.show import show
from fm_ext.hub import FlowModel, translate_picture


@dataclass(frozen=True)
class Translation:
    """A translation as files."""

    given: bytes
    result: bytes
    film: bytes


def translate_tab(name: str, flow: FlowModel) -> None:
    """The whole tab.

    Args:
        name: of the model.
        flow: a model that translates.
    """
    left, right = st.columns([4, 5], gap="large")
    with left:
        chosen = choose_picture(flow, "translate")
        if chosen is not None:
            st.image(enlarge(chosen.picture, SHOWN), width=SHOWN)
    with right:
        sampling = choose_sampling(name, flow, "translate")
        clicked = st.button(
            "Translate",
            type="primary",
            width="stretch",
            disabled=chosen is None,
            help="Takes the middle of the picture, at the model's size, to what the model was trained to make of it.",
        )
        if clicked and chosen is not None:
            with running("translate") as progress:
                result = translate_picture(flow, chosen.picture, **sampling.run(progress))
                given, made = to_png(chosen.picture), to_png(result)
                st.session_state[f"translation {name}"] = Translation(given, made, progress.film())
        translation = st.session_state.get(f"translation {name}")
        if translation is not None:
            with st.container(horizontal=True):
                show(translation.given, "given", "translation given", "given.png")
                show(translation.result, "translation", "translation result", "translated.png")
                show(translation.film, "film", "translation film", "film.gif")
