"""Our U-Net against torchcfm's and diffusers', of the same structure: training step and 50 Euler steps.

    pip install torchcfm diffusers
    python examples/benchmarks/unet.py                      # minutes on 2 CPU cores
    python examples/benchmarks/unet.py --size 28 --rounds 5
    python examples/benchmarks/unet.py --compile            # a GPU: eager and compiled, with peak memory
    python examples/benchmarks/unet.py --parts sampling --only "ours, preset" --compile       # a CPU

The nets take turns, step by step, so that a busy machine slows all of them alike; printed are medians of the ratios to
the first, torchcfm in fp32. A peer that is not installed is left out. "same" is our net with the peers' levels, widths,
blocks and attention; "preset" is what `UNet.preset` recommends, which attends at the lowest level only.
"""

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from fm_ext.models import UNet, UNetWrapper

warnings.filterwarnings("ignore", category=FutureWarning)  # the peers'

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def nets(size: int) -> dict[str, nn.Module]:
    """The contestants that are installed, as velocity models v(x, t) of one structure."""
    channels, mult, level = (1, (1, 2, 2), 0) if size == 28 else (3, (1, 2, 3, 4), 2)
    built: dict[str, nn.Module] = {}
    if find_spec("torchcfm"):
        from torchcfm.models.unet.unet import UNetModelWrapper

        torchcfm = UNetModelWrapper(dim=(channels, size, size), num_channels=32, num_res_blocks=1)
        built["torchcfm"] = UNetWrapper(torchcfm)
    if find_spec("diffusers"):
        from diffusers import UNet2DModel

        down = ["DownBlock2D"] * len(mult)
        up = ["UpBlock2D"] * len(mult)
        down[level], up[-1 - level] = "AttnDownBlock2D", "AttnUpBlock2D"
        diffusers = UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=1,
            block_out_channels=[32 * m for m in mult],
            down_block_types=down,
            up_block_types=up,
            attention_head_dim=None,
        )
        built["diffusers"] = UNetWrapper(diffusers, time_scale=1000)
    same = UNet(
        channels,
        channels=32,
        multipliers=mult,
        attention=(level, len(mult) - 1),
        head_channels=256,
    )
    for stage in [*same.down, *same.up]:  # at the lowest level the peers attend in the middle only
        if isinstance(stage, nn.ModuleList) and stage[-1].__class__.__name__ == "Attention":
            if stage[-1].qkv.in_features != 32 * mult[level]:
                del stage[-1]
    built["ours, same"] = UNetWrapper(same)
    built["ours, preset"] = UNetWrapper(UNet.preset(size, channels, channels=32))
    return built


def training_step(net: nn.Module, x: Tensor, precision: torch.dtype) -> Callable[[], Any]:
    """Forward, loss, backward and a fused AdamW step, on fresh noise."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        t = torch.rand(len(x), device=device)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            velocity = net(x=x + torch.randn_like(x), t=t)
        (velocity.float() - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def sampling(net: nn.Module, x: Tensor, precision: torch.dtype) -> Callable[[], Any]:
    """50 Euler steps; 2 of a smoke run."""
    steps = 2 if SMOKE else 50
    times = torch.linspace(0, 1, steps + 1, device=device)

    @torch.no_grad()
    def sample() -> None:
        state = x
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            for t in times[:-1]:
                state = state + net(x=state, t=t).float() / steps

    return sample


PARTS = {"training": ("training step", training_step), "sampling": ("50 Euler steps", sampling)}


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def race(calls: dict[str, Callable[[], Any]], rounds: int, unit: int, what: str) -> None:
    """Prints each contestant's median ratio to the first one, which takes its turn in every round."""
    peaks = {}
    for name, call in calls.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        call()
        peaks[name] = torch.cuda.max_memory_allocated() / 1e6 if device.type == "cuda" else None
        if device.type == "cuda":
            call()
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    first = times[next(iter(calls))]
    print(f"\n{what}\n{'':<28}{'ratio':>8}{'images/s':>11}{'peak MB':>9}")
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(first, values, strict=True))
        peak = f"{peaks[name]:9.0f}" if peaks[name] else f"{'-':>9}"
        print(f"{name:<28}{ratio:8.2f}{unit / statistics.median(values):11.1f}{peak}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--size", type=int, nargs="*", default=[28] if SMOKE else [28, 64], choices=[28, 64]
    )
    parser.add_argument("--rounds", type=int, default=1 if SMOKE else 7)
    parser.add_argument("--batch-size", type=int, help="64 at 28 pixels and 16 at 64 if not given")
    parser.add_argument("--only", nargs="*", metavar="NET", help="the nets to compare, by name")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=[*PARTS])
    parser.add_argument("--compile", action="store_true", help="compiled twins of every net too")
    args = parser.parse_args()
    for size in args.size:
        torch.manual_seed(0)
        batch = args.batch_size or (2 if SMOKE else {28: 64, 64: 16}[size])
        precisions = {"fp32": torch.float32, "bf16": torch.bfloat16}
        x = torch.randn(batch, 1 if size == 28 else 3, size, size, device=device)
        built = {
            name: net.to(device)
            for name, net in nets(size).items()
            if args.only is None or name in args.only
        }
        if not built:
            raise SystemExit(f"--only must name nets among {', '.join(nets(size))}")
        parameters = ", ".join(
            f"{name} {sum(p.numel() for p in net.parameters()):,}" for name, net in built.items()
        )
        print(
            f"\n{size}x{size}, batch {batch}, {torch.get_num_threads()} threads, {device}; {parameters}"
        )
        if args.compile:
            built |= {f"{name} compiled": torch.compile(net) for name, net in built.items()}
        for part in args.parts:
            title, make = PARTS[part]
            state = x if part == "training" else x[:16]
            calls = {
                f"{name} {precision}": make(net, state, dtype)
                for precision, dtype in precisions.items()
                for name, net in built.items()
            }
            rounds = args.rounds if part == "training" else max(2, args.rounds // 2)
            race(calls, rounds, len(state), f"{title}, {size}x{size}, images {len(state)}")


if __name__ == "__main__":
    main()
