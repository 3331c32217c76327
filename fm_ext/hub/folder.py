"""The folder of a pretrained flow: where it is, and what is read from it, strictly."""

import difflib
import json
import os
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import Tensor, nn

from fm_ext.hub.registry import build, describe
from fm_ext.utils.weights import bare, load_tensors, read_tensors, stored

FORMAT = 1
CONFIG, CARD = "config.json", "README.md"
WEIGHTS, CODEC = "model.safetensors", "codec.safetensors"
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
FIELDS = {
    "format": int,
    "library": str,
    "model": dict,
    "path": dict,
    "codec": (dict, type(None)),
    "prediction": str,
    "mask": (str, type(None)),
    "source": str,
    "tasks": list,
    "shape": list,
    "data_range": (list, type(None)),
    "classes": (list, type(None)),
    "samplers": dict,
    "stored_as": (str, type(None)),
    "measured": dict,
}


def shipped_names(task: str | None = None) -> list[str]:
    """The models whose weights come with the package, sorted: names for `FlowModel.from_pretrained`.

    Args:
        task: "sample", "fill" or "translate", for those alone that can; None for all.
    """
    return sorted(shipped_shapes(task))


def shipped_shapes(task: str | None = None) -> dict[str, tuple[int, ...]]:
    """The shapes of the shipped models' samples, by name; see `shipped_names`."""
    home = _shipped()
    folders = [path for path in home.iterdir() if path.is_dir()] if home.is_dir() else []
    configs = {path.name: read_config(path) for path in folders}
    return {
        name: tuple(config["shape"])
        for name, config in configs.items()
        if task is None or task in config["tasks"]
    }


def _shipped() -> Path:
    return Path(str(resources.files("fm_ext.hub"))) / "weights"


def find_folder(name: str | os.PathLike[str], **download: Any) -> Path:
    """The local folder of a pretrained flow; files of the hub are downloaded.

    Args:
        name: a shipped name, a folder, or owner/name on the hub. A path (`Path`, or a string that begins with ".", "~"
            or "/") is never taken for another one.
        **download: for `hf_hub_download`: revision, token, cache_dir, force_download, local_files_only.

    Raises:
        FileNotFoundError: if there is no such folder or name.
        ValueError: for a `revision` of what is not on the hub.
        OSError: if the hub cannot be reached.
    """
    text, is_path = os.fspath(name), not isinstance(name, str)
    is_path = is_path or text.startswith((".", "~", "/", os.sep)) or os.path.isabs(text)
    local = Path(text).expanduser()
    shipped = shipped_names()
    if not is_path and text in shipped:
        found = _shipped() / text
    elif text and local.is_dir():
        found = local
    elif is_path or text.count("/") != 1:
        nearest = difflib.get_close_matches(text, shipped, n=1)
        raise FileNotFoundError(
            f"`name` must be a shipped model ({', '.join(shipped) or 'there are none'}), a folder, or owner/name on "
            f"the hub; got {text!r}, which is none of them."
            + (f" Did you mean {nearest[0]!r}?" if nearest else "")
        )
    else:
        return _download(text, download)
    if download.get("revision") is not None:
        raise ValueError(
            f"`revision` must be None for {text!r}, which is no name on the hub; got {download['revision']!r}."
        )
    return found


def _download(name: str, given: dict[str, Any]) -> Path:
    """Downloads the files that are read, and no other; the folder in the hub's cache."""
    folder = None
    for file in (CONFIG, WEIGHTS):
        try:
            folder = Path(hf_hub_download(name, file, library_name="fm_ext", **given)).parent
            given = given | {"revision": folder.name}  # the commit: all files of one
        except HFValidationError as error:
            raise FileNotFoundError(
                f"`name` must be owner/name on the hub; got {name!r}: {error}"
            ) from error
        except RepositoryNotFoundError as error:
            raise FileNotFoundError(
                f"`name` must be a model on the hub that you may read; {name!r} is not there, or asks for a token "
                "(`token=`, or `hf auth login`)."
            ) from error
        except RevisionNotFoundError as error:
            raise FileNotFoundError(
                f"`revision` must be a branch, tag or commit of {name!r}; got {given.get('revision')!r}."
            ) from error
        except LocalEntryNotFoundError as error:
            raise FileNotFoundError(
                f"{name!r} is not in the cache and the hub cannot be reached: {error}"
            ) from error
        except EntryNotFoundError as error:
            raise FileNotFoundError(
                f"{name!r} on the hub holds no {file}, so it is no model of fm_ext. Pickles are never read."
            ) from error
        except HfHubHTTPError as error:
            raise OSError(f"the hub refused {file} of {name!r}: {error}") from error
    assert folder is not None
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a folder, with exactly the fields of this format.

    Raises:
        FileNotFoundError: without config.json.
        ValueError: if it is damaged, of a newer format, or has other fields.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"{folder} holds no {CONFIG}, so it is no pretrained flow. `FlowModel(...).save_pretrained(folder)` writes "
            "one; checkpoints of a Trainer become one by `FlowModel.from_checkpoint`."
        )
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES)
    if pickles:
        raise ValueError(
            f"{folder} must hold no pickle, which can run code when it is read; got {pickles[0]}. Weights are "
            f"{WEIGHTS}: remove the pickle, or convert it on a machine that trusts it."
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / CONFIG} must be JSON; it is damaged: {error}.") from error
    if not isinstance(config, dict) or not isinstance(config.get("format"), int):
        raise ValueError(
            f"{folder / CONFIG} must have a whole number as `format`; it is no config of fm_ext."
        )
    if config["format"] > FORMAT:
        raise ValueError(
            f"{folder / CONFIG} has format {config['format']}, written by {config.get('library')!r}; this fm_ext reads "
            f"up to {FORMAT}. Upgrade fm_ext."
        )
    if unknown := sorted(config.keys() - FIELDS.keys()):
        raise ValueError(
            f"{folder / CONFIG} has a field {unknown[0]!r}, which format {FORMAT} has not; it may change what the "
            "model means, so nothing is loaded. Remove it, or upgrade fm_ext."
        )
    for name, kind in FIELDS.items():
        if name not in config:
            raise ValueError(f"{folder / CONFIG} lacks the field {name!r}; it is damaged.")
        if not isinstance(config[name], kind):
            raise ValueError(
                f"{folder / CONFIG}: {name!r} is of a wrong type; got {config[name]!r}."
            )
    return config


def read_module(folder: Path, name: str, file_name: str, config: Mapping[str, Any]) -> nn.Module:
    """The module that a config's `name` describes, with its weights, in eval mode.

    Raises:
        FileNotFoundError: without weights.
        ValueError: if the weights are damaged or of another network, or a class is not registered.
    """
    file = folder / file_name
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no {file_name}; the folder is not complete.")
    read, ties = read_tensors(file)
    arguments = {name: read.pop(name).clone() for name in [*read] if name.startswith("arguments.")}
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn and thrown away
        model = build(config[name], arguments, name)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{folder / CONFIG}: `{name}` must be a network; got {type(model).__name__}."
        )
    if config["stored_as"] is None:  # else it computes in what it was built in
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in read and tensor.is_floating_point() and tensor.dtype != read[name].dtype:
                tensor.data = tensor.data.to(read[name].dtype)
    load_tensors(model, read, ties, file)
    return model.eval()


def dtype_named(name: str) -> torch.dtype:
    """The floating point dtype of a name.

    Raises:
        ValueError: for another name.
    """
    known = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    if name not in known:
        raise ValueError(f"`stored_as` must be one of {', '.join(known)}; got {name!r}.")
    return known[name]


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes config.json.

    Raises:
        ValueError: for NaN or infinity, which JSON has not.
    """
    text = json.dumps(config, indent=2, allow_nan=False, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def write_module(
    folder: Path, file_name: str, model: nn.Module, stored_as: torch.dtype | None
) -> Any:
    """Writes the weights, and returns what config.json holds of the module."""
    model = bare(model)
    arguments: dict[str, Tensor] = {}
    described = describe(model, arguments)
    tensors, ties = stored(model)
    if stored_as is not None:
        tensors = {k: v.to(stored_as) if v.is_floating_point() else v for k, v in tensors.items()}
    arguments = {name: tensor.clone().contiguous() for name, tensor in arguments.items()}
    partial = folder / f".{file_name}.partial"
    safetensors.torch.save_file(tensors | arguments, partial, {"format": "pt", **ties})
    (folder / CONFIG).touch()
    shutil.copymode(folder / CONFIG, partial)  # safetensors' own is for the owner's eyes only
    os.replace(partial, folder / file_name)
    return described
