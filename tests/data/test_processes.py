"""Two real processes, started by torchrun, with `accelerator.prepare`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from fm_ext.data import image_loader

SCRIPT = """
import json, random, sys
import torch
from accelerate import Accelerator
from fm_ext.data import image_loader

WAYS = {
    "memory": dict(in_memory=True),
    "lazy": dict(in_memory=False, num_workers=2),
    "stream": dict(streaming=True, num_workers=2),
}

def numbers(batches):
    return [((batch["image"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist() for batch in batches]

if __name__ == "__main__":
    accelerator = Accelerator()
    torch.manual_seed(accelerator.process_index)
    random.seed(0)
    state, python_state = torch.get_rng_state(), random.getstate()
    result = {}
    for name, way in WAYS.items():
        loader = image_loader(sys.argv[1], batch_size=3, seed=5, **way)
        loader = accelerator.prepare(loader)
        epochs = [numbers(loader) for _ in range(2)]
        loader.set_epoch(1)
        resumed = numbers(accelerator.skip_first_batches(loader, 2))
        assert resumed == epochs[1][2:], (name, resumed, epochs)
        result[name] = epochs
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python_state
    file = open(f"{sys.argv[2]}/{accelerator.process_index}.json", "w")
    json.dump([accelerator.num_processes, result], file)
    accelerator.end_training()
"""


def test_two_processes(numbered: Callable, read_rows: Callable, tmp_path: Path) -> None:
    """Each row once in an epoch, in the order of one process, and the same when resumed."""
    numbered(24).save_to_disk(tmp_path / "data")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--master_port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [*command, tmp_path / "script.py", tmp_path / "data", tmp_path],
        env={
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "huggingface"),
            "PYTHONPATH": str(root),
        },
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (count, first), (_, second) = (
        json.loads((tmp_path / f"{index}.json").read_text()) for index in range(2)
    )
    assert count == 2
    assert first["memory"] == first["lazy"] and second["memory"] == second["lazy"]
    for way in ("memory", "stream"):
        loader = image_loader(
            tmp_path / "data", batch_size=3, seed=5, streaming=way == "stream", num_workers=0
        )
        for a, b in zip(first[way], second[way], strict=True):
            merged = [numbers for pair in zip(a, b, strict=True) for numbers in pair]
            alone = [[2 * n for n, _ in read_rows(batch["image"])] for batch in loader]
            assert merged == alone
            assert sorted(n for numbers in merged for n in numbers) == list(range(0, 48, 2))
