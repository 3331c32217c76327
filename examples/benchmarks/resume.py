"""Kills a training run (kill -9), resumes it each time, and compares it with an uninterrupted one.

    python examples/benchmarks/resume.py --kills 50

Of ten kills seven come at random moments of the training, two while a checkpoint is being written, one while the
program is starting. Weights, average and optimiser must be equal bit for bit in the end, on one process and on two.
"""

import argparse
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from flow_matching.path import CondOTProbPath
from safetensors.torch import load_file
from torch import Tensor, nn

from fm_ext.data import image_loader
from fm_ext.loss import velocity_loss
from fm_ext.models import SmallUNet
from fm_ext.training import Trainer, TrainerConfig, latest_checkpoint

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
SAVE_EVERY = 3
STEPS_A_KILL = 30  # the farthest that a kill lets the run come, with 9 to spare
DATA = Path(__file__).parents[1] / "data" / "mnist"
MOMENTS = ["training"] * 7 + ["saving"] * 2 + ["starting"]  # of ten kills


def train(output_dir: str, steps: int) -> None:
    """What is killed and resumed: nothing in it knows about that."""
    path = CondOTProbPath()

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        x_1 = batch["image"]
        s = path.sample(x_0=torch.randn_like(x_1), x_1=x_1, t=torch.rand(len(x_1)))
        return velocity_loss(model(s.x_t, s.t), s)

    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    loader = image_loader(str(DATA), split="train[:100]", size=12, batch_size=4, flip=True)
    config = TrainerConfig(
        steps=steps, warmup=20, save_every=SAVE_EVERY, keep=2, output_dir=output_dir
    )
    Trainer(SmallUNet(), loss, loader, config, accelerator).fit()


def launch(output_dir: Path, processes: int, steps: int) -> list[subprocess.Popen[bytes]]:
    """Starts the processes as torchrun does, but so that each can be killed."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    env = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TQDM_DISABLE": "1"}
    if processes > 1:
        env |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    command = [sys.executable, __file__, "--train", str(output_dir), str(steps)]
    return [
        subprocess.Popen(
            command,
            env=os.environ
            | env
            | ({"RANK": str(r), "LOCAL_RANK": str(r)} if processes > 1 else {}),
            stdout=subprocess.DEVNULL,
        )
        for r in range(processes)
    ]


def newest(output_dir: Path) -> int:
    checkpoint = latest_checkpoint(output_dir)
    return int(checkpoint.name.removeprefix("step_")) if checkpoint else 0


def unfinished(output_dir: Path) -> set[int]:
    """Half-written checkpoints, by inode: one that an earlier kill has left is not counted again."""
    if not output_dir.is_dir():
        return set()
    return {entry.inode() for entry in os.scandir(output_dir) if entry.name.endswith(".partial")}


def kill_at(moment: str, output_dir: Path, processes: int, steps: int, rng: random.Random) -> None:
    """Starts the run and kills all its processes at the moment that is named."""
    before, saves = newest(output_dir), rng.randint(1, 6)
    running = launch(output_dir, processes, steps)
    if moment == "starting":
        time.sleep(rng.uniform(0, 5))
    else:
        while newest(output_dir) < before + saves * SAVE_EVERY:
            assert all(process.poll() is None for process in running), "ended before it was killed"
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2) if moment == "training" else 0)
        while moment == "saving" and not unfinished(output_dir):
            pass
    for process in running:
        process.kill()
    for process in running:
        process.wait()


def final_state(output_dir: Path, steps: int) -> dict[str, Tensor]:
    folder = output_dir / f"step_{steps:08d}"
    state = {f"model.{k}": v for k, v in load_file(folder / "model.safetensors").items()}
    state |= {f"ema.{k}": v for k, v in load_file(folder / "ema.safetensors").items()}
    optimizer = torch.load(folder / "optimizer.bin", weights_only=True)["state"]
    return state | {f"adam.{i}.{k}": v for i, s in optimizer.items() for k, v in s.items()}


def compare(processes: int, kills: int, folder: Path) -> None:
    """Trains twice, once uninterrupted and once with kills, and asserts that the results are equal."""
    rng, steps = random.Random(processes), kills * STEPS_A_KILL
    started = time.perf_counter()
    assert not any(process.wait() for process in launch(folder / "whole", processes, steps))
    inside = 0
    moments = [MOMENTS[kill % len(MOMENTS)] for kill in range(kills)]
    for number, moment in enumerate(rng.sample(moments, kills), start=1):
        before = unfinished(folder / "killed")
        kill_at(moment, folder / "killed", processes, steps, rng)
        left = bool(unfinished(folder / "killed") - before)
        inside += left
        step = newest(folder / "killed")
        print(
            f"{processes:9} {number:5}  {moment:9} {step:15}  {'yes' if left else 'no'}", flush=True
        )
    assert inside or "saving" not in moments, "no kill came inside a save"
    assert not any(process.wait() for process in launch(folder / "killed", processes, steps))
    whole, killed = final_state(folder / "whole", steps), final_state(folder / "killed", steps)
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    seconds = time.perf_counter() - started
    print(
        f"{processes:9}  {len(whole)} tensors after {steps} steps and {kills} kills, {inside} of them inside a save: "
        f"all equal bit for bit ({seconds:.0f} s)",
        flush=True,
    )


if sys.argv[1:2] == ["--train"]:
    train(sys.argv[2], int(sys.argv[3]))
else:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kills",
        type=int,
        default=1 if SMOKE else 10,
        help="for each number of processes",
    )
    parser.add_argument(
        "--processes",
        type=int,
        nargs="+",
        default=[1] if SMOKE else [1, 2],
        help="numbers of them",
    )
    args = parser.parse_args()
    print("processes  kill  while     last good step  inside a save")
    with tempfile.TemporaryDirectory() as temporary:
        for processes in args.processes:
            compare(processes, args.kills, Path(temporary) / str(processes))
