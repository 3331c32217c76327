"""Trains a little and kills itself at the moment that is named; started by test_resume.py.

python killed.py OUTPUT_DIR write|rename|prune|sigterm
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[2]))

from fm_ext.training import Trainer, TrainerConfig

output_dir, moment = sys.argv[1:]
data = TensorDataset(torch.randn(32, 3, generator=torch.Generator().manual_seed(0)))


def fatal(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Replaces a function by death in the second save; "prune": when the first checkpoint is deleted by half."""

    def replacement(*args: Any, **kwargs: Any) -> Any:
        if trainer.step == 8 and (name != "prune" or "step_00000004" in str(args[0])):
            if name == "prune":
                (Path(args[0]) / "optimizer.bin").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return replacement if name == moment else function


def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    if moment == "sigterm" and trainer.step == 5:
        # From outside, as a scheduler does: workers make way for their own parent's signal.
        subprocess.run(["kill", "-TERM", "--", f"-{os.getpgrp()}"], start_new_session=True)
        time.sleep(0.5)
    return model(batch[0] + torch.randn_like(batch[0])).square().mean()


os.fsync = lambda descriptor: None  # a kill is no power cut
os.replace = fatal("rename", os.replace)
shutil.rmtree = fatal("prune", shutil.rmtree)
torch.save = fatal("write", torch.save)
workers: Any = {"num_workers": 2, "persistent_workers": True} if moment == "sigterm" else {}
trainer = Trainer(
    nn.Linear(3, 3),
    loss,
    DataLoader(data, 4, shuffle=True, **workers),
    TrainerConfig(steps=8, save_every=4, keep=1, output_dir=output_dir),
    Accelerator(cpu=True),
)
trainer.fit()
