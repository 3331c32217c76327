"""The U-Net that fm_ext trains."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fm_ext.models.blocks import (
    Attention,
    ResBlock,
    TimeEmbedding,
    Upsample,
    check_dtype,
    group_norm,
    pad_to_multiple,
    zero,
)
from fm_ext.utils.inputs import sample_time

# Side of the image -> arguments.
PRESETS: dict[int, dict[str, Any]] = {
    32: {"channels": 32, "multipliers": (1, 2, 2)},
    64: {"channels": 64, "multipliers": (1, 2, 2, 2)},
    128: {"channels": 64, "multipliers": (1, 2, 3, 4), "blocks": 2},
    256: {"channels": 96, "multipliers": (1, 1, 2, 4), "blocks": 2},
}
# The best for minutes of training (docs/content/results/generation.md, docs/content/guides/inpainting.md).
LEAN: dict[int, dict[str, Any]] = {
    32: {"channels": 24, "multipliers": (1, 2, 2), "attention": (), "head_channels": 24},
    64: {"channels": 32, "multipliers": (1, 2, 2), "patch_size": 2},
}


class UNet(nn.Module):
    r"""A U-Net for images of any size, conditioned on time and optionally on a class.

    Residual blocks take time and class by scale-shift group norm; attention sits at the levels that ask for it; all
    skips are concatenated; the output convolution starts at zero (Dhariwal and Nichol, arXiv 2105.05233).
    Level l works at $2^{-l}$ of the resolution, divided by `patch_size`; an image whose sides do not divide is padded
    at the bottom and right, and the result cropped.

    Args:
        in_channels: channels of `x`, those that `UNetWrapper` concatenates included.
        out_channels: channels of the velocity; None for as many as `in_channels`.
        channels: width of the top level.
        multipliers: width of each level in units of `channels`; their number, 1 to 6, is the number of levels.
        blocks: residual blocks a level on the way down; one more on the way up.
        attention: levels that attend, 0 = full resolution; None for the lowest only, where it costs least. The middle
            attends if the lowest level does.
        head_channels: channels of one attention head.
        dropout: inside the residual blocks, in [0, 1).
        patch_size: side of the squares of pixels that become channels at the door and pixels again at the end
            (pixel-unshuffle, arXiv 1609.05158): the network works at a fraction of the resolution, and a step
            costs about `patch_size` squared times less. 1 for none.
        num_classes: None for no class. Otherwise labels run from 0 to `num_classes`, which is the null class: the one
            that `label=None` means (also `null_label`) and that classifier-free guidance needs (arXiv 2207.12598).
        second_time: whether the network takes a second time `r` and answers with the average velocity from `t` to `r`
            (MeanFlow, arXiv 2505.13447), which `fm_ext.loss.mean_flow_loss` trains. It is told t and r - t, by waves
            a hundred times slower than those of the plain network.
        guidance_input: whether the network takes a `guidance_scale`, 1 or more, for `mean_flow_loss` to train on.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int | None = None,
        *,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[int] | None = None,
        head_channels: int = 32,
        dropout: float = 0.0,
        patch_size: int = 1,
        num_classes: int | None = None,
        second_time: bool = False,
        guidance_input: bool = False,
    ):
        super().__init__()
        if not 1 <= len(multipliers) <= 6:
            raise ValueError(f"`multipliers` must name 1 to 6 levels; got {tuple(multipliers)}.")
        last = len(multipliers) - 1
        attention = (last,) if attention is None else attention
        self.channels, self.multipliers, self.blocks = channels, tuple(multipliers), blocks
        self.attention, self.head_channels, self.dropout = tuple(attention), head_channels, dropout
        self.second_time, self.guidance_input = second_time, guidance_input
        if not set(attention) <= set(range(len(multipliers))):
            raise ValueError(
                f"`attention` must name levels from 0 to {last}, the lowest; got {tuple(attention)}."
            )
        if channels % head_channels and head_channels % channels:
            raise ValueError(
                f"`channels` must divide into heads of `head_channels`; got {channels} and {head_channels}."
            )
        if patch_size < 1:
            raise ValueError(
                f"`patch_size` must be at least 1, which is every pixel by itself; got {patch_size}."
            )
        if num_classes is not None and num_classes < 1:
            raise ValueError(
                f"`num_classes` must be at least 1, or None for no class; got {num_classes}."
            )
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.num_classes = num_classes
        self.null_label = num_classes
        self.patch_size = patch_size
        self.stride = patch_size * 2**last
        features = 4 * channels
        widths = [channels * m for m in multipliers]

        def stage(c_in: int, c_out: int, level: int) -> nn.ModuleList:
            layers: list[nn.Module] = [ResBlock(c_in, c_out, features, dropout)]
            if level in attention:
                layers.append(Attention(c_out, head_channels))
            return nn.ModuleList(layers)

        # The loss of two times holds the derivative in time, which fast waves would make large.
        speed = 10.0 if second_time else 1000.0
        self.time = TimeEmbedding(channels, features, speed)
        self.span = TimeEmbedding(channels, features, speed) if second_time else None
        self.guidance = TimeEmbedding(channels, features, speed) if guidance_input else None
        if num_classes is not None:
            # torch's unit variance: a network learns late from an embedding that starts small (results/generation.md).
            self.label = nn.Embedding(num_classes + 1, features)
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, channels, 3, padding=1)

        self.down = nn.ModuleList()
        width, skips = channels, [channels]
        for level, out_width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(stage(width, out_width, level))
                width = out_width
                skips.append(width)
            if level < last:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)

        self.middle = nn.ModuleList([*stage(width, width, last), *stage(width, width, -1)])

        self.up = nn.ModuleList()
        for level, out_width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(stage(width + skips.pop(), out_width, level))
                width = out_width
            if level > 0:
                self.up.append(Upsample(width))

        self.norm_out = group_norm(width)
        self.conv_out = zero(nn.Conv2d(width, self.out_channels * patch_size**2, 3, padding=1))

    @classmethod
    def preset(
        cls,
        size: int,
        in_channels: int = 3,
        out_channels: int | None = None,
        *,
        lean: bool = False,
        **changes: Any,
    ) -> "UNet":
        """The recommended network for square images of about `size` pixels.

        Args:
            size: 28 or 32, 64, 128 or 256.
            in_channels: see `UNet`.
            out_channels: see `UNet`.
            lean: take the network for minutes of training, where steps are worth more than weights; for images of
                28, 32 and 64 pixels.
            **changes: arguments of `UNet` that replace the preset's.

        Raises:
            ValueError: for another size.
        """
        presets, sizes = (LEAN, "28, 32 or 64") if lean else (PRESETS, "28, 32, 64, 128 or 256")
        if (32 if size == 28 else size) not in presets:
            raise ValueError(
                f"`size` must be {sizes}{' for a lean network' * lean}; got {size}. Call UNet(...) for others."
            )
        return cls(in_channels, out_channels, **(presets[32 if size == 28 else size] | changes))

    def forward(
        self,
        x: Float[Tensor, "batch c_in height width"],
        t: Float[Tensor, "..."],
        label: Int64[Tensor, " batch"] | None = None,
        r: Float[Tensor, "..."] | None = None,
        guidance_scale: Float[Tensor, "..."] | float | None = None,
    ) -> Float[Tensor, "batch c_out height width"]:
        """Returns the velocity at `x` and `t`, or the average velocity from `t` to `r`.

        Args:
            x: `(batch, in_channels, height, width)`, of any height and width.
            t: times in [0, 1], 0-d or `(batch,)`.
            label: classes `(batch,)` in [0, num_classes], int64; None for the null class.
            r: the time that the average goes to, for a network with `second_time`; None for `t`, the plain velocity.
            guidance_scale: for a network with `guidance_input`, one number or one a sample, 1 or more; None for 1.

        Raises:
            ValueError: for a wrong number of channels, a wrong shape of `t`, `r`, `label` or `guidance_scale`, a label
                without `num_classes`, an `r` without `second_time`, a `guidance_scale` without `guidance_input`
                and, on a CPU, a label out of range. On an accelerator the check would wait for the device: there a
                label out of range is torch's own asynchronous device-side assertion.
            TypeError: for another dtype of `x` than the weights', or labels that are not int64.
        """
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f"`x` must have in_channels = {self.in_channels} channels, concatenated ones included; "
                f"got {tuple(x.shape)}."
            )
        check_dtype(x, self.conv_in)
        time = sample_time(t, x)
        embedding = self._with_options(self.time(time), time, r, guidance_scale, x)
        if self.num_classes is not None:
            embedding = embedding + self._embed(self.num_classes, label, x)
        elif label is not None:
            raise ValueError(
                "`label` was given to a UNet without classes; build it with UNet(num_classes=...)."
            )
        embedding = nn.functional.silu(embedding)

        height, width = x.shape[-2:]
        patches = nn.functional.pixel_unshuffle(pad_to_multiple(x, self.stride), self.patch_size)
        h = self.conv_in(patches)
        skips = [h]
        for layer in self.down:
            h = run(layer, h, embedding)
            skips.append(h)
        h = run(self.middle, h, embedding)
        for layer in self.up:
            if not isinstance(layer, Upsample):
                h = torch.cat([h, skips.pop()], dim=1)
            h = run(layer, h, embedding)
        h = self.conv_out(nn.functional.silu(self.norm_out(h)))
        return nn.functional.pixel_shuffle(h, self.patch_size)[..., :height, :width]

    def _with_options(
        self,
        embedding: Tensor,
        t: Tensor,
        r: Tensor | None,
        guidance_scale: Tensor | float | None,
        x: Tensor,
    ) -> Tensor:
        """`embedding` with that of the second time and of the guidance, where the network takes them."""
        for name, value, option, layer in (
            ("r", r, "second_time", self.span),
            ("guidance_scale", guidance_scale, "guidance_input", self.guidance),
        ):
            if value is not None and layer is None:
                raise ValueError(
                    f"`{name}` was given to a UNet that does not take it; build it with UNet({option}=True)."
                )
        if self.span is not None:
            span = torch.zeros_like(t) if r is None else sample_time(r, x) - t
            embedding = embedding + self.span(span)
        if self.guidance is not None:
            scale = 1.0 if guidance_scale is None else guidance_scale
            scale = torch.as_tensor(scale, dtype=t.dtype, device=x.device)
            embedding = embedding + self.guidance(1 - 1 / sample_time(scale, x))
        return embedding

    def _embed(self, null: int, label: Tensor | None, x: Tensor) -> Tensor:
        """The embedding of the classes of `x`; `null` is the null class."""
        if label is None:
            return self.label(torch.full((len(x),), null, device=x.device))
        if label.dtype != torch.int64:
            raise TypeError(
                f"`label` must be int64; got {label.dtype}. Write `label.long()` for numbers of classes, "
                "`label.argmax(1)` for one-hot vectors."
            )
        if label.shape != x.shape[:1]:
            raise ValueError(
                f"`label` must be (batch,), here ({len(x)},); got {tuple(label.shape)}. Write `label.flatten()` for "
                "(batch, 1), `label.expand(len(x))` for one class for all."
            )
        try:
            return self.label(label)
        except IndexError as error:  # a CPU looks at each label anyway
            low, high = label.min(), label.max()
            raise ValueError(
                f"`label` must lie in [0, num_classes] = [0, {null}], of which {null} is the "
                f"null class; got {low} to {high}."
            ) from error


def run(layer: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    """Applies a layer or a list of them; residual blocks get the embedding."""
    if isinstance(layer, nn.ModuleList):
        for inner in layer:
            h = run(inner, h, embedding)
        return h
    return layer(h, embedding) if isinstance(layer, ResBlock) else layer(h)
