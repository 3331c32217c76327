"""A folder that is not what it should be is refused with a sentence, and nothing in it is executed."""

import json
import os
import pickle
import re
from pathlib import Path

import pytest
import safetensors.torch
from flow_matching.path import CondOTProbPath

from fm_ext.hub import FlowModel
from fm_ext.models import SmallUNet, UNetWrapper


@pytest.fixture
def folder(translator, tmp_path) -> Path:
    translator.save_pretrained(tmp_path / "flow")
    return tmp_path / "flow"


def change(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def lacking(folder: Path, name: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config[name]
    (folder / "config.json").write_text(json.dumps(config))


class Bomb:
    """Says so if it is ever unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["FM_EXT_BOMB"],)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def other_weights(folder: Path) -> None:
    network = UNetWrapper(SmallUNet(2))
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")


def nested(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


WRAPPED = {"class": "unet_wrapper", "model": {"class": "small_unet"}}
BAD = {
    "a newer format": (
        lambda f: change(f, format=2),
        "format 2, written by 'fm_ext .*Upgrade fm_ext",
    ),
    "an unknown field": (
        lambda f: change(f, auto_map="code.py"),
        "a field 'auto_map', which format 1",
    ),
    "a missing field": (lambda f: lacking(f, "tasks"), "lacks the field 'tasks'"),
    "a field of a wrong type": (lambda f: change(f, shape=8), "'shape' is of a wrong type; got 8"),
    "no format": (lambda f: change(f, format="1"), "must have a whole number as `format`"),
    "another convention": (lambda f: change(f, mask="true_is_known"), "`mask` must be None"),
    "a bad task": (lambda f: change(f, tasks=["paint"]), "`tasks` must be among"),
    "a bad shape": (lambda f: change(f, shape=["a", 1]), "cannot be used"),
    "a bad sampler": (
        lambda f: change(f, samplers={"translate": {"x": 1}}),
        "cannot be used: .*'x'",
    ),
    "a bad range": (lambda f: change(f, data_range=[1, -1]), "`data_range` must be"),
    "a bad dtype": (lambda f: change(f, stored_as="int8"), "`stored_as` must be one of float16"),
    "a bad card": (lambda f: change(f, measured={"x": 1}), "cannot be used: .*'x'"),
    "a damaged config": (lambda f: truncate(f / "config.json"), "must be JSON; it is damaged"),
    "a config that nests": (nested, "must be JSON; it is damaged"),
    "truncated weights": (
        lambda f: truncate(f / "model.safetensors"),
        "must be a safetensors file",
    ),
    "other weights": (other_weights, "must be built like the network .* tensors differ: .*shape"),
    "another network": (
        lambda f: change(f, model={"class": "mlp", "dim": 2}),
        "must be built like the network .* tensors differ: .* is not in `model`",
    ),
    "a network that is not registered": (
        lambda f: change(f, model=WRAPPED | {"class": "os.system"}),
        r"`model` is a 'os.system', which is not registered.*@fm_ext.hub.register\('os.system'\)",
    ),
    "a name close by": (
        lambda f: change(f, path={"class": "masked_paht"}),
        "Did you mean 'masked_path'",
    ),
    "a function of torch.nn": (
        lambda f: change(f, model={"class": "mlp", "activation": {"module": "init"}}),
        "must name a class of torch.nn; got 'init'",
    ),
    "a tensor that is not there": (
        lambda f: change(f, model={"tensor": "/etc/passwd"}),
        "names a tensor",
    ),
    "an unknown scheduler": (
        lambda f: change(f, path={"class": "affine_path", "scheduler": {"scheduler": "sqrt"}}),
        "'sqrt' cannot be built: `name` must be one of",
    ),
    "an argument that is not taken": (
        lambda f: change(f, model=WRAPPED | {"code": "rm"}),
        "'unet_wrapper' cannot be built: .*'code'",
    ),
    "an argument out of range": (
        lambda f: change(f, path={"class": "bridge_path", "sigma": -1}),
        "'bridge_path' cannot be built: `sigma` must be finite",
    ),
    "no network": (lambda f: change(f, model=3), "'model' is of a wrong type"),
    "a path for a network": (
        lambda f: change(f, model={"class": "cond_ot_path"}),
        "must be a network",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_refused(case, folder, untyped):
    spoil, message = BAD[case]
    spoil(folder)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        FlowModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pkl", "last.CKPT", "model.safetensors"]
)
def test_a_pickle_is_refused_and_never_read(name, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("FM_EXT_BOMB", str(tmp_path / "exploded"))
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"must hold no pickle|must be a safetensors file"):
        FlowModel.from_pretrained(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused(file, folder):
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {file}"):
        FlowModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "name",
    ["mnits", "../mnist", "./mnist", "/nowhere", "~/nowhere", "a/b/c", "a/../b", Path("mnist"), ""],
)
def test_a_name_that_is_nothing_is_refused_without_the_hub(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"must be a shipped model .*, a folder, or owner/name"
    ):
        FlowModel.from_pretrained(name)


def test_a_revision_belongs_to_the_hub(folder):
    with pytest.raises(ValueError, match="`revision` must be None for"):
        FlowModel.from_pretrained(folder, revision="main")


@pytest.mark.parametrize(
    "given, error, message",
    [
        (
            {"time_scale": lambda t: 2 * t},
            TypeError,
            "`arguments.time_scale` must be data and not code",
        ),
        ({"arguments": {"class": "label"}}, ValueError, "must have keys .* got 'class'"),
    ],
)
def test_what_cannot_be_written_is_refused(given, error, message, tmp_path):
    model = UNetWrapper(SmallUNet(1), **given)
    with pytest.raises(error, match=message):
        FlowModel(model, CondOTProbPath(), shape=(1, 8, 8)).save_pretrained(tmp_path)
