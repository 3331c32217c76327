"""The choice of a picture: an example or an upload."""

import io
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import streamlit as st

from fm_ext.app.session import remember
from fm_ext.hub import FlowModel, open_picture

LONGEST = 1024  # pixels of a picture on the page
SHOWN = 448  # of the one that is worked on, as it is shown
EXAMPLES = {path.stem: path for path in sorted(Path(__file__).with_name("pictures").glob("*.png"))}


@dataclass(frozen=True)
class Chosen:
    """A picture on the page.

    Args:
        name: that no other picture of the session has.
        picture: at most `LONGEST` pixels a side.
        size: height and width of its file.
    """

    name: str
    picture: PIL.Image.Image
    size: tuple[int, int]


def choose_picture(flow: FlowModel, task: str) -> Chosen | None:
    """Controls that choose a picture; None, with a sentence on the page, for a file that cannot be opened."""
    names = fitting_examples(flow, task)
    example = str(
        st.selectbox(
            "Picture",
            names,
            format_func=lambda name: name.replace("_", ", "),
            key=f"{task} example {names[0]}",
            help="An example that the shipped models have not been trained on.",
        )
    )
    upload = st.file_uploader(
        "or your own",
        key=f"{task} upload",
        help="PNG, JPEG, WebP, BMP, GIF, TIFF or PPM, of one frame; it stays in this session's memory, on no disk. "
        "Remove it to return to the example.",
    )
    if upload is None:
        return shrink(example, open_picture(EXAMPLES[example]))
    token = upload.file_id
    try:
        chosen = remember(f"{task} picture", token, lambda: shrink(token, open_picture(upload)))
    except ValueError as error:
        st.error(f"{upload.name}: {error}")
        return None
    (height, width), (columns, rows) = chosen.size, chosen.picture.size
    if (height, width) != (rows, columns):
        st.caption(
            f"Scaled down from {width}x{height} to {columns}x{rows} pixels for this page; "
            "`python -m fm_ext fill` keeps every pixel."
        )
    return chosen


def fitting_examples(flow: FlowModel, task: str) -> list[str]:
    """Names of the example pictures of the model's colours: garments first to translate, digits first otherwise."""
    if flow.shape[0] == 3:
        kinds = ("portrait",)
    else:
        kinds = ("garment", "digit") if task == "translate" else ("digit", "garment")
    return [name for kind in kinds for name in EXAMPLES if name.startswith(kind)]


def shrink(name: str, picture: PIL.Image.Image) -> Chosen:
    """The picture, scaled down if it is longer than `LONGEST`."""
    small = picture.copy()
    small.thumbnail((LONGEST, LONGEST))
    return Chosen(name, small, (picture.height, picture.width))


def enlarge(picture: PIL.Image.Image, least: int = 256) -> PIL.Image.Image:
    """A picture of few pixels for the screen, each a square, at least `least` a side; a larger one as it is."""
    factor = -(-least // max(picture.size))
    size = factor * picture.width, factor * picture.height
    return picture.resize(size, PIL.Image.Resampling.NEAREST)


def to_png(picture: PIL.Image.Image) -> bytes:
    """The picture as a file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
