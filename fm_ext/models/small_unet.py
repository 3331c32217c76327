"""A U-Net of a fifth of a million parameters, for teaching and for experiments of seconds."""

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from fm_ext.models.blocks import check_dtype, pad_to_multiple
from fm_ext.utils.inputs import sample_time


class DoubleConv(nn.Sequential):
    """Convolution, ReLU, convolution, ReLU, all 3x3 at one resolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.ReLU(),
        )


class SmallUNet(nn.Module):
    r"""Three levels, no norm, no attention; time is one more channel and skips are added.

    The network of a practical work on flow matching (Sorbonne RDFIA, "Flow Matching", section 3), for 28x28 digits:
    DoubleConv c+1 -> 32, max-pool, 32 -> 64, max-pool, 64 -> 64; then twice a transposed 2x2 convolution, plus the
    encoder's map, and DoubleConv 64 -> 32 and 32 -> 32; a 1x1 convolution at the end. Sides that do not divide by 4
    are padded and cropped.

    Args:
        in_channels: channels of `x`, without the time map.
        out_channels: channels of the velocity; None for as many as `in_channels`.
    """

    def __init__(self, in_channels: int = 1, out_channels: int | None = None):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.encoder_1 = DoubleConv(in_channels + 1, 32)
        self.encoder_2 = DoubleConv(32, 64)
        self.middle = DoubleConv(64, 64)
        self.up_2 = nn.ConvTranspose2d(64, 64, 2, stride=2)
        self.decoder_2 = DoubleConv(64, 32)
        self.up_1 = nn.ConvTranspose2d(32, 32, 2, stride=2)
        self.decoder_1 = DoubleConv(32, 32)
        self.out = nn.Conv2d(32, self.out_channels, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(
        self, x: Float[Tensor, "batch c_in height width"], t: Float[Tensor, "..."]
    ) -> Float[Tensor, "batch c_out height width"]:
        """Returns the velocity at `x` and `t`; `t` in [0, 1], 0-d or `(batch,)`."""
        check_dtype(x, self.out)
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, 4)
        time = sample_time(t, x).to(x.dtype)
        time = repeat(time, "batch -> batch 1 h w", h=x.shape[2], w=x.shape[3])
        e_1 = self.encoder_1(torch.cat([x, time], dim=1))
        e_2 = self.encoder_2(self.pool(e_1))
        h = self.middle(self.pool(e_2))
        h = self.decoder_2(self.up_2(h) + e_2)
        h = self.decoder_1(self.up_1(h) + e_1)
        return self.out(h)[..., :height, :width]
