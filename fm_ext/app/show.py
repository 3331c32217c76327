"""A picture on the page, with its download."""

import io

import PIL.Image
import streamlit as st

from fm_ext.app.picture import enlarge, to_png


def show(content: bytes, title: str, key: str, file_name: str, width: int = 160) -> None:
    """Shows a file, few pixels as squares, above a button that downloads it as it is.

    Args:
        content: of a PNG or GIF.
        title: of the button.
        key: of the button.
        file_name: of the download.
        width: on the screen, in pixels; two of 160 stand side by side on a phone.
    """
    shown = content
    if file_name.endswith(".png"):
        shown = to_png(enlarge(PIL.Image.open(io.BytesIO(content))))
    with st.container(width=width, gap=None):
        st.image(shown, width="stretch")
        st.download_button(
            title,
            content,
            file_name,
            key=key,
            on_click="ignore",
            type="tertiary",
            icon=":material/download:",
            help=f"Saves {file_name}.",
        )
