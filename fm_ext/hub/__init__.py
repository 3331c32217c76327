"""Trained flows as folders, on disk, on the hub or in the package, that load by name; needs the extra `hub`."""

from fm_ext.hub.card import Measured, Metric
from fm_ext.hub.flow import FlowModel, Sampler
from fm_ext.hub.folder import shipped_names
from fm_ext.hub.picture import (
    fill_picture,
    fitting_model,
    open_mask,
    open_picture,
    to_grid,
    to_pictures,
    translate_picture,
)
from fm_ext.hub.registry import register, registered

__all__ = [
    "FlowModel",
    "Measured",
    "Metric",
    "Sampler",
    "fill_picture",
    "fitting_model",
    "open_mask",
    "open_picture",
    "register",
    "registered",
    "shipped_names",
    "to_grid",
    "to_pictures",
    "translate_picture",
]
