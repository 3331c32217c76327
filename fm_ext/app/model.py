"""The choice of a model: shipped, a folder, a name on the hub, or uploaded."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import streamlit as st

from fm_ext.app.session import remember
from fm_ext.hub import FlowModel, shipped_names

UPLOAD = "upload a model's files"
VERBS = {"fill": "fills holes", "sample": "generates", "translate": "translates"}


def choose_model(models: Sequence[str], device: str) -> tuple[str, FlowModel] | None:
    """Controls that choose a model; its name and the model, or None with a sentence on the page.

    Args:
        models: names that are offered beside the shipped ones.
        device: where it computes.
    """
    name = st.selectbox(
        "Model",
        [*dict.fromkeys([*models, *shipped_names()]), UPLOAD],
        format_func=_describe,
        accept_new_options=True,
        help="Choose one of the list, or type a folder of this machine (./folder) or owner/name on Hugging Face's hub.",
    )
    try:
        if name != UPLOAD:
            flow = _load(name, device)
        else:
            files = st.file_uploader(
                "The model's files",
                accept_multiple_files=True,
                help="The three files of a folder written by `save_pretrained`: config.json, model.safetensors, "
                "README.md.",
            )
            if not files:
                return None
            token = tuple(file.file_id for file in files)
            contents = {file.name: file.getvalue() for file in files}
            flow = remember("uploaded model", token, lambda: load_files(contents, device))
            name = f"{UPLOAD} {token}"
        check_pictures(flow)
    except (ValueError, TypeError, OSError) as error:
        st.error(str(error))
        return None
    with st.expander("About this model"):
        st.markdown(flow.generate_model_card().text)
    return name, flow


def check_pictures(flow: FlowModel) -> None:
    """Raises a ValueError for a model of other things than pictures."""
    if len(flow.shape) != 3 or flow.shape[0] not in (1, 3) or flow.data_range != (-1.0, 1.0):
        raise ValueError(
            "The page shows pictures of 1 or 3 channels with values in [-1, 1]; this model is of samples of shape "
            f"{flow.shape} in {flow.data_range}."
        )


def load_files(files: Mapping[str, bytes], device: str = "cpu") -> FlowModel:
    """The model of a folder of these files, which exists while it is read.

    Args:
        files: contents by name.
        device: where it computes.

    Raises:
        ValueError: for what `FlowModel.from_pretrained` refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, content in files.items():
                (Path(folder) / Path(name).name).write_bytes(content)
            return FlowModel.from_pretrained(Path(folder), device=device)
        except (ValueError, TypeError, OSError) as error:
            said = str(error).replace(f"{folder}/", "").replace(folder, "upload")
            raise ValueError(said) from error  # that folder's name says nothing to who uploads


@st.cache_resource(max_entries=8, show_spinner="Loading the model")
def _load(name: str, device: str) -> FlowModel:
    return FlowModel.from_pretrained(name, cache_dir=_downloads().name, device=device)


@st.cache_resource
def _downloads() -> tempfile.TemporaryDirectory[str]:
    """Where models of the hub go; it is deleted with the server."""
    return tempfile.TemporaryDirectory(prefix="fm_ext")


def _describe(name: str) -> str:
    tasks = [verb for task, verb in VERBS.items() if name in shipped_names(task)]
    return f"{name}: {', '.join(tasks)}" if tasks else name
