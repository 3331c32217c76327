"""A picture on the page, with its download."""

import io

import PIL.Image
import streamlit as st

from fm_ext.app.picture import enlarge, to_png


def show(content: bytes, caption: str, key: str, file_name: str, width: int = 176) -> None:
    """Shows a file, few pixels as squares, and offers it for download as it is.

    Args:
        content: of a PNG or GIF.
        caption: below it.
        key: of the button.
        file_name: of the download.
        width: on the screen, in pixels.
    """
    shown = content
    if file_name.endswith(".png"):
        shown = to_png(enlarge(PIL.Image.open(io.BytesIO(content))))
    with st.container(width=width, gap="small"):
        st.image(shown, caption, width="stretch")
        st.download_button(
            "Download", content, file_name, key=key, on_click="ignore", help=f"Saves {file_name}."
        )
