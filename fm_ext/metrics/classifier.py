"""Small fixed networks for MNIST and Fashion-MNIST, to judge generated images by their labels and features."""

from importlib import resources
from typing import Literal

import safetensors.torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Classifier(nn.Module):
    """A convolutional classifier of grey 28x28 images: logits, and the features under them.

    Five 3x3 convolutions, each with batch normalisation and ReLU, at 28, 14, 14, 7 and 7 pixels; the features are the
    means of the last one's maps. 157,330 weights.

    Args:
        classes: number of classes.
        width: channels of the first convolution; the next pairs have two and four times as many, and so four times
            `width` is the number of features.
    """

    SHAPE = (1, 28, 28)

    def __init__(self, classes: int = 10, width: int = 24):
        super().__init__()
        channels = (1, width, 2 * width, 2 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = []
        for index in range(5):
            layers += [
                nn.Conv2d(channels[index], channels[index + 1], 3, padding=1, bias=False),
                nn.BatchNorm2d(channels[index + 1]),
                nn.ReLU(),
            ]
            if index in (0, 2):
                layers.append(nn.MaxPool2d(2))
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, classes)

    def features(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch feature"]:
        """What the last layer sees: an extractor for `FeatureMetrics`.

        Args:
            images: in [-1, 1], of shape `(batch, 1, 28, 28)`; nothing is resized.

        Raises:
            ValueError: for images of another shape.
        """
        if images.shape[1:] != self.SHAPE:
            raise ValueError(
                f"`images` must have shape (batch, 1, 28, 28); got {tuple(images.shape)}. The classifier knows grey "
                "28x28 images only: convert and resize them as its training data were, or take another extractor."
            )
        return self.body(images).mean((-2, -1))

    def forward(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch classes"]:
        """The logits; for arguments and errors see `features`."""
        return self.head(F.dropout(self.features(images), 0.2, self.training))


def classifier(name: Literal["mnist", "fashion_mnist"]) -> Classifier:
    """The shipped classifier of a data set, frozen and in eval mode.

    The weights come with the package and were trained by `examples/classifier.py` on the 60,000 training images; what
    they reach on the test images stands on the docs page "Evaluation". Figures that are measured with them compare
    with nothing else, least of all with Inception's.

    Args:
        name: "mnist" or "fashion_mnist".

    Returns:
        A network on the CPU, in float32, whose parameters need no gradient; images in [-1, 1] give logits, and its
        method `features` gives 96 features.

    Raises:
        ValueError: for another name.
    """
    if name not in ("mnist", "fashion_mnist"):
        raise ValueError(
            f'`name` must be "mnist" or "fashion_mnist"; got {name!r}. Others: examples/classifier.py.'
        )
    file = resources.files("fm_ext.metrics") / "weights" / f"{name}.safetensors"
    network = Classifier()
    half = safetensors.torch.load(file.read_bytes())
    network.load_state_dict(
        {key: value.to(network.state_dict()[key].dtype) for key, value in half.items()}
    )
    return network.eval().requires_grad_(False)
