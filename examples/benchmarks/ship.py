"""Measures a pretrained folder, and writes it with its card as a model that comes with the package.

    python examples/inpainting.py --dataset ylecun/mnist --generate --steps 5000 --evaluate 0 --output outputs/digits
    python examples/benchmarks/ship.py mnist outputs/digits/pretrained
Fills of each kind of mask, samples of each class, or translations are judged on the test images of examples/data, with
the weights as they are stored, in half precision.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch

import fm_ext.hub
from fm_ext.data import load_images
from fm_ext.hub import FlowModel, Measured, Metric, Sampler
from fm_ext.mask import CenterBox, FreeForm, Hybrid, Irregular, RandomBox
from fm_ext.metrics import classifier, frechet_distance, hole_psnr, hole_ssim, jackknife
from fm_ext.sampling import to_uint8

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DATA = Path(__file__).parents[1] / "data"
SHIPPED = Path(fm_ext.hub.__file__).parent / "weights"
MASKS = (CenterBox(), RandomBox(), FreeForm(), Irregular(), Hybrid())[: 1 if SMOKE else None]
MODELS = {
    "mnist": Measured(
        title="Handwritten digits",
        description="Fills holes in handwritten digits, and draws digits of a class.",
        data="MNIST, 60,000 training images of 28x28 pixels (LeCun, Cortes and Burges)",
        data_licence="CC BY-SA 3.0",
        machine="a part of one shared x86-64 core with bfloat16 instructions",
        limits="White strokes on black, centred, 28x28 pixels; other pictures are filled with strokes.",
        licence="cc-by-sa-3.0",
    ),
    "portraits": Measured(
        title="Portraits",
        description="Fills holes in drawn portraits.",
        data="889 training images of 64x64 pixels, 154 designs in several skin tones (Microsoft's Fluent emoji)",
        data_licence="MIT",
        machine="a part of one shared x86-64 core with bfloat16 instructions",
        limits="Aligned busts of this one style on white, 64x64 pixels. In large holes some patches of foreign "
        "colour remain, above all in clothes.",
        licence="mit",
    ),
    "garments_to_digits": Measured(
        title="Garments to digits",
        description="Turns a picture of a garment into a digit; which one has no right answer.",
        data="6,000 images each of Fashion-MNIST (Zalando) and MNIST (LeCun and others), 28x28 pixels, unpaired",
        data_licence="MIT, and CC BY-SA 3.0",
        machine="a part of one shared x86-64 core with bfloat16 instructions",
        limits="Garments on black, 28x28 pixels, grey.",
        licence="cc-by-sa-3.0",
    ),
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("name", choices=MODELS)
parser.add_argument("folder", type=Path, help="what an example has saved")
parser.add_argument("--exact", action="store_true", help="measure the weights as they were, too")
parser.add_argument("--images", type=int, default=200, help="test images, and samples")
parser.add_argument("--guidance", type=float, default=3.0, help="of samples of a class")
parser.add_argument("--trained-by", default="", help="the command that made the folder")
parser.add_argument("--updates", type=int)
parser.add_argument("--seconds", type=float)
parser.add_argument("--output", type=Path, default=SHIPPED)
args = parser.parse_args()


def judge(flow: FlowModel) -> tuple[list[Metric], torch.Tensor]:
    """The figures of all that a flow can do, and the images that they are of."""
    metrics, results = [], []

    def note(name, on, estimate):
        metrics.append(
            Metric(name=name, value=estimate.value, low=estimate.low, high=estimate.high, on=on)
        )
        print(f"  {name:24} {on:44} {estimate:.4g}", flush=True)

    def seeded():
        return torch.Generator().manual_seed(0)

    grey = flow.shape == (1, 28, 28)
    reader = classifier("mnist") if grey else None
    target = "mnist" if grey else "portraits"
    images, labels = load_images(DATA / target, limit=args.images)
    if "fill" in flow.tasks:
        for mask in MASKS:
            kind = type(mask).__name__
            hole = mask(len(images), images.shape[-2:], generator=seeded())
            filled = flow.fill(images, hole, generator=seeded())
            on = f"fills of {kind}, {len(images)} test images"
            for name, figure in (
                ("PSNR in the hole (dB)", hole_psnr),
                ("SSIM in the hole", hole_ssim),
            ):
                note(name, on, jackknife(figure, filled, images, hole, paired=True))
            if reader:
                right = (reader(filled).argmax(1) == labels).double()
                note("read rightly", on, jackknife(torch.mean, right))
            results.append(filled)
    if "sample" in flow.tasks and reader:
        label = torch.arange(args.images) % 10
        drawn = flow.sample(len(label), label=label, generator=seeded())
        on = f"{len(label)} samples, guidance {flow.samplers['sample'].guidance_scale:g}"
        features = reader.features(drawn), reader.features(images)
        note("Frechet distance", on, jackknife(frechet_distance, *features))
        note("right class", on, jackknife(torch.mean, (reader(drawn).argmax(1) == label).double()))
        results.append(drawn)
    if "translate" in flow.tasks and reader:
        garments, _ = load_images(DATA / "fashion_mnist", limit=args.images)
        turned = flow.translate(garments, generator=seeded())
        on = f"{len(garments)} test garments"
        features = reader.features(turned), reader.features(images)
        note("Frechet distance", on, jackknife(frechet_distance, *features))
        clear = (reader(turned).softmax(1).amax(1) > 0.9).double()
        note("read with 90% certainty", on, jackknife(torch.mean, clear))
        results.append(turned)
    return metrics, torch.cat(results)


flow = FlowModel.from_pretrained(args.folder)
if "sample" in flow.tasks:
    flow.samplers["sample"] = Sampler(steps=10, guidance_scale=args.guidance)
if SMOKE:
    flow.samplers = {task: Sampler(steps=1) for task in flow.tasks}
flow.stored_as = torch.float16
flow.save_pretrained(args.output / args.name)
metrics, stored = judge(FlowModel.from_pretrained(args.output / args.name))
if args.exact:
    print("with the weights as they were")
    _, exact = judge(flow)
    change = (to_uint8(stored).int() - to_uint8(exact).int()).abs().float()
    more = (change > 2).float().mean()
    print(f"bytes of pixels differ by {change.mean():.3f} on average, {more:.2%} by more than 2")
command = f"python examples/benchmarks/ship.py {args.name} {args.folder} --images {args.images}"
flow.measured = replace(
    MODELS[args.name],
    metrics=tuple(metrics),
    updates=args.updates,
    seconds=args.seconds,
    command="\n".join(filter(None, (args.trained_by, command))),
)
flow.save_pretrained(args.output / args.name)
size = (args.output / args.name / "model.safetensors").stat().st_size
print(f"saved {args.output / args.name}, {size / 1e6:.1f} MB")
