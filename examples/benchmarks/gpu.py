"""Measures the package on a GPU, in about ten minutes: one table and one JSON.

    pip install torchcfm diffusers opencv-python-headless
    python examples/benchmarks/gpu.py --digits <folder of MNIST> --portraits <folder of portraits at 128 pixels>
    python examples/benchmarks/gpu.py --only unet masks
Measures the U-Net's training step and 50 Euler steps (eager and compiled, beside torchcfm's and diffusers' of the same
structure), a path's sample and loss, the masks, optimal transport, digits generated after 60 seconds of training, and
portraits filled at 128 pixels after 300. A peer that is not installed is left out. Times are medians, with the device
synchronised around each call. CIFAR-10 in the peers' setting is another command: docs/content/models.md.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import flow_matching.path as upstream
import torch
from flow_matching.solver import ODESolver
from race import Recipe, Run, draw, judge, unet
from unet import device, nets, sampling, training_step

from fm_ext.coupling import GreedyTransport, OptimalTransport
from fm_ext.data import load_images
from fm_ext.loss import LogitNormalTime, ShiftedTime, velocity_loss
from fm_ext.mask import CenterBox, FreeForm, Hybrid, Irregular, RandomBox
from fm_ext.metrics import colour_error, hole_psnr, hole_ssim
from fm_ext.models import MaskedVelocityModel, UNet, UNetWrapper
from fm_ext.path import CondOTProbPath, MaskedProbPath

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DATA = Path(__file__).parents[1] / "data"
Row = tuple[str, str, float, str]  # what was measured, whose, how much, of what

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--digits", default=str(DATA / "mnist"))
parser.add_argument("--portraits", default=str(DATA / "portraits"))
parser.add_argument("--rounds", type=int, default=1 if SMOKE else 15)
parser.add_argument("--generate-seconds", type=float, default=0.2 if SMOKE else 60)
parser.add_argument("--portraits-seconds", type=float, default=0.2 if SMOKE else 300)
parser.add_argument("--output", type=Path, default=Path("outputs/gpu/gpu.json"))


def milliseconds(call: Callable[[], Any]) -> float:
    """The median time of a call, after one that warms up."""
    times = []
    for _ in range(args.rounds + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def measure_unet() -> Iterator[Row]:
    """Ours and the peers', in both precisions, eager and compiled."""
    for size in (28,) if SMOKE else (28, 64):
        batch = 2 if SMOKE else {28: 256, 64: 64}[size]
        state = torch.randn(batch, 1 if size == 28 else 3, size, size, device=device)
        built = {name: net.to(device) for name, net in nets(size).items()}
        if device.type == "cuda":
            built |= {f"{name}, compiled": torch.compile(net) for name, net in built.items()}
        for name, net in built.items():
            for precision in (torch.float32, torch.bfloat16):
                half = str(precision).removeprefix("torch.")
                step = milliseconds(training_step(net, state, precision))
                yield f"training step {size}", f"{name}, {half}", 1e3 * batch / step, "images/s"
                draws = milliseconds(sampling(net, state, precision))
                yield f"50 Euler steps {size}", f"{name}, {half}", 1e3 * batch / draws, "images/s"


def measure_path() -> Iterator[Row]:
    """A batch of 256-pixel images: the path's sample, and the masked one with its loss."""
    x = torch.randn(2 if SMOKE else 64, 3, 256, 256, device=device)
    noise, t = torch.randn_like(x), torch.rand(len(x), device=device)
    mask = CenterBox()(len(x), x.shape[-2:], device=device)
    paths = {"flow_matching": upstream.CondOTProbPath(), "fm_ext": CondOTProbPath()}
    for name, path in paths.items():
        yield "sample 256", name, milliseconds(lambda path=path: path.sample(noise, x, t)), "ms"
    masked = MaskedProbPath(paths["fm_ext"])

    def sample_and_loss() -> None:
        velocity_loss(x, masked.sample(noise, x, t, mask=mask))

    yield "masked sample and loss 256", "fm_ext", milliseconds(sample_and_loss), "ms"


def measure_masks() -> Iterator[Row]:
    batch = 2 if SMOKE else 64
    for kind in (CenterBox(), RandomBox(), FreeForm(), Irregular(), Hybrid()):
        took = milliseconds(lambda kind=kind: kind(batch, (256, 256), device=device))
        yield "masks 256", type(kind).__name__, 1e3 * batch / took, "masks/s"


def measure_coupling() -> Iterator[Row]:
    for batch in (16,) if SMOKE else (256, 1024):
        noise, x = torch.randn(2, batch, 3, 32, 32, device=device)
        couplings: dict[str, Callable[..., Any]] = {
            "OptimalTransport": OptimalTransport(),
            "GreedyTransport": GreedyTransport(),
        }
        if find_spec("torchcfm"):
            from torchcfm.optimal_transport import OTPlanSampler

            couplings["torchcfm"] = OTPlanSampler("exact", warn=False).sample_plan
        for name, coupling in couplings.items():
            took = milliseconds(partial(coupling, noise, x))
            yield f"transport of {batch} images of 32 pixels", name, took, "ms"


def measure_generate() -> Iterator[Row]:
    """The recipe of examples/generate.py, by the clock, with and without guidance."""
    images, labels = load_images(args.digits, split="train", label_column="label", device=device)
    count = 250 if SMOKE else 2000
    reference, _ = load_images(args.digits, limit=count)
    assert labels is not None
    recipe = Recipe(net=unet(lean=True), batch_size=16 if SMOKE else 128, times=LogitNormalTime())
    run = Run(recipe, images, labels, args.generate_seconds, seed=0)
    run.advance(args.generate_seconds)
    what = f"digits after {args.generate_seconds:g} s"
    yield what, "fm_ext", run.steps, "steps"
    for scale in (1.0, 1.5):
        steps = 1 if SMOKE else 10
        samples = draw(run, run.weights(), len(reference), steps=steps, scale=scale, batch_size=250)
        found = judge(samples, reference)
        name = f"guidance {scale:g}"
        yield what, name, found["frechet"][0], "Frechet distance"
        yield what, name, 100 * found["accuracy"], "% right class"


def measure_portraits() -> Iterator[Row]:
    """Holes of 128 pixels filled by the network of examples/inpainting.py and by one of full width."""
    size = 32 if SMOKE else 128
    images, labels = load_images(args.portraits, split="train", size=size, device=device)
    images = torch.cat([images, images.flip(-1)])
    labels = torch.zeros(len(images), dtype=torch.int64, device=device)
    test, _ = load_images(args.portraits, size=size, limit=4 if SMOKE else 64, device=device)
    lean = {"channels": 32, "multipliers": (1, 2, 2, 2), "patch_size": 4}
    wide = {"channels": 128, "multipliers": (1, 2, 2, 2), "patch_size": 2}
    contestants = {"lean": lean} if SMOKE else {"lean": lean, "wide": wide}
    for name, changes in contestants.items():

        def net(changes: dict[str, Any] = changes) -> UNetWrapper:
            return UNetWrapper(UNet.preset(128, 4, 3, blocks=1, **changes), concat=("mask",))

        recipe = Recipe(net=net, batch_size=32, ema=0.999, labels=False, mask=Hybrid())
        recipe = replace(recipe, times=ShiftedTime(shift=3.0), lr=2e-3 if name == "lean" else 5e-4)
        run = Run(recipe, images, labels, args.portraits_seconds, seed=0)
        run.advance(args.portraits_seconds)
        model = recipe.net().to(device).eval()
        model.load_state_dict(run.weights())
        solver = ODESolver(MaskedVelocityModel(model))
        what = f"portraits {size}, {args.portraits_seconds:g} s"
        yield what, name, run.steps, "steps"
        for kind in (CenterBox(), Hybrid()):
            generator = torch.Generator().manual_seed(0)
            mask = kind(len(test), test.shape[-2:], device=device, generator=generator)
            x = torch.where(mask, torch.randn_like(test), test)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
                step = 1.0 if SMOKE else 0.125
                fill = solver.sample(x, step_size=step, method="midpoint", mask=mask)
            fill = fill.float().clamp(-1, 1)
            holes = f"{name}, {type(kind).__name__}"
            yield what, holes, float(hole_psnr(fill, test, mask)), "dB"
            yield what, holes, float(hole_ssim(fill, test, mask)), "SSIM"
            yield what, holes, float(colour_error(fill, test, mask)), "colour error"


PARTS = {
    "unet": measure_unet,
    "path": measure_path,
    "masks": measure_masks,
    "coupling": measure_coupling,
    "generate": measure_generate,
    "portraits": measure_portraits,
}
parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
args = parser.parse_args()

name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
machine = f"{name}, torch {torch.__version__}"
print(machine)
rows: list[Row] = []
args.output.parent.mkdir(parents=True, exist_ok=True)
for part in args.only:
    for row in PARTS[part]():
        rows.append(row)
        print(f"| {row[0]} | {row[1]} | {row[2]:.4g} {row[3]} |", flush=True)
        args.output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
print(f"saved {args.output}")
