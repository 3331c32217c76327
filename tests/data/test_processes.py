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


PAIRS = """
import json, sys
import datasets, numpy as np, torch
from accelerate import Accelerator
from PIL import Image
from fm_ext.data import image_pair_loader, pair_loader, write_pairs
from fm_ext.solver import simulate_pairs

class Shift(torch.nn.Module):
    def forward(self, x, t):
        return torch.ones_like(x)

def images(rows):
    values = [Image.fromarray(np.full((8, 8), row, np.uint8)) for row in range(rows)]
    return datasets.Dataset.from_dict({"image": values}).cast_column("image", datasets.Image())

def numbers(batch):
    if "source" not in batch:
        return batch["x_0"][:, 0].int().tolist()
    sides = [((batch[side][:, 0, 0, 0] + 1) * 127.5).round().int() for side in ("image", "source")]
    return torch.stack(sides, 1).tolist()

def attempt(count):
    try:
        x = torch.arange(count).float()[:, None] + 12 * accelerator.process_index
        return write_pairs(simulate_pairs(Shift(), [{"x_0": x}]), sys.argv[1] + "/pairs")
    except ValueError as error:
        return str(error)

accelerator = Accelerator()
result = {"stored": attempt(12)}
accelerator.wait_for_everyone()
result["again"] = attempt(12)
for name, loader in {
    "stored pairs": pair_loader(sys.argv[1] + "/pairs", batch_size=3, seed=5),
    "image pairs": image_pair_loader(images(13), images(24), batch_size=3, seed=5),
}.items():
    loader = accelerator.prepare(loader)
    epochs = [[numbers(batch) for batch in loader] for _ in range(3)]
    loader.set_epoch(1)
    rest = [numbers(batch) for batch in accelerator.skip_first_batches(loader, 2)]
    assert rest == epochs[1][2:], (name, rest, epochs)
    result[name] = epochs
with open(f"{sys.argv[1]}/{accelerator.process_index}.json", "w") as file:
    json.dump(result, file)
accelerator.end_training()
"""


def test_two_processes_store_and_share_pairs(two_processes: Callable) -> None:
    first, second = (json.loads(text) for text in two_processes(PAIRS))
    for share in (first, second):
        assert share["stored"] == 12 and "`folder` must hold no pairs yet" in share["again"]
    whole = {}
    for name in ("stored pairs", "image pairs"):
        parts = zip(first[name], second[name], strict=True)
        whole[name] = [[row for batch in (*a, *b) for row in batch] for a, b in parts]
    for epoch in whole["stored pairs"]:
        assert sorted(epoch) == list(range(24))
    for epoch in whole["image pairs"]:
        assert sorted(image for image, _ in epoch) == list(range(24))
    sources = [source for epoch in whole["image pairs"] for _, source in epoch]
    assert {sources.count(row) for row in range(13)} == {5, 6}  # 72 are 5 passes over 13, and 7
