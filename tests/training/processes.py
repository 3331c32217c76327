"""The work of two processes, written to OUTPUT_DIR/<rank>.json; started with torchrun by test_processes.py."""

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[2]))

from fm_ext.training import CheckpointError, NonFiniteLossError, Trainer, TrainerConfig

os.fsync = lambda descriptor: None  # no power cut will come
output_dir = Path(sys.argv[1])
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
rank = accelerator.process_index
data = TensorDataset(
    torch.randn(22, 3, generator=torch.Generator().manual_seed(0)), torch.arange(22)
)


def denoise(model: nn.Module, batch: list[Tensor]) -> Tensor:
    noise = torch.randn_like(batch[0])
    return (model(batch[0] + noise) - noise).square().mean()


def make(folder: str | None = None, **settings: Any) -> Trainer:
    """On a new network, initialised differently on each process."""
    accelerator.free_memory()
    torch.manual_seed(10 + rank)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 3))
    config = {"steps": 8, "lr": 0.01, "warmup": 2, "log_every": 1, **settings}
    loader = DataLoader(data, 4, shuffle=True)
    if folder:
        config["output_dir"] = output_dir / folder
    return Trainer(net, denoise, loader, TrainerConfig(**config), accelerator)


def digest(trainer: Trainer) -> dict[str, str]:
    states = {
        "model": list(trainer.model.parameters()),
        "ema": list(trainer.ema_model.parameters()),
        "buffers": [*trainer.model.buffers(), *trainer.ema_model.buffers()],
        "optimizer": [
            v for s in trainer._optimizer.state_dict()["state"].values() for v in s.values()
        ],
    }
    return {
        name: hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()
        for name, tensors in states.items()
    }


result: dict[str, Any] = {}

whole = make("whole", save_every=1, keep=99)
rates, noises, rows = [], [], []
whole.accelerator.log = lambda values, step: rates.append(values["lr"])


def watched(model: nn.Module, batch: list[Tensor]) -> Tensor:
    noises.append(torch.rand(()).item())
    rows.append(batch[1].tolist())
    return denoise(model, batch)


whole.loss = watched
whole.fit()
result |= {"whole": digest(whole), "rates": rates[:], "noises": noises[:], "rows": rows[:]}

result["resumed"] = {}
for step in range(1, 8):
    name = f"step_{step:08d}"
    if rank == 0:
        shutil.copytree(output_dir / "whole" / name, output_dir / f"from_{step}" / name)
    accelerator.wait_for_everyone()
    resumed = make(f"from_{step}")
    resumed.loss = watched
    resumed.fit()
    result["resumed"][step] = digest(resumed)

bad = make("bad", save_every=2, log_every=4)
bad.loss = lambda model, batch: (
    denoise(model, batch) * (torch.nan if (bad.step, rank) == (2, 1) else 1)
)
try:
    bad.fit()
except NonFiniteLossError as error:
    result["error"] = str(error)

full = make("full", save_every=2)
save_state = accelerator.save_state


def fail_on_one(folder: str) -> None:
    if (full.step, rank) == (4, 1):
        raise OSError(28, "No space left on device")
    save_state(folder)


accelerator.save_state = fail_on_one
try:
    full.fit()
except CheckpointError as error:
    result["failed_save"] = str(error)
accelerator.save_state = save_state
result["left"] = sorted(path.name for path in (output_dir / "full").iterdir())

if rank == 0:
    (output_dir / "file").write_text("in the way")
blocked = make("file")
try:
    blocked.fit()
except ValueError as error:
    result["blocked"] = str(error)

accelerator.free_memory()
network = nn.Linear(3, 3)
five = TensorDataset(torch.randn(5, 3))
settings = TrainerConfig(steps=1, output_dir=None)
try:
    Trainer(network, denoise, DataLoader(five, 4, drop_last=True), settings, accelerator)
except ValueError as error:
    result["no_batch"] = str(error)
for cure in ({"batch_size": 2, "drop_last": True}, {"batch_size": 4, "drop_last": False}):
    accelerator.free_memory()
    Trainer(network, denoise, DataLoader(five, **cure), settings, accelerator).fit()

data = TensorDataset(data.tensors[0].flip(0), data.tensors[1])
other = make("whole", steps=9)
try:
    other.fit()
except ValueError as error:
    result["other_data"] = str(error)

accelerator.log = Accelerator.log.__get__(accelerator)
stopped = make("stopped")


def signalled(model: nn.Module, batch: list[Tensor]) -> Tensor:
    if (stopped.step, rank) == (2, 1):
        os.kill(os.getpid(), signal.SIGTERM)
    return denoise(model, batch)


stopped.loss = signalled
try:
    stopped.fit()
except SystemExit as exit_:
    result |= {"stopped_at": stopped.step, "exit_status": exit_.code}

(output_dir / f"{rank}.json").write_text(json.dumps(result))
accelerator.end_training()  # a process that ends with its group alive may be aborted by the group's threads
