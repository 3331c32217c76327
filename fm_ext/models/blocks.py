"""The layers that `UNet` is made of."""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with at most 32 groups, of a multiple of 4 channels each where that divides."""
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if g == 1 or channels % (4 * g) == 0)
    return nn.GroupNorm(groups, channels)


def zero(module: Layer) -> Layer:
    """Zeroes a layer, so that the branch that it ends starts as nothing."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class TimeEmbedding(nn.Module):
    r"""Embeds times in [0, 1] by sines and cosines of $1000\, t\, \omega_k$, then a two-layer network.

    The factor 1000 lives here, because the frequencies $\omega_k \in [10^{-4}, 1]$ of Vaswani et al. (arXiv 1706.03762,
    section 3.5) were made for positions of that size; fed with bare t most of them do not move.
    """

    frequencies: Tensor

    def __init__(self, features: int, out_features: int):
        super().__init__()
        exponents = torch.arange(features // 2, dtype=torch.float32) / (features // 2)
        frequencies = 1000 * torch.exp(-math.log(10_000) * exponents)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.net = nn.Sequential(
            nn.Linear(2 * len(exponents), out_features),
            nn.SiLU(),
            nn.Linear(out_features, out_features),
        )

    def forward(self, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch features"]:
        # float32 whatever t's dtype: in bfloat16 the angle 1000 t is off by whole turns.
        angles = t.float()[:, None] * self.frequencies.float()
        features = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.net(features.to(self.frequencies.dtype))


class ResBlock(nn.Module):
    r"""Two convolutions around a scale-shift group norm that carries time and class (arXiv 2105.05233, section 3).

    $$x + \mathrm{conv}(\mathrm{SiLU}((1 + s) \odot \mathrm{GN}(\mathrm{conv}(\mathrm{SiLU}(\mathrm{GN}(x)))) + b))$$

    with $(s, b)$ linear in the embedding. The modulation follows the norm: an embedding that is added before
    a norm of one channel a group is erased by it.
    """

    def __init__(self, in_channels: int, out_channels: int, features: int, dropout: float):
        super().__init__()
        self.norm_in = group_norm(in_channels)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(features, 2 * out_channels)
        self.norm_out = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(
        self,
        x: Float[Tensor, "batch c_in height width"],
        embedding: Float[Tensor, "batch features"],
    ) -> Float[Tensor, "batch c_out height width"]:
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = rearrange(
            self.modulation(embedding), "batch (two c) -> two batch c 1 1", two=2
        )
        h = torch.addcmul(shift, self.norm_out(h), 1 + scale)
        return self.skip(x) + self.conv_out(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Self-attention over pixels by `scaled_dot_product_attention`, with a residual connection."""

    def __init__(self, channels: int, head_channels: int):
        super().__init__()
        self.heads = max(1, channels // head_channels)
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(
        self, x: Float[Tensor, "batch c height width"]
    ) -> Float[Tensor, "batch c height width"]:
        # Channels last in memory: the fused kernels take nothing else, and the fallback is several times slower.
        tokens = rearrange(
            self.norm(x), "batch c height width -> batch (height width) c"
        ).contiguous()
        q, k, v = rearrange(
            self.qkv(tokens),
            "batch token (three heads d) -> three batch heads token d",
            three=3,
            heads=self.heads,
        )
        h = F.scaled_dot_product_attention(q, k, v)
        h = self.out(rearrange(h, "batch heads token d -> batch token (heads d)"))
        return x + rearrange(h, "batch (height width) c -> batch c height width", height=x.shape[2])


class Upsample(nn.Module):
    """Doubles height and width: nearest-neighbour copy and 3x3 convolution, folded into one convolution.

    After a nearest-neighbour copy the nine taps fall on 2 x 2 different pixels, so the two steps equal one transposed
    4x4 convolution of stride 2 whose kernel is a fixed sum of the 3x3 kernel's taps: the same function and parameters
    with 4/9 of the multiplications, and no checkerboard (Odena et al., Distill 2016).
    """

    fold: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        # Tap i of the transposed kernel adds the 3x3 taps that meet the same low-resolution pixel.
        fold = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
        self.register_buffer("fold", fold, persistent=False)

    def forward(
        self, x: Float[Tensor, "batch c height width"]
    ) -> Float[Tensor, "batch c 2*height 2*width"]:
        fold = self.fold.to(self.conv.weight.dtype)
        kernel = torch.einsum("ik,jl,ockl->coij", fold, fold, self.conv.weight)
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


def broadcast_time(t: Float[Tensor, "..."], batch: int) -> Float[Tensor, " batch"]:
    """A time of any accepted shape, 0-d, `(1,)`, `(batch,)` or `(batch, 1, 1, 1)`, as `(batch,)`."""
    if t.numel() == 1:
        return t.reshape(1).expand(batch)
    if t.shape[0] != batch or t.numel() != batch:
        raise ValueError(
            f"`t` must be 0-d, (batch,) or (batch, 1, 1, 1) with batch = {batch}; got {tuple(t.shape)}."
        )
    return t.reshape(batch)


def pad_to_multiple(
    x: Float[Tensor, "batch c height width"], multiple: int
) -> Float[Tensor, "batch c padded_height padded_width"]:
    """Repeats the last row and column until height and width divide by `multiple`."""
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x
