"""Training losses on path samples."""

from fm_ext.loss.velocity import velocity_loss

__all__ = ["velocity_loss"]
