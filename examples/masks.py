"""Draw every kind of mask, at three sizes and with bounds on its area, and show them on one sheet.

python examples/masks.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from plots import save_figure

from fm_ext.mask import CenterBox, FreeForm, Hybrid, Irregular, RandomBox

MASKS = {
    "CenterBox()": CenterBox(),
    "RandomBox()": RandomBox(),
    "FreeForm()": FreeForm(),
    "Irregular()": Irregular(),
    "Hybrid()": Hybrid(),
    "FreeForm(area=(0.25, 0.3))": FreeForm(area=(0.25, 0.3)),
    "Irregular(area=(0.1, 0.2))": Irregular(area=(0.1, 0.2)),
}
SIZES = [(28, 28), (64, 96), (256, 256)]
EACH = 4

figure, axes = plt.subplots(len(MASKS), EACH * len(SIZES), figsize=(16, 10), layout="constrained")
for row, (name, mask) in zip(axes, MASKS.items(), strict=True):
    generator = torch.Generator().manual_seed(0)
    drawn = [mask(EACH, size, generator=generator) for size in SIZES]  # bool, True = missing
    for axis, image in zip(row, [image for batch in drawn for image in batch], strict=True):
        axis.imshow(image[0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel(f"{image.float().mean():.1%}", fontsize=8)
    row[0].set_title(name, loc="left")
    missing = mask(256, (64, 64), generator=generator).float().mean((1, 2, 3))
    print(
        f"{name:28} missing {missing.min():4.0%} to {missing.max():4.0%}, mean {missing.mean():4.0%}"
    )

save_figure(figure, Path("outputs/masks.png"), dpi=90)
