r"""The field's protocol of training-free box inpainting, on a network and images that you have.

    python examples/benchmarks/restoration.py --dataset <CelebA folder> --size 128 --network pnpflow.models:UNet \
        --arguments '{"input_channels": 3, ...}' --checkpoint model/celeba/gaussian/ot/model_final.pt
    python examples/benchmarks/restoration.py --dataset <AFHQ-Cat folder> --size 256 ...
As in PnP-Flow's repository (arXiv 2410.02423): 100 test images, a box of 40x40 pixels in the middle of 128, of 80x80 of
256, and Gaussian noise of 0.05 on images in [-1, 1] outside of it. `--network` is whatever builds the network,
"module:callable", called with x and t; `--checkpoint` its state. Their networks were trained with optimal transport
couplings, which all methods but D-Flow take for independent ones, there and here. LPIPS needs its weights: --lpips.
Prints PSNR and SSIM of the whole image as the published figures are, and inside and outside the box; the spread of the
fills of one image; seconds and evaluations an image, and memory; and the published table.
"""

import argparse
import importlib
import json
import os
import resource
import time
import warnings

import torch
from flow_matching.path.scheduler import CondOTScheduler
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from fm_ext.data import load_images
from fm_ext.metrics import fill_diversity, hole_psnr, hole_ssim
from fm_ext.models import UNetWrapper
from fm_ext.solver import InpaintingSolver

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
METHODS = ["pnp", "flower", "ding", "ot_ode", "restora", "moment_matching", "d_flow"]
STEPS = {"ding": 50, "restora": 34, "moment_matching": 20, "d_flow": 6}  # else --steps
PUBLISHED = """Published (FIRM's project page, which ran PnP-Flow's protocol again; PSNR/SSIM/LPIPS of whole images)
              CelebA 128           AFHQ-Cat 256         s / MB / evaluations an image
OT-ODE        29.37/.919/.038      24.47/.873/.095      6.37 /  743 / 180
D-Flow        30.59/.898/.027      27.02/.840/.081       299 / 6124 / -
PnP-Flow 1    30.45/.933/.037      26.45/.895/.111      2.33 /  192 / 100
Flower 1      31.17/.945/.022      26.67/.914/.065      2.67 /  193 / 100
Flower 5      31.85/.952/.023      27.32/.922/.067      13.0 /  193 / 500"""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", required=not SMOKE)
parser.add_argument("--split", default="test")
parser.add_argument("--size", type=int, default=128)
parser.add_argument("--network", default="fm_ext.models:UNet", help="module:callable")
parser.add_argument("--arguments", type=json.loads, default={}, help="of the callable, as JSON")
parser.add_argument("--checkpoint", help="a file that torch.load reads, of the network's state")
parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
parser.add_argument("--images", type=int, default=100)
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--fills", type=int, default=2, help="of each image, for their spread")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--noise-std", type=float, default=0.05)
parser.add_argument("--lpips", action="store_true")
args = parser.parse_args()
if SMOKE:
    args.dataset, args.size, args.images, args.steps = "examples/data/portraits", 16, 2, 2
    args.dataset = os.path.join(os.path.dirname(__file__), "..", "data", "portraits")
    args.arguments = {"in_channels": 3, "channels": 8, "multipliers": [1, 2], "head_channels": 8}
    STEPS = dict.fromkeys(STEPS, 2)

device = "cuda" if torch.cuda.is_available() else "cpu"
module, _, name = args.network.partition(":")
network = getattr(importlib.import_module(module), name)(**args.arguments)
if args.checkpoint:
    network.load_state_dict(torch.load(args.checkpoint, map_location="cpu", weights_only=True))
velocity = UNetWrapper(network.to(device).eval())
images, _ = load_images(args.dataset, split=args.split, size=args.size, limit=args.images)
side, middle = (40 * args.size) // 128, args.size // 2
mask = torch.zeros(1, 1, args.size, args.size, dtype=torch.bool)
mask[..., middle - side // 2 : middle + side // 2, middle - side // 2 : middle + side // 2] = True
generator = torch.Generator().manual_seed(0)
noisy = images + args.noise_std * torch.randn(images.shape, generator=generator)
perceptual = None
if args.lpips:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    perceptual = LearnedPerceptualImagePatchSimilarity("alex").to(device)


def memory() -> float:
    """Megabytes: CUDA's peak since the last reset, or the most that the process ever had."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


print(PUBLISHED)
print(f"\n{len(images)} images of {args.size} pixels, box {side}, noise {args.noise_std}, {device}")
print(
    "method            whole: PSNR  SSIM LPIPS   box: PSNR  SSIM  outside  spread   s    MB   evaluations"
)
for method in args.methods:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of assumptions on the coupling, see above
        solver = InpaintingSolver(velocity, CondOTScheduler(), method)
    # Methods without a place for noise get the noisy pixels as they are, and keep them.
    noise_std = args.noise_std if solver.method.noisy else 0.0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    filled, start = [], time.perf_counter()
    torch.manual_seed(0)
    for part in noisy.split(args.batch_size):
        filled.append(
            solver.sample(
                part.to(device),
                mask=mask.to(device),
                steps=STEPS.get(method, args.steps),
                fills=args.fills,
                noise_std=noise_std,
            ).cpu()
        )
    seconds = (time.perf_counter() - start) / (len(images) * args.fills)
    fills = torch.cat(filled, dim=1).clamp(-1, 1)
    one = fills[0]
    whole = peak_signal_noise_ratio(one, images, data_range=2.0)
    similarity = structural_similarity_index_measure(one, images, data_range=2.0)
    lpips = float(perceptual(one.to(device), images.to(device))) if perceptual else float("nan")
    spread = fill_diversity(fills.transpose(0, 1), mask) if args.fills > 1 else float("nan")
    print(
        f"{method:<17} {whole:11.2f} {similarity:5.3f} {lpips:5.3f} {hole_psnr(one, images, mask):11.2f} "
        f"{hole_ssim(one, images, mask):5.3f} {hole_psnr(one, images, ~mask):8.2f} {spread:7.3f} {seconds:6.2f} "
        f"{memory():6.0f} {solver.nfe:4} + {solver.gradients} gradients",
        flush=True,
    )
