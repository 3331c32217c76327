"""What to measure, on torchmetrics."""

from fm_ext.metrics.hole import hole_psnr, hole_ssim

__all__ = ["hole_psnr", "hole_ssim"]
