"""The hub's own protocol, spoken by huggingface_hub to a server on loopback."""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("loopback", Path(__file__).with_name("loopback.py"))
assert spec and spec.loader
loopback = importlib.util.module_from_spec(spec)
spec.loader.exec_module(loopback)

CLIENT = """
import json, sys
from fm_ext.hub import FlowModel

said = {}

def attempt(name, call):
    try:
        said[name] = call()
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"

def bias(flow):
    return flow.velocity_model.model.out.bias.item()

flow = FlowModel.from_pretrained(sys.argv[1])
first, second = 1.0, 2.0
flow.velocity_model.model.out.bias.data.fill_(first)
url = flow.push_to_hub("ann/digits", token="hf_test", private=True)
flow.velocity_model.model.out.bias.data.fill_(second)
flow.push_to_hub("ann/digits", token="hf_test")
flow.push_to_hub("ann/digits", token="hf_test", branch="draft")
load = FlowModel.from_pretrained
attempt("newest", lambda: bias(load("ann/digits", token="hf_test")) == second)
attempt("commit", lambda: bias(load("ann/digits", revision=url.split("/")[-1], token="hf_test")) == first)
attempt("branch", lambda: bias(load("ann/digits", revision="draft", token="hf_test")) == second)
attempt("cached", lambda: bias(load("ann/digits", local_files_only=True)) == second)
attempt("no token", lambda: load("ann/digits", token=False, cache_dir=sys.argv[2]))
attempt("no revision", lambda: load("ann/digits", revision="v9", token="hf_test"))
attempt("no repository", lambda: load("ann/none"))
attempt("not cached", lambda: load("ann/none", local_files_only=True))
attempt("no name", lambda: load("ann/di gits"))
attempt("one commit", lambda: load("eve/moving").shape == (1, 8, 8))
attempt("pickle", lambda: load("eve/pickled"))
attempt("truncated", lambda: load("eve/truncated"))
attempt("forbidden", lambda: flow.push_to_hub("ann/digits", token="hf_wrong"))
print(json.dumps(said, default=repr))
"""


def test_a_flow_is_pushed_and_loaded_by_name_and_revision(translator, tmp_path):
    translator.save_pretrained(tmp_path / "flow")
    config, weights = (
        (tmp_path / "flow" / name).read_bytes() for name in ("config.json", "model.safetensors")
    )
    with loopback.hub() as hub:
        for name, files in {
            "eve/pickled": {"config.json": config, "pytorch_model.bin": pickle.dumps(1)},
            "eve/truncated": {"config.json": config, "model.safetensors": weights[:-8]},
        }.items():
            hub.create(name)
            hub.commit(name, files)
        hub.create("eve/moving")
        hub.commit("eve/moving", {"config.json": config, "model.safetensors": weights})
        hub.moves["eve/moving"] = {"model.safetensors": weights[:-8]}
        environment = os.environ | {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        run = subprocess.run(
            [
                sys.executable,
                "-W",
                "error",
                "-c",
                CLIENT,
                str(tmp_path / "flow"),
                str(tmp_path / "other"),
            ],
            env=environment,
            capture_output=True,
            text=True,
        )
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    for name in ("newest", "commit", "branch", "cached", "one commit"):
        assert said[name] is True, said[name]
    expected = {
        "no token": "FileNotFoundError: `name` must be a model on the hub that you may read; 'ann/digits'",
        "no revision": "FileNotFoundError: `revision` must be a branch, tag or commit of 'ann/digits'; got 'v9'",
        "no repository": "FileNotFoundError: `name` must be a model on the hub that you may read; 'ann/none'",
        "not cached": "FileNotFoundError: 'ann/none' is not in the cache and the hub cannot be reached",
        "no name": "FileNotFoundError: `name` must be owner/name on the hub; got 'ann/di gits'",
        "pickle": "FileNotFoundError: 'eve/pickled' on the hub holds no model.safetensors",
        "truncated": "ValueError: `path` must be a safetensors file",
        "forbidden": "HfHubHTTPError: ",
    }
    for name, message in expected.items():
        assert said[name].startswith(message), said[name]
    assert hub.repositories["ann/digits"]["private"]
    (*_, tree) = hub.repositories["ann/digits"]["commits"].values()
    assert sorted(tree) == ["README.md", "config.json", "model.safetensors"]
    assert not any("pytorch_model" in request for request in hub.requests)
