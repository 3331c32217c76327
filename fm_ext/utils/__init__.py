"""Checks of time, mask and extras, and the base of all wrappers of models."""

from fm_ext.utils.inputs import shared
from fm_ext.utils.model_wrapper import ModelWrapper

__all__ = ["ModelWrapper", "shared"]
