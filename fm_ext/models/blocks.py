"""The layers that `UNet` is made of."""

import math
from typing import Any, TypeVar

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
    section 3.5) were made for positions of that size; fed with bare t most of them do not move. They are
    computed at each call, in float32 or wider whatever the network's dtype: a constant in a buffer would be rounded by
    `.bfloat16()` and left uninitialised by construction under `torch.device("meta")`.

    Args:
        features: the number of cosines and sines.
        out_features: of the network.
        scale: the factor. A loss that holds the derivative in t wants a small one, for that derivative grows with it.
    """

    def __init__(self, features: int, out_features: int, scale: float = 1000.0):
        super().__init__()
        self.waves, self.scale = features // 2, scale
        self.net = nn.Sequential(
            nn.Linear(2 * self.waves, out_features),
            nn.SiLU(),
            nn.Linear(out_features, out_features),
        )

    def forward(self, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch features"]:
        dtype = next(self.net.parameters()).dtype
        return self.net(self.features(t, torch.promote_types(dtype, torch.float32)).to(dtype))

    def features(
        self, t: Float[Tensor, " batch"], dtype: torch.dtype
    ) -> Float[Tensor, "batch features"]:
        """The cosines and sines, computed in `dtype`: in bfloat16 an angle of 1000 t would be off by whole turns."""
        exponents = torch.arange(self.waves, device=t.device, dtype=dtype) / self.waves
        angles = t.to(dtype)[:, None] * (self.scale * torch.exp(-math.log(10_000) * exponents))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


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
    """Self-attention over pixels, with a residual connection."""

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
        h = attend(q, k, v)
        h = self.out(rearrange(h, "batch heads token d -> batch token (heads d)"))
        return x + rearrange(h, "batch (height width) c -> batch c height width", height=x.shape[2])


def attend(
    q: Float[Tensor, "batch heads token d"],
    k: Float[Tensor, "batch heads token d"],
    v: Float[Tensor, "batch heads token d"],
) -> Float[Tensor, "batch heads token d"]:
    r"""$\mathrm{softmax}(q k^T / \sqrt d)\, v$, by fused kernels where they suffice and with derivatives of every kind.

    The fused kernels have a first derivative in reverse mode and no other: forward mode, second derivatives and `vmap`
    go through the formula, which holds all token pairs in memory. Under `torch.compile` the fused kernels are all
    there is.
    """
    if torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v)
    # Inside `torch.func`: any number of transforms may follow, and the formula takes all of them.
    if any(torch.func.debug_unwrap(part) is not part for part in (q, k, v)):
        return _weights(q, k) @ v
    return _FusedAttention.apply(q, k, v)


def _weights(q: Tensor, k: Tensor) -> Tensor:
    return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1)


class _FusedAttention(torch.autograd.Function):
    """Fused attention outside `torch.func`: derivatives that the fused kernels lack are taken of the formula."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.save_for_forward(q, k, v)
        return F.scaled_dot_product_attention(q, k, v)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        (g,) = grad_outputs
        q, k, v = ctx.saved_tensors
        if not torch.is_grad_enabled():  # without create_graph: no derivative of this one follows
            with torch.enable_grad():
                inputs = [part.detach().requires_grad_() for part in (q, k, v)]
                out = F.scaled_dot_product_attention(*inputs)
            return torch.autograd.grad(out, inputs, g)
        weights = _weights(q, k)
        slope = _softmax_slope(weights, g @ v.mT) * q.shape[-1] ** -0.5
        return slope @ k, slope.mT @ q, weights.mT @ g

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor) -> Tensor:
        dq, dk, dv = grad_inputs
        q, k, v = ctx.saved_tensors
        weights = _weights(q, k)
        scores = (dq @ k.mT + q @ dk.mT) * q.shape[-1] ** -0.5
        return _softmax_slope(weights, scores) @ v + weights @ dv


def _softmax_slope(weights: Tensor, change: Tensor) -> Tensor:
    """The derivative of the softmax with value `weights`, a symmetric matrix, times `change`."""
    return weights * (change - (weights * change).sum(dim=-1, keepdim=True))


class Upsample(nn.Module):
    """Doubles height and width: nearest-neighbour copy and 3x3 convolution, folded into one convolution.

    After a nearest-neighbour copy the nine taps fall on 2 x 2 different pixels, so the two steps equal one transposed
    4x4 convolution of stride 2 whose kernel is a fixed sum of the 3x3 kernel's taps: the same function and parameters
    with 4/9 of the multiplications, and no checkerboard (Odena et al., Distill 2016).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "batch c height width"]
    ) -> Float[Tensor, "batch c 2*height 2*width"]:
        kernel = _fold(_fold(self.conv.weight, 2), 3).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


def _fold(weight: Tensor, dim: int) -> Tensor:
    """Three taps along `dim` as the four of the transposed kernel: each adds those that meet the same pixel."""
    first, middle, last = weight.unbind(dim)
    return torch.stack([last, middle + last, first + middle, first], dim)


def pad_to_multiple(
    x: Float[Tensor, "batch c height width"], multiple: int
) -> Float[Tensor, "batch c padded_height padded_width"]:
    """Repeats the last row and column until height and width divide by `multiple`."""
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x


def check_dtype(x: Tensor, network: nn.Module) -> None:
    """Raises unless `x` has the dtype of the network's weights, or one that autocast brings to it.

    Raises:
        TypeError: otherwise; a silent cast would lose digits, or answer in another dtype than the state's.
    """
    dtype = next(network.parameters()).dtype
    if x.dtype == dtype:
        return
    half = (torch.float32, torch.float16, torch.bfloat16)
    device = x.device.type
    if x.dtype in half and dtype in half and torch.amp.is_autocast_available(device):
        if torch.is_autocast_enabled(device):
            return
    raise TypeError(
        f"`x` must have the dtype of the network's weights, {dtype}, outside `torch.autocast`; got {x.dtype}. "
        f"Write `x.to({dtype})`, or `network.to({x.dtype})`."
    )
