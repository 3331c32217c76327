"""The page: a model, and a tab for each of its tasks. Streamlit runs this file at every change of a control."""

import sys
from collections.abc import Sequence

import streamlit as st

from fm_ext.app.fill import fill_tab
from fm_ext.app.model import choose_model
from fm_ext.app.sample import sample_tab
from fm_ext.app.translate import translate_tab

TABS = {
    "fill": ("Fill a hole", fill_tab),
    "sample": ("Generate", sample_tab),
    "translate": ("Translate", translate_tab),
}


def page(device: str = "cpu", models: Sequence[str] = ()) -> None:
    """Draws the page.

    Args:
        device: where models compute.
        models: folders or names on the hub that are offered beside the shipped ones.
    """
    st.set_page_config(page_title="fm_ext", page_icon="🖌️", layout="wide")
    st.header("Fill, generate and translate by flow matching", anchor=False)
    chosen = choose_model(models, device)
    if chosen is None:
        return
    name, flow = chosen
    if st.session_state.pop("interrupted", False):
        st.toast("The run was stopped, by its button or by the change of another control.")
    able = [TABS[task] for task in TABS if task in flow.tasks]
    for tab, (_, draw) in zip(st.tabs([title for title, _ in able]), able, strict=True):
        with tab:
            draw(name, flow)
    st.caption(
        "Known pixels stay as they are; what is filled is invented. fm_ext is MIT; flow_matching, on which it runs, "
        "is CC BY-NC 4.0, so use is non-commercial."
    )


if __name__ == "__main__":
    page(sys.argv[1], sys.argv[2:])
