"""Copy the app's example pictures out of the test sets of this folder: `python examples/data/pictures.py`."""

import io
from pathlib import Path

import datasets
import PIL.Image

HERE = Path(__file__).resolve().parent
TARGET = HERE.parents[1] / "fm_ext" / "app" / "pictures"
ROWS = {  # of the test sets, by kind: the models have not seen them
    "digit": ("mnist", {"five": 16, "eight": 19, "three": 2, "four": 6}),
    "garment": ("fashion_mnist", {"boot": 22, "trousers": 30, "dress": 3, "bag": 14}),
    "portrait": ("portraits", {"girl": 1, "curls": 14, "pilot": 17, "beard": 68}),
}

for kind, (folder, rows) in ROWS.items():
    data = datasets.load_dataset("parquet", data_files=str(HERE / folder / "test.parquet"))
    images = data["train"].cast_column("image", datasets.Image(decode=False))
    for name, row in rows.items():
        picture = PIL.Image.open(io.BytesIO(images[row]["image"]["bytes"]))
        picture.save(TARGET / f"{kind}_{name}.png", optimize=True)
