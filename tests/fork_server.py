"""Runs scripts one after another, each in a fork of a process that has imported the libraries.

An import of all of them takes about 6 s of a core, and most examples at smoke size take less. Reads one line of JSON a
script from the standard input, `{"script", "arguments", "folder", "log"}`; answers with its exit status.
"""

import json
import os
import runpy
import sys
import traceback

import accelerate  # noqa: F401
import datasets  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import torch  # noqa: F401
import torchvision.transforms.v2  # noqa: F401

import fm_ext.data
import fm_ext.hub
import fm_ext.metrics
import fm_ext.solver
import fm_ext.training  # noqa: F401


def run(script: str, arguments: list[str], folder: str, log: str) -> int:
    """What `python <script> <arguments>` does in this folder; returns its exit status."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(script))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        status = run(**json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
