"""What a network that fills holes remembers of its training images.

    OMP_NUM_THREADS=1 python examples/benchmarks/memorisation.py
    OMP_NUM_THREADS=1 python examples/benchmarks/memorisation.py --flow <name or folder> --dataset <its data>
Holes in training images and in as many test images are filled alike; printed are PSNR and colour error in the holes. A
gap is what is remembered. Of the centre boxes, all at one place, it then prints how likely a fill of a test image lies
nearer to what some training image has there than what the test image has itself (`fm_ext.metrics.memorisation`): 50 %
for new images, 100 % for copies. Blur is near to everything, so beside it stands the same for the mean of four fills.
"""

import argparse
import os
from pathlib import Path

import torch

from fm_ext.data import load_images
from fm_ext.hub import FlowModel
from fm_ext.mask import CenterBox, FreeForm, Hybrid, Irregular, RandomBox
from fm_ext.metrics import colour_error, hole_psnr, jackknife, memorisation, nearest_distance

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
MASKS = (CenterBox(), RandomBox(), FreeForm(), Irregular(), Hybrid())

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--flow", default="portraits", help="a shipped name or a folder")
parser.add_argument("--dataset", default=str(Path(__file__).parents[1] / "data" / "portraits"))
parser.add_argument("--images", type=int, default=4 if SMOKE else 90, help="of each split")
parser.add_argument("--fills", type=int, default=2 if SMOKE else 4)
args = parser.parse_args()

flow = FlowModel.from_pretrained(args.flow)
train, _ = load_images(args.dataset, split="train", size=flow.shape[-1])
test, _ = load_images(args.dataset, size=flow.shape[-1], limit=args.images)
some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: len(test)]
print(f"{len(test)} images each       PSNR in the hole         colour error")
for seed, kind in enumerate(MASKS[: 1 if SMOKE else None]):
    for name, images in (("training", train[some]), ("test", test)):
        generator = torch.Generator().manual_seed(seed)
        mask = kind(len(images), images.shape[-2:], generator=generator)
        filled = flow.fill(images, mask, generator=generator)
        psnr = jackknife(hole_psnr, filled, images, mask, paired=True)
        colour = jackknife(colour_error, filled, images, mask, paired=True)
        print(f"{type(kind).__name__:10} {name:9} {psnr:.2f}  {colour:.3f}", flush=True)

generator = torch.Generator().manual_seed(0)
mask = CenterBox()(1, test.shape[-2:])
fills = flow.fill(test, mask.expand(len(test), -1, -1, -1), fills=args.fills, generator=generator)
hole = mask.expand_as(test[:1])[0]
known, truth = train[:, hole], nearest_distance(test[:, hole], train[:, hole])
for name, filled in (("one fill", fills[0]), (f"the mean of {args.fills}", fills.mean(0))):
    found = nearest_distance(filled[:, hole], known)
    share = jackknife(memorisation, found, truth, paired=True)
    print(f"nearer to a training image than the truth is, {name}: {share:.1%}")
