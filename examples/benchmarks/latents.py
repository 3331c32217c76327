"""Seconds and memory of a training step in pixels and in latents, with the autoencoder's own passes.

    python examples/benchmarks/latents.py --size 256 --batch 4 16
    python examples/benchmarks/latents.py --size 256 --batch 4 16 64 --compute     # nothing is run
Pixels are `UNet.preset(size)`; latents are those of an autoencoder of 8x8 (4 channels) or 4x4 pixels (3 channels) and
Stable Diffusion's widths, with random weights, under `UNet.preset(size / 8)` and `UNet.preset(size / 4)`. A step is
forward, loss, backward and AdamW. Seconds are those of the processor on a CPU (other load does not count), and of the
clock on CUDA. Peak memory is that of the process above its start, one process a row; on CUDA it is
the allocator's. --dtype bfloat16 runs the networks under autocast. --compute counts, on tensors without memory, what a
step keeps for its backward pass in float32, and its multiplications and additions.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import torch
from flow_matching.path import CondOTProbPath
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from fm_ext.loss import velocity_loss
from fm_ext.mask import Hybrid
from fm_ext.models import LatentCodec, UNet, UNetWrapper
from fm_ext.path import MaskedProbPath

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
SPACES = {"pixels": (1, 3), "f4": (4, 3), "f8": (8, 4)}  # pixels a cell's side, channels

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--smoke", action="store_true", help="a run of seconds that measures nothing")
parser.add_argument("--size", type=int, default=256)
parser.add_argument("--batch", type=int, nargs="+", default=[4])
parser.add_argument("--spaces", nargs="+", choices=SPACES, default=list(SPACES))
parser.add_argument("--steps", type=int, default=3)
parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
parser.add_argument("--vae-width", type=int, default=128, help="Stable Diffusion's is 128")
parser.add_argument("--compute", action="store_true", help="count instead of measuring")
parser.add_argument("--row", help=argparse.SUPPRESS)
args = parser.parse_args()
if args.smoke or SMOKE:
    args.size, args.steps, args.batch, args.spaces, args.vae_width = 32, 1, [1], ["pixels", "f4"], 8


def peak() -> float:
    """Megabytes, the most so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(space: str, batch: int) -> dict[str, float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    factor, channels = SPACES[space]
    side, model = args.size // factor, network(space).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    path = MaskedProbPath(CondOTProbPath())
    before = peak()

    def step() -> None:
        x_1 = torch.randn(batch, channels, side, side, device=device)
        mask = Hybrid()(batch, (side, side), device=device)
        sample = path.sample(
            torch.randn_like(x_1), x_1, torch.rand(batch, device=device), mask=mask
        )
        with torch.autocast(device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            answer = model(x=sample.x_t, t=sample.t, mask=mask)
        velocity_loss(answer.float(), sample).backward()
        optimizer.step()
        optimizer.zero_grad()

    figures = {"step": timed(step), "memory": peak() - before}
    figures["parameters"] = sum(p.numel() for p in model.parameters()) / 1e6
    if factor > 1:
        import diffusers

        width, levels = args.vae_width, {4: 3, 8: 4}[factor]
        widths = [width, 2 * width, 4 * width, 4 * width]
        vae = diffusers.AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            block_out_channels=widths[-levels:] if levels == 4 else widths[:3],
            layers_per_block=2,
            latent_channels=channels,
            norm_num_groups=min(32, width),
        )
        codec = LatentCodec(vae.to(device), batch_size=1)
        images = torch.rand(1, 3, args.size, args.size, device=device) * 2 - 1
        with torch.autocast(device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            latents = codec.encode(images)
            figures["encode"] = timed(lambda: codec.encode(images), 2)
            figures["decode"] = timed(lambda: codec.decode(latents), 2)
    return figures


def network(space: str) -> UNetWrapper:
    factor, channels = SPACES[space]
    preset = min((32, 64, 128, 256), key=lambda size: abs(size - args.size // factor))
    return UNetWrapper(UNet.preset(preset, channels + 1, channels), ("mask",))


def compute(space: str, batch: int) -> tuple[float, float, float]:
    """Megabytes of weights, gradients and moments; of what is kept for the backward pass; and Gflop of a step."""
    factor, channels = SPACES[space]
    model, side = network(space).to("meta"), args.size // factor
    kept: dict[int, tuple[torch.Tensor, int]] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch.nn.Parameter):
            kept[x.untyped_storage()._cdata] = x, x.untyped_storage().nbytes()
        return x

    x = torch.randn(batch, channels, side, side, device="meta")
    mask = torch.ones(batch, 1, side, side, dtype=torch.bool, device="meta")
    with FlopCounterMode(display=False) as flops, saved_tensors_hooks(keep, lambda x: x):
        answer = model(x=x, t=torch.rand(batch, device="meta"), mask=mask)
        answer.square().mean().backward()
    weights = sum(p.numel() for p in model.parameters()) * 4
    activations = sum(size for _, size in kept.values())
    return 4 * weights / 2**20, activations / 2**20, flops.get_total_flops() / 1e9


def timed(call, rounds: int | None = None) -> float:
    """Seconds of the median call, after one that does not count."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    times = []
    for _ in range(1 + (rounds or args.steps)):
        begin = clock()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(clock() - begin)
    return sorted(times[1:])[len(times[1:]) // 2]


if args.compute:
    print("| space | batch | weights, gradients, moments (MB) | kept (MB) | Gflop a step |")
    print("|---|---|---|---|---|")
    for batch in args.batch:
        for space in args.spaces:
            cells = " | ".join(f"{value:.0f}" for value in compute(space, batch))
            print(f"| {space} | {batch} | {cells} |", flush=True)
    sys.exit()
if args.row:  # a process of its own, so that its peak is its own
    space, batch = args.row.split(",")
    print("ROW " + json.dumps(measure(space, int(batch))))
    sys.exit()
print(
    "| space | batch | parameters (M) | seconds a step | MB above the start | encode an image | decode one |"
)
print("|---|---|---|---|---|---|---|", flush=True)
for batch in args.batch:
    for space in args.spaces:
        command = [sys.executable, *sys.argv, "--row", f"{space},{batch}"]
        output = subprocess.run(command, capture_output=True, text=True)
        lines = [line for line in output.stdout.splitlines() if line.startswith("ROW ")]
        if not lines:
            print(f"| {space} | {batch} | failed: {output.stderr.strip().splitlines()[-1:]} |")
            continue
        f = json.loads(lines[0][4:])
        passes = [f"{f[name]:.2f} s" if name in f else "" for name in ("encode", "decode")]
        print(
            f"| {space} | {batch} | {f['parameters']:.1f} | {f['step']:.2f} | {f['memory']:.0f} | {passes[0]} "
            f"| {passes[1]} |",
            flush=True,
        )
