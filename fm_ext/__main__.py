"""Fills holes, draws samples and translates pictures by pretrained flows, from the command line: `python -m fm_ext`."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MASKS = ("CenterBox", "FreeForm", "Hybrid", "Irregular", "RandomBox")
BATCH = 64
MODEL = "a shipped model, a folder, or owner/name on the hub; a path that begins with . or / is a folder"

# What is heavy is imported by the command that needs it: `--help` and a wrong argument are answered at once.


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, and returns the status of the process: 0, 1 for an error that is told in a line.

    Args:
        arguments: those of the command line; None: the process's.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fm_ext", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_fill(commands)
    _add_sample(commands)
    _add_translate(commands)
    app = commands.add_parser("app", help="the same in a browser", add_help=False)
    app.set_defaults(run=_app)
    args, rest = parser.parse_known_args(arguments)
    if args.command == "app":
        args.rest = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return args.run(args)
    except ModuleNotFoundError as error:
        if error.name not in ("PIL", "huggingface_hub", "safetensors"):
            raise
        message = f'{error.name} is missing: pip install "fm_ext[hub]"'
    except (ValueError, TypeError, OSError, ImportError) as error:
        message = str(error)
    print(f"python -m fm_ext {args.command}: {message}", file=sys.stderr)
    return 1


def _add_fill(commands: Any) -> None:
    fill = commands.add_parser(
        "fill",
        help="fill a hole in a picture",
        description="Fills what is missing of a picture; all other pixels stay as they are, byte for byte.\n"
        "A picture is seen by the model at the model's own size, 28 or 64 pixels for the shipped ones: the largest\n"
        "window of the model's shape that holds the hole, or the whole picture. The fill is scaled back up, so in a\n"
        "large picture it is blurred. A palette or CMYK picture is written as RGB; EXIF rotation is applied.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    fill.add_argument("picture", type=Path)
    fill.add_argument(
        "--mask",
        required=True,
        help="a picture of the same size, white = missing; or one that is drawn:\n"
        + ", ".join(MASKS),
    )
    fill.add_argument("--output", type=_png, default=Path("filled.png"), help="filled.png")
    fill.add_argument("--model", help=f"{MODEL};\nby default the shipped one that fits the picture")
    fill.add_argument(
        "--fills", type=int, default=1, help="how many, written to filled_1.png, filled_2.png, ..."
    )
    fill.add_argument("--mask-output", type=_png, help="where to write the mask, to use it again")
    _add_sampling(
        fill,
        "ancestral, jumps, a method of ODESolver, or of InpaintingSolver for a training-free fill",
    )
    fill.set_defaults(run=_fill)


def _add_sample(commands: Any) -> None:
    sample = commands.add_parser("sample", help="draw samples", description="Draws samples.")
    sample.add_argument("--model", default="mnist", help=f"{MODEL}; by default mnist")
    sample.add_argument("--count", type=int, default=16)
    sample.add_argument("--columns", type=int, help="of the grid; by default the square root")
    sample.add_argument("--output", type=_png, default=Path("grid.png"), help="grid.png")
    _add_sampling(sample, "method of ODESolver, ancestral, or jumps of a network of two times")
    sample.set_defaults(run=_sample)


def _add_translate(commands: Any) -> None:
    translate = commands.add_parser(
        "translate",
        help="translate a picture",
        description="Translates a picture, whose middle is seen at the model's size.",
    )
    translate.add_argument("picture", type=Path)
    translate.add_argument("--model", default="garments_to_digits", help=MODEL)
    translate.add_argument("--output", type=_png, default=Path("translated.png"))
    _add_sampling(translate, "method of ODESolver")
    translate.set_defaults(run=_translate)


def _add_sampling(parser: argparse.ArgumentParser, methods: str) -> None:
    parser.add_argument("--label", help="class, by number or name; by default none")
    parser.add_argument(
        "--method", help=f"{methods};\nby default, as the next two, what was measured"
    )
    parser.add_argument("--steps", type=int, help="of the solver")
    parser.add_argument("--guidance", type=float, help="scale of guidance; 1 is none")
    parser.add_argument("--seed", type=int, default=0, help="another one, other results; 0")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the hub")


def _png(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png, which keeps every pixel")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder of {text!r} does not exist")
    return path


def _fill(args: argparse.Namespace) -> int:
    import torch

    import fm_ext.mask
    from fm_ext.hub import fill_picture, fitting_model, open_mask, open_picture

    begin = time.perf_counter()
    picture = open_picture(args.picture)
    size = picture.height, picture.width
    generator = torch.Generator().manual_seed(args.seed)
    if args.mask in MASKS:
        mask = getattr(fm_ext.mask, args.mask)()(1, size, generator=generator)[0, 0]
    elif Path(args.mask).is_file():
        mask = open_mask(args.mask, size)
    else:
        raise FileNotFoundError(
            f"--mask must be a picture or one of {', '.join(MASKS)}; got {args.mask!r}, which is no file."
        )
    name = args.model or fitting_model(picture, "fill")
    flow = _load(args, name)
    with _Bar() as bar:
        filled = fill_picture(
            flow, picture, mask, fills=args.fills, **_sampling(args, generator, bar)
        )
    paths = [args.output]
    if args.fills > 1:
        stem = args.output.stem
        paths = [args.output.with_name(f"{stem}_{i + 1}.png") for i in range(args.fills)]
    for path, result in zip(paths, filled, strict=True):
        result.save(path)
    if args.mask_output:
        import PIL.Image

        PIL.Image.fromarray(mask.numpy()).save(args.mask_output)
    print(
        f"{', '.join(map(str, paths))}: {mask.float().mean():.0%} of {size[1]}x{size[0]} pixels filled by {name} "
        f"({'x'.join(map(str, flow.shape[:0:-1]))}) in {time.perf_counter() - begin:.1f} s"
    )
    return 0


def _sample(args: argparse.Namespace) -> int:
    import torch

    from fm_ext.hub import to_grid, to_pictures

    if args.count < 1 or (args.columns is not None and args.columns < 1):
        raise ValueError("--count and --columns must be at least 1.")
    flow = _load(args, args.model)
    generator = torch.Generator().manual_seed(args.seed)
    pictures = []
    with _Bar(args.count) as bar:
        while len(pictures) < args.count:
            count = min(BATCH, args.count - len(pictures))
            bar.part = count
            images = flow.sample(count, **_sampling(args, generator, bar))
            pictures += to_pictures(images)
    columns = args.columns or max(1, round(args.count**0.5))
    to_grid(pictures, columns).save(args.output)
    print(f"{args.output}: {args.count} samples of {args.model}")
    return 0


def _translate(args: argparse.Namespace) -> int:
    import torch

    from fm_ext.hub import open_picture, translate_picture

    picture = open_picture(args.picture)
    flow = _load(args, args.model)
    generator = torch.Generator().manual_seed(args.seed)
    with _Bar() as bar:
        result = translate_picture(flow, picture, **_sampling(args, generator, bar))
    result.save(args.output)
    print(f"{args.output}: {args.picture} translated by {args.model}")
    return 0


def _app(args: argparse.Namespace) -> int:
    from fm_ext.app import run  # pyright: ignore[reportMissingImports]

    return run(args.rest)


def _load(args: argparse.Namespace, name: str) -> Any:
    from fm_ext.hub import FlowModel

    return FlowModel.from_pretrained(name, revision=args.revision, device=args.device)


def _sampling(args: argparse.Namespace, generator: Any, callback: Callable[..., None]) -> Any:
    label = int(args.label) if args.label and args.label.isdecimal() else args.label
    given = {"method": args.method, "steps": args.steps, "guidance_scale": args.guidance}
    return {"label": label, "generator": generator, "callback": callback, **given}


class _Bar:
    """A progress bar, as a callback of samplers; on a terminal only."""

    def __init__(self, total: int = 1):
        from tqdm.auto import tqdm

        line = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
        self.bar = tqdm(total=total, bar_format=line, disable=None, leave=False)
        self.part, self.done = 1, 0.0

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, fraction: float, _: object) -> None:
        self.bar.update(self.done + self.part * fraction - self.bar.n)
        if fraction == 1:
            self.done += self.part


if __name__ == "__main__":
    # Before torch starts its threads: else they wait by running, and on a busy machine a fill takes 40 times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
